"""The output of `har-edge evaluate --protocol`: progress, then one table."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from har_edge.evaluation.executor import TrialOutcome
from har_edge.evaluation.results import TITLES, MeasuredTraffic, StudyConditions, StudyResults
from har_edge.evaluation.rows import NETWORK, Row
from har_edge.evaluation.trial import Trial
from har_edge.evaluation.trial_runner import StudyConfig

_HEAD = ("reducer", "sees", "batch", "accuracy", "± std", "macro F1", "wire B/s", "less than raw", "ops", "µs", "error")
_WIDTH = 200


def introduce(conditions: StudyConditions, origin: str, config: StudyConfig, trials: Sequence[Trial]) -> str:
    """Return the text that describes the study before hours of work."""
    streams = ", ".join(conditions.streams)
    variants = len({trial.variant for trial in trials})
    lines = [
        f"data       {origin}: {streams}",
        *([] if conditions.real else ["           on synthetic data: says nothing about people"]),
        f"windows    {config.length} samples, one every {config.hop}, at {config.description.rate_hz:g} Hz",
        f"work       {len(trials)} trials of {variants} variants, kept in {config.out}",
    ]
    return "\n".join(lines)


def follow(outcomes: Iterable[TrialOutcome], total: int) -> Iterator[TrialOutcome]:
    """Pass outcomes on and show the progress: a bar on a terminal, else a line each."""
    if sys.stderr.isatty():
        yield from _show_bar(outcomes, total)
        return
    for number, outcome in enumerate(outcomes, 1):
        print(f"[{number}/{total}] {describe(outcome)}", file=sys.stderr, flush=True)
        yield outcome


def describe(outcome: TrialOutcome) -> str:
    """Return a line about one trial."""
    if outcome.result is None:
        return f"FAILED {outcome.trial}: {outcome.error.splitlines()[-1]}"
    matrices = outcome.result.score.confusions.values()
    right = sum(row[index] for matrix in matrices for index, row in enumerate(matrix))
    windows = sum(sum(row) for matrix in matrices for row in matrix)
    took = "stored" if outcome.reused else f"{outcome.result.seconds:.1f} s"
    return f"{outcome.trial}: accuracy {right / max(1, windows):.4f}, {windows} windows, {took}"


def format_results(results: StudyResults) -> str:
    """Return all rows as a table that is valid Markdown, too, after a line that says which data they are from."""
    data = results.conditions.data if results.conditions.real else "SYNTHETIC DATA: says nothing about people"
    text = [f"\n{data}; accuracy and macro F1 are means over subjects"]
    for protocol, title in TITLES.items():
        rows = [row for row in results.rows if row.protocol is protocol]
        if rows:
            text += [f"\n{title}, {rows[0].subjects} subjects, {rows[0].windows} windows", _table(rows)]
            text += _without(rows)
    text += map(format_measured, results.measured)
    return "\n".join(text)


def format_measured(one: MeasuredTraffic) -> str:
    """Return a line on the traffic of one row over a real broker."""
    where = f"over MQTT ({one.broker}): {one.row}, {one.protocol.value} fold {one.fold}"
    rates = f"{one.sent_bytes_per_s:.1f} B/s sent, {one.computed_bytes_per_s:.1f} B/s computed of PUBLISH packets"
    agree = "all answers identical" if one.identical else "ANSWERS DIFFER"
    return f"{where}: {rates}, {one.windows} windows, {agree}"


def _table(rows: Sequence[Row]) -> str:
    table = Table(box=MARKDOWN)
    for name in _HEAD:
        table.add_column(name, justify="left" if name in ("reducer", "sees") else "right", no_wrap=True)
    for row in rows:
        named = [row.reducer if row.method == NETWORK else row.method]
        named += [] if row.grouping == "location" else [row.grouping]
        named += [] if row.precision in ("int8", "-") else [row.precision]
        table.add_row(
            " ".join(named),
            row.downstream,
            str(row.batch),
            f"{row.accuracy:.4f}",
            "-" if row.accuracy_std is None else f"{row.accuracy_std:.4f}",
            f"{row.macro_f1:.4f}",
            f"{row.wire_bytes_per_s:.1f}",
            f"{100 * row.reduction:.1f} %",
            str(row.operations),
            f"{row.encode_us:.0f}",
            "-" if row.error is None else f"{row.error:.4f}",
        )
    out = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().strip("\n").splitlines() if line.strip())


def _without(rows: Sequence[Row]) -> list[str]:
    """Return the accuracy of each row with each source missing, once for each variant, since batches change nothing."""
    lines = []
    for row in rows:
        if row.without and row.batch == min(r.batch for r in rows if r.key[:-1] == row.key[:-1]):
            figures = ", ".join(f"{source} {figure:.4f}" for source, figure in row.without.items())
            lines.append(f"{row.name}, accuracy without: {figures} (with all: {row.accuracy:.4f})")
    return lines


def _show_bar(outcomes: Iterable[TrialOutcome], total: int) -> Iterator[TrialOutcome]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("trials", total=total)
        for outcome in outcomes:
            progress.console.print(describe(outcome), markup=False, highlight=False)
            progress.advance(task)
            yield outcome
