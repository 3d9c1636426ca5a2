"""The rows of a study on disk, for machines (rows.json, rows.csv) and people (report.md)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from har_edge.errors import ConfigError
from har_edge.evaluation.protocol import Protocol
from har_edge.evaluation.rows import Row
from har_edge.files import write_atomic

ROWS, TABLE, REPORT = "rows.json", "rows.csv", "report.md"
_HEADLINE = (Protocol.LOSO, Protocol.SPLIT, Protocol.RANDOM)


class StudyConditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The conditions that all rows share; `digest` is a hash of everything that decides the figures."""

    data: str
    real: bool
    streams: list[str]
    seeds: list[int]
    recipe: str
    version: str
    digest: str


class MeasuredTraffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row sent over a real broker: one fold, one seed.

    `computed_bytes_per_s` is what the study says the PUBLISH packets of these very windows take, `sent_bytes_per_s` all
    that the sensors wrote: the same, and CONNECT, statuses and acknowledgements. `identical` says that every window was
    answered, bit for bit as without a broker.
    """

    row: str
    protocol: Protocol
    fold: str
    windows: int
    identical: bool
    computed_bytes_per_s: float
    sent_bytes_per_s: float
    raw_bytes_per_s: float
    broker: str


class StudyResults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every row measured under the same conditions, with the commands that made them."""

    conditions: StudyConditions
    commands: list[str]
    rows: list[Row]
    measured: list[MeasuredTraffic] = []

    @property
    def headline(self) -> list[Row]:
        """The rows of the protocol to quote: leave-one-subject-out where it was run."""
        for protocol in _HEADLINE:
            rows = [row for row in self.rows if row.protocol is protocol]
            if rows:
                return rows
        return []


def load_results(folder: Path) -> StudyResults | None:
    """Return the results stored in a folder, or None; raise ConfigError where the file cannot be read."""
    path = folder / ROWS
    try:
        return msgspec.json.decode(path.read_bytes(), type=StudyResults)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {error}; another version of har-edge wrote it: remove it, or choose another --out"
        ) from error


def merge_results(old: StudyResults | None, conditions: StudyConditions, command: str) -> StudyResults:
    """Return results to add to: the old ones where their conditions are the same, else empty ones."""
    if old is None or old.conditions.digest != conditions.digest:
        return StudyResults(conditions, [command], [])
    commands = [*(other for other in old.commands if other != command), command]
    return StudyResults(conditions, commands, old.rows, old.measured)


def add_rows(results: StudyResults, rows: Iterable[Row]) -> StudyResults:
    """Return the results with these rows; they replace those of the same key."""
    known = {row.key: row for row in results.rows} | {row.key: row for row in rows}
    return msgspec.structs.replace(results, rows=sort_rows(known.values()))


def add_measured(results: StudyResults, measured: Iterable[MeasuredTraffic]) -> StudyResults:
    """Return the results with these measurements; they replace those of the same row and protocol."""
    known = {(one.protocol, one.row): one for one in [*results.measured, *measured]}
    return msgspec.structs.replace(results, measured=list(known.values()))


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Return rows by protocol, then variant by variant, what sends most first, the smallest batch first."""
    rows = list(rows)
    most: dict[tuple[str | int, ...], float] = {}
    for row in rows:
        most[row.key[:-1]] = max(row.wire_bytes_per_s, most.get(row.key[:-1], 0.0))
    return sorted(rows, key=lambda row: (_HEADLINE.index(row.protocol), -most[row.key[:-1]], row.key))


def write_results(results: StudyResults, folder: Path) -> None:
    """Write rows.json, rows.csv and report.md."""
    write_atomic(folder / ROWS, msgspec.json.encode(results))
    write_atomic(folder / TABLE, format_csv(results.rows).encode())
    write_atomic(folder / REPORT, format_report(results).encode())


def format_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; a column for each subject, and for each source that was missing."""
    plain = [name for name in Row.__struct_fields__ if name not in ("per_subject", "without", "confusion", "labels")]
    subjects = list(dict.fromkeys(name for row in rows for name in row.per_subject))
    sources = list(dict.fromkeys(name for row in rows for name in row.without))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(f"accuracy_{name}" for name in subjects), *(f"without_{name}" for name in sources)])
    for row in rows:
        values = [getattr(row, name) for name in plain]
        writer.writerow(
            [
                *(value.value if isinstance(value, Protocol) else value for value in values),
                *(row.per_subject.get(name) for name in subjects),
                *(row.without.get(name) for name in sources),
            ]
        )
    return text.getvalue()


