"""The live table of results, for `watch` and `demo`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from har_edge.cli.reports.bars import bar
from har_edge.protocol.text import escape
from har_edge.units import duration

if TYPE_CHECKING:
    from rich.table import Table

    from har_edge.cluster.cluster import Arrival
    from har_edge.protocol.results import AnomalyScore, HeatMap, NamedArray

RECENT = 200
# So many values of an array, and letters of its name, are shown.
SHOWN, MAX_NAME = 8, 40
MAX_ROWS = 100
# Letters of the bar of a score.
BAR = 7


@dataclass(slots=True)
class StreamRow:
    """One stream in the table."""

    last: Arrival
    windows: int = 0
    scored: int = 0
    correct: int = 0
    anomalies: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class LiveTable:
    """Gathers results by stream and draws them."""

    def __init__(self, labels: Mapping[int, str]) -> None:
        self._labels = labels
        self._rows: dict[str, StreamRow] = {}

    def add(self, arrival: Arrival) -> None:
        """Take one result in."""
        result = arrival.result
        row = self._rows.setdefault(result.stream, StreamRow(arrival))
        if len(self._rows) > MAX_ROWS:  # names come from the network: what is shown of them is bounded
            del self._rows[next(iter(self._rows))]
        row.last = arrival
        row.windows += 1
        row.latencies_ms.append(arrival.latency_ms)
        row.anomalies += result.anomaly is not None and result.anomaly.anomaly
        if result.truth is not None:
            row.scored += 1
            row.correct += result.truth == result.label_id

    def draw(self, title: str, columns: int) -> Table:
        """Return the table as it stands, for a terminal of so many columns, and below it which sources are missing."""
        from rich.console import Console
        from rich.measure import Measurement
        from rich.text import Text

        lacking = [
            f"{name} lacks {', '.join(row.last.result.missing)}"
            for name, row in sorted(self._rows.items())
            if row.last.result.missing
        ]
        # Text and not str, in which brackets that come from the network would be markup.
        caption = Text(escape("; ".join(lacking))) if lacking else None
        console = Console(width=10_000)
        wide, narrow = (self._table(title, stacked=stacked) for stacked in (False, True))
        measured = Measurement.get(console, console.options, wide).maximum
        table = wide if measured <= columns else narrow
        table.caption, table.caption_justify = caption, "left"
        return table

    def _table(self, title: str, *, stacked: bool) -> Table:
        """Return the rows: a line each, or `stacked` with the truth below the activity where names are long.

        Only names break into lines, between words if they can; figures never do.
        """
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left")
        if stacked:
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        if not self._rows:  # the first result says which columns there are
            table.add_column("no result yet", header_style="dim")
            return table
        if any(row.last.result.anomaly is not None for row in self._rows.values()):
            return self._anomalies_table(table, stacked=stacked)
        if any(row.last.result.classes or row.last.result.arrays for row in self._rows.values()):
            return self._outputs_table(table)
        names = ("stream", "window", "activity, truth") if stacked else ("stream", "window", "activity")
        for name in (*names, "score", *(() if stacked else ("truth",)), "latency", "accuracy"):
            words = name in ("stream", "truth") or name.startswith("activity")
            table.add_column(
                name,
                justify="left" if words else "right",
                no_wrap=not (words and stacked),
                overflow="fold",
                min_width=len(name) if not words else None,
            )
        for stream, row in sorted(self._rows.items()):
            result, middle = row.last.result, sorted(row.latencies_ms)[len(row.latencies_ms) // 2]
            known, right = result.truth is not None, result.truth == result.label_id
            truth = self._labels.get(result.truth or 0, str(result.truth)) if known else "-"
            figures = [duration(middle / 1000), f"{row.correct / row.scored:.3f}" if row.scored else "-"]
            score = f"{result.confidence:.2f}"
            if stacked:
                named = f"{escape(result.label)}\ntruth: {'the same' if right else escape(truth)}"
                cells = [Text(escape(stream)), Text(str(result.seq)), Text(named if known else escape(result.label))]
                cells += [Text(text) for text in (score, *figures)]
            else:
                cells = [*map(Text, map(escape, (stream, str(result.seq), result.label, score, truth, *figures)))]
            table.add_row(*cells, style=None if not known or right else "yellow")
        return table

    def _anomalies_table(self, table: Table, *, stacked: bool) -> Table:
        """Return the rows of results that say how unusual a picture is; those of anomalies stand out.

        `unusual` draws the score, as far as twice the threshold. `peak` says where the heat map is largest, from
        the left and from the top; it is left out where there is no room.
        """
        from rich.text import Text

        names = ["stream", "window", "result", "score", "threshold", "unusual", "peak", "anomalies", "latency"]
        if stacked:
            names.remove("peak")
        for name in names:
            words = name in ("stream", "result", "unusual")
            table.add_column(
                name,
                justify="left" if words else "right",
                no_wrap=name != "stream",
                overflow="fold",
                min_width=BAR if name == "unusual" else len(name) if not words else None,
            )
        for stream, row in sorted(self._rows.items()):
            result, middle = row.last.result, sorted(row.latencies_ms)[len(row.latencies_ms) // 2]
            one = result.anomaly
            figures = ["-", "-", "", "-"] if one is None else _judged(one)
            share = f"{row.anomalies} of {row.windows}"
            told = [stream, str(result.seq), result.label, *figures, share, duration(middle / 1000)]
            cells = told if not stacked else told[:6] + told[7:]
            unusual = one is not None and one.anomaly
            table.add_row(*map(Text, map(escape, cells)), style="bold red" if unusual else None)
        return table

    def _outputs_table(self, table: Table) -> Table:
        """Return the rows of results with the best classes, a line each, or with arrays, the first values of each."""
        from rich.text import Text

        for name in ("stream", "window", "output", "score", "latency"):
            words = name in ("stream", "output")
            table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
        for stream, row in sorted(self._rows.items()):
            result, middle = row.last.result, sorted(row.latencies_ms)[len(row.latencies_ms) // 2]
            lines = [(one.label, f"{one.confidence:.2f}") for one in result.classes]
            if not lines and result.label:
                lines = [(result.label, f"{result.confidence:.2f}")]
            lines += [(describe_array(array), "") for array in result.arrays]
            for number, (said, score) in enumerate(lines):
                head = (stream, str(result.seq)) if not number else ("", "")
                latency = duration(middle / 1000) if not number else ""
                table.add_row(*map(Text, map(escape, (*head, said, score, latency))))
        return table


def _judged(one: AnomalyScore) -> list[str]:
    """Return score, threshold, a bar of the score, and the place of the largest cell of the heat map."""
    part = one.score / one.threshold if one.threshold > 0 else 2.0 * one.anomaly
    return [_figure(one.score), _figure(one.threshold), bar(max(0.0, part), 2.0, BAR), _peak(one.heat_map)]


def _peak(heat_map: HeatMap | None) -> str:
    """Return the middle of the largest cell, in parts of width and height; a dash without one."""
    values = {} if heat_map is None else dict(enumerate(heat_map.values))
    known = {index: value for index, value in values.items() if value is not None}
    if heat_map is None or not known:
        return "-"
    row, column = divmod(max(known, key=lambda index: known[index]), heat_map.shape[1])
    return f"{(column + 0.5) / heat_map.shape[1]:.0%} {(row + 0.5) / heat_map.shape[0]:.0%}"


def describe_array(array: NamedArray) -> str:
    """Return the name, the shape and the first values of an array, in one line of bounded length."""
    name = array.name if len(array.name) <= MAX_NAME else f"…{array.name[1 - MAX_NAME :]}"
    shown = [_figure(value) for value in array.values[:SHOWN]]
    more = ["…"] if len(array.values) > SHOWN else []
    return f"{name} {list(array.shape)}: {' '.join(shown + more)}"


def _figure(value: float | bool | None) -> str:
    """Return a value with four digits; no finite number is a dash."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
