"""The live table of results, for `watch` and `demo`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from har_edge.messaging.text import escape

if TYPE_CHECKING:
    from rich.table import Table

    from har_edge.nodes.local import Arrival

RECENT = 200
MAX_ROWS = 100
# What the table takes beside the names of activities: numbers, stream, borders.
_OTHER_COLUMNS = 58


@dataclass(slots=True)
class Row:
    """What the table shows of one stream."""

    last: Arrival
    windows: int = 0
    scored: int = 0
    correct: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Board:
    """Gathers results by stream and draws them."""

    def __init__(self, labels: Mapping[int, str]) -> None:
        self._labels = labels
        self._rows: dict[str, Row] = {}

    def add(self, arrival: Arrival) -> None:
        """Take one result in."""
        result = arrival.result
        row = self._rows.setdefault(result.stream, Row(arrival))
        if len(self._rows) > MAX_ROWS:  # names come from the network: what is shown of them is bounded
            del self._rows[next(iter(self._rows))]
        row.last = arrival
        row.windows += 1
        row.latencies_ms.append(arrival.latency_ms)
        if result.truth is not None:
            row.scored += 1
            row.correct += result.truth == result.label_id

    def draw(self, title: str, columns: int) -> Table:
        """Return the table as it stands, for a terminal of so many columns, and below it which sources are missing."""
        from rich.table import Table
        from rich.text import Text

        lacking = [
            f"{name} lacks {', '.join(row.last.result.missing)}"
            for name, row in sorted(self._rows.items())
            if row.last.result.missing
        ]
        # Text and not str, in which brackets that come from the network would be markup.
        caption = Text(escape("; ".join(lacking))) if lacking else None
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        # On a narrow terminal only the names of activities give way.
        names_width = max(8, (columns - _OTHER_COLUMNS) // 2)
        for name in ("stream", "window", "activity", "score", "truth", "latency", "accuracy"):
            table.add_column(
                name,
                justify="left" if name in ("stream", "activity", "truth") else "right",
                max_width=names_width if name in ("activity", "truth") else None,
                no_wrap=True,
            )
        for stream, row in sorted(self._rows.items()):
            result, middle = row.last.result, sorted(row.latencies_ms)[len(row.latencies_ms) // 2]
            known = result.truth is not None
            truth = self._labels.get(result.truth or 0, str(result.truth)) if known else "-"
            cells = [
                stream,
                str(result.seq),
                result.label,
                f"{result.confidence:.2f}",
                truth,
                f"{middle:.1f} ms",
                f"{row.correct / row.scored:.3f}" if row.scored else "-",
            ]
            table.add_row(
                *map(Text, map(escape, cells)),
                style=None if not known or result.truth == result.label_id else "yellow",
            )
        return table
