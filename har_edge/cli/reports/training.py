"""How far a training on devices is: a live view, lines where there is no terminal, and the tables it leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from har_edge.learning.server.checkpoints import EpochRow, RoundRow
from har_edge.protocol.text import escape, with_origin
from har_edge.protocol.training import RunState, TrainingProgress
from har_edge.units import ago, plural, size

if TYPE_CHECKING:
    from rich.console import RenderableType

# The most workers that are shown; the rest is counted.
MAX_SHOWN = 16


def head_line(progress: TrainingProgress) -> str:
    """Return the run in one line of figures, at most 80 columns wide; of one that has ended, what it was in all."""
    ended = progress.state in (RunState.FINISHED, RunState.STOPPED)
    parts = [f"epoch {progress.epoch}/{progress.epochs}", f"round {progress.round}"]
    if progress.state is RunState.FINISHED:
        parts = [f"{plural(progress.epochs, 'epoch')} in {plural(progress.round, 'round')}"]
    elif progress.samples:
        parts.append(f"{100 * progress.counted / progress.samples:.0f} %")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.accuracy is not None:
        parts.append(f"accuracy {progress.accuracy:.4f}")
    if not ended:
        parts += [f"{progress.samples_per_s:.0f} samples/s", workers_here(progress)]
    return ", ".join(parts)


def workers_here(progress: TrainingProgress) -> str:
    """Return how many of the workers take part."""
    count = len(progress.workers)
    return f"{sum(one.active for one in progress.workers)} of {plural(count, 'worker')}" if count else "no worker yet"


def traffic_line(progress: TrainingProgress) -> str:
    """Return what travelled, and what was dropped."""
    dropped = f", {plural(progress.dropped, 'message')} dropped" if progress.dropped else ""
    return f"rounds sent {size(progress.sent_bytes)}, updates received {size(progress.received_bytes)}{dropped}"


def draw_progress(progress: TrainingProgress) -> RenderableType:
    """Return the live view of a training."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [Text(head_line(progress)), Text(traffic_line(progress))]
    lines += [Text(escape(text)) for text in (progress.privacy, progress.detail) if text]
    table = Table(box=None, pad_edge=False)
    for name in ("worker", "samples", "samples/s", "updates", "dropped", ""):
        table.add_column(name, justify="left" if name in ("worker", "") else "right", no_wrap=name != "")
    for one in progress.workers[:MAX_SHOWN]:
        table.add_row(
            Text(one.name[:24]),
            str(one.samples),
            f"{one.samples_per_s:.0f}",
            size(one.received_bytes),
            str(one.dropped),
            Text("" if one.active else escape(one.detail)[:60]),
        )
    if len(progress.workers) > MAX_SHOWN:
        table.add_row(f"and {len(progress.workers) - MAX_SHOWN} more")
    return Group(*lines, table)


def status_lines(progress: TrainingProgress, age_s: float) -> list[str]:
    """Return a training as `har-edge status` shows it; its last words are `age_s` old."""
    data = with_origin(progress.data, real=progress.real) if progress.data else "unknown data"
    lives = progress.state in (RunState.WAITING, RunState.RUNNING)
    state = f"{progress.state.value} {ago(age_s)}"
    if lives:
        state = f"not heard for {age_s:.0f} s" if age_s > 10 else progress.state.value
    lines = [f"training {progress.run}: {state}, {progress.model or 'a model'}, {data}"]
    if progress.state is not RunState.WAITING or not progress.detail:
        lines.append(f"  {head_line(progress)}")
    lines += [f"  {text}" for text in (progress.privacy, progress.detail) if text]
    return [escape(line) for line in lines]


def rounds_csv(rounds: Iterable[RoundRow], epochs: Iterable[EpochRow]) -> str:
    """Return a row for each round; the last one of an epoch has the accuracy on held-out samples."""
    scores = {row.epoch: row for row in epochs}
    rows = list(rounds)
    last = {row.epoch: row.round for row in rows}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [*RoundRow.__struct_fields__, "accuracy", "held_out_loss"]
    writer.writerow(head)
    for row in rows:
        score = scores.get(row.epoch) if last[row.epoch] == row.round else None
        values = [getattr(row, name) for name in RoundRow.__struct_fields__]
        writer.writerow(["" if value is None else value for value in values] + _score(score))
    return text.getvalue()


def _score(score: EpochRow | None) -> list[object]:
    return ["", ""] if score is None or score.accuracy is None else [score.accuracy, score.loss]