def format_report(results: StudyResults) -> str:
    """Return the report as Markdown."""
    conditions = results.conditions
    parts = [
        "# Accuracy against bytes sent",
        f"Data: {conditions.data}, {len(conditions.streams)} streams ({', '.join(conditions.streams)}); "
        f"seeds {', '.join(map(str, conditions.seeds))}; har-edge {conditions.version}; {conditions.recipe}.",
    ]
    if not conditions.real:
        parts.append("**On synthetic data: these figures say nothing about people.**")
    parts.append("```sh\n" + "\n".join(results.commands) + "\n```")
    for protocol in _HEADLINE:
        rows = [row for row in results.rows if row.protocol is protocol]
        if rows:
            parts += [f"## {TITLES[protocol]}", _markdown(HEAD, [cells_of(row) for row in rows])]
    parts += [*_optimism(results), *_subjects(results), *_missing(results), *_measured(results), _LEGEND]
    return "\n\n".join(parts) + "\n"


TITLES = {
    Protocol.LOSO: "Leave one subject out",
    Protocol.SPLIT: "Fixed split",
    Protocol.RANDOM: "Random split of all windows (too good: neighbours overlap, and everybody is trained on)",
}
HEAD = (
    "reducer", "classifier sees", "grouping", "precision", "batch", "accuracy", "macro F1", "wire B/s", "code B/s",
    "raw B/s", "less than raw", "operations/window", "µs/window", "restoration error",
)  # fmt: skip
_LEGEND = """\
Accuracy and macro F1 are means over subjects, ± the standard deviation over subjects. `wire` counts whole MQTT PUBLISH
packets (fixed header, topic, packet id, envelope, codes) of all sensors, which name the topic once and by its alias of
MQTT 5 from then on, `code` the codes alone; `raw` is each sample once as float32, without any header, so a window that
overlaps its neighbour and is not reduced takes more than raw.
Acknowledgements (4 bytes a message, on the way back) are not in `wire`. Operations and times are of one window, all
sensors together, on the machine that ran the study. The error is the mean squared error of restored windows over the
variance of each channel."""


def cells_of(row: Row) -> list[str]:
    """Return the cells of a row as text, under HEAD."""
    named = row.reducer if row.method == "network" else row.method
    return [
        named,
        row.downstream,
        row.grouping,
        row.precision,
        str(row.batch),
        f"{row.accuracy:.4f}" + ("" if row.accuracy_std is None else f" ± {row.accuracy_std:.4f}"),
        f"{row.macro_f1:.4f}",
        f"{row.wire_bytes_per_s:.1f}",
        f"{row.code_bytes_per_s:.1f}",
        f"{row.raw_bytes_per_s:.0f}",
        f"{100 * row.reduction:.1f} %",
        str(row.operations),
        f"{row.encode_us:.0f}",
        "-" if row.error is None else f"{row.error:.4f}",
    ]


def _optimism(results: StudyResults) -> list[str]:
    """Set the random split beside leave-one-subject-out, for the variants that have both."""
    by_key = {row.key: row for row in results.rows}
    lines = []
    for row in results.rows:
        other = by_key.get((Protocol.LOSO.value, *row.key[1:]))
        if row.protocol is Protocol.RANDOM and other is not None:
            difference = row.accuracy - other.accuracy
            lines.append([row.name, f"{other.accuracy:.4f}", f"{row.accuracy:.4f}", f"{difference:+.4f}"])
    if not lines:
        return []
    return [
        "## What a random split flatters",
        "The same windows scored, the same method; only the training differs.",
        _markdown(("row", "leave one subject out", "random split", "too good by"), lines),
    ]


def _subjects(results: StudyResults) -> list[str]:
    rows = results.headline
    names = list(dict.fromkeys(name for row in rows for name in row.per_subject))
    lines = [[row.name, *(f"{row.per_subject[n]:.3f}" if n in row.per_subject else "-" for n in names)] for row in rows]
    return ["## Accuracy by subject", _markdown(("row", *names), lines)] if rows else []


def _missing(results: StudyResults) -> list[str]:
    rows = [row for row in results.headline if row.without]
    names = list(dict.fromkeys(name for row in rows for name in row.without))
    lines = [
        [row.name, f"{row.accuracy:.4f}", *(f"{row.without[n]:.4f}" if n in row.without else "-" for n in names)]
        for row in rows
    ]
    head = ("row", "all sources", *(f"without {name}" for name in names))
    return ["## Accuracy with a source missing", _markdown(head, lines)] if rows else []


def _measured(results: StudyResults) -> list[str]:
    if not results.measured:
        return []
    head = ("row", "fold", "windows", "answers", "computed B/s", "sent B/s", "less than raw", "broker")
    lines = [
        [
            one.row,
            f"{one.protocol.value} {one.fold}",
            str(one.windows),
            "identical" if one.identical else "DIFFERENT",
            f"{one.computed_bytes_per_s:.1f}",
            f"{one.sent_bytes_per_s:.1f}",
            f"{100 * (1 - one.sent_bytes_per_s / one.raw_bytes_per_s):.1f} %",
            one.broker,
        ]
        for one in results.measured
    ]
    return [
        "## Over a real broker",
        "Sensors and stages as processes, every byte that the sensors wrote counted (CONNECT, statuses and "
        "acknowledgements of results included), for one fold.",
        _markdown(head, lines),
    ]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
