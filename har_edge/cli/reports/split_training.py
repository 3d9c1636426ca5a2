"""The output of plans and profiles of split training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from har_edge.cli.console import columns, first_fit, make_console, say
from har_edge.cli.reports.bars import bar
from har_edge.planner.training_costs import TrainingProblem
from har_edge.planner.training_plan import OtherTraining, PlannedTraining
from har_edge.planner.training_profile import TrainingProfile
from har_edge.planner.training_schedule import ScheduledRun, ScheduledStage, schedule_step
from har_edge.units import duration, size, speed

_BARS = (16, 8, 0)  # from the widest terminal to the narrowest
# How a drawing shows a worker that computes forward, backward, or waits.
FORWARD, BACKWARD, WAITING = "░", "█", "·"
_MOST_COLUMNS = 100


def print_training_profile(profile: TrainingProfile, remarks: Sequence[str], path: Path, *, as_json: bool) -> None:
    """Print a training profile and its path."""
    if as_json:
        print(msgspec.json.encode(profile).decode())
        return
    console = make_console()
    last = len(profile.batches) - 1
    say(
        f"{profile.model} on {profile.device} ({profile.machine}), {profile.loss}; times of micro-batches of "
        f"{' and '.join(map(str, profile.batches))}, below of {profile.batches[last]}"
    )
    console.print(first_fit(console, [partial(_segments, profile, width) for width in _BARS]))
    for line in [*_profile_lines(profile), *(f"note: {remark}" for remark in remarks), f"kept in {path}"]:
        say(line)


def _segments(profile: TrainingProfile, width: int) -> Table:
    table = _table(("operators", "layer"), ("weights", "forward", "backward", "anew", "kept"), width)
    totals = [one.times[-1].forward_s + one.times[-1].backward_s for one in profile.segments]
    for one, total in zip(profile.segments, totals, strict=True):
        times = one.times[-1]
        table.add_row(
            escape(f"[{one.start}, {one.stop})"),
            one.layer,
            f"{one.elements:,}",
            duration(times.forward_s),
            duration(times.backward_s),
            duration(times.recompute_s),
            size(one.kept_bytes),
            bar(total, max(totals), width),
        )
    return table


def _profile_lines(profile: TrainingProfile) -> list[str]:
    lines = []
    if profile.whole_s:
        figures = ", ".join(
            f"{duration(seconds)} by {count}" for count, seconds in zip(profile.batches, profile.whole_s, strict=True)
        )
        lines.append(f"a step of the whole model in one graph: {figures}")
    lines.append(
        f"a weight takes {profile.update_s * 1e9:.2f} ns in the optimizer, {profile.add_s * 1e9:.2f} ns to add its "
        "gradient"
    )
    if profile.base_bytes:
        lines.append(f"memory {size(profile.base_bytes)} without a stage")
    if profile.message is not None:
        message = profile.message
        lines.append(
            f"message {duration(message.seconds)} of processor time to send or receive, and "
            f"{message.seconds_per_byte * 1e9:.2f} ns a byte ({message.broker})"
        )
    if profile.link is not None:
        lines.append(f"link {duration(profile.link.round_trip_s)} there and back, {speed(profile.link.bytes_per_s)}")
    return lines


def print_planned_training(planned: PlannedTraining, problem: TrainingProblem, *, as_json: bool = False) -> None:
    """Print a plan: its stages, a drawing of a step, and what else there is."""
    if as_json:
        print(msgspec.json.encode(planned).decode())
        return
    console = make_console()
    console.print(first_fit(console, [partial(_stages, planned, width) for width in _BARS]))
    console.print()
    for line in draw_step(planned, problem, columns()):
        console.print(line, markup=False, highlight=False)
    console.print()
    for line in planned.describe():
        say(line)
    console.print()
    console.print(first_fit(console, [partial(_others, planned, width) for width in _BARS]))
    for other in planned.others:
        if other.step_s is None:
            say(f"{other.name}: {other.reason}")
    for note in planned.notes:
        say(f"note: {note}")


def _stages(planned: PlannedTraining, width: int) -> Table:
    """Return a row for each stage, with bars of the part of the time that its devices work."""
    table = _table(("stage", "operators"), ("weights", "forward", "backward", "memory", "under way", "works"), width)
    homes = []
    for number, stage in enumerate(planned.stages):
        table.add_row(
            str(number),
            escape(f"[{stage.start}, {stage.stop})"),
            f"{stage.elements:,}",
            duration(stage.forward_s),
            duration(stage.backward_s),
            size(stage.memory_bytes),
            f"{stage.in_flight}{'' if stage.keep else '*'}",
            f"{stage.busy_share:.0%}",
            bar(stage.busy_share, 1.0, width),
        )
        homes.append(f"stage {number} on {', '.join(stage.devices)}")
    if not all(stage.keep for stage in planned.stages):
        homes.append("* activations are computed anew for the way back")
    table.caption, table.caption_justify = Text("\n".join(homes)), "left"
    return table


def _others(planned: PlannedTraining, width: int) -> Table:
    table = _table(("why not",), ("devices", "step", "samples/s", "waiting", "memory", "ratio"), width)
    longest = max([planned.step_s, *(one.step_s for one in planned.others if one.step_s is not None)])
    devices = sum(len(stage.devices) for stage in planned.stages)
    memory = max(stage.memory_bytes for stage in planned.stages)
    this = OtherTraining("this plan", devices, planned.step_s, planned.bubble, memory)
    for other in (this, *planned.others):
        if other.step_s is None:
            continue
        waits = "" if other.bubble is None else f"{other.bubble:.0%}"
        table.add_row(
            escape(other.name),
            str(other.devices),
            duration(other.step_s),
            f"{planned.batch / other.step_s:.3g}" if other.step_s else "-",
            waits,
            size(other.memory_bytes),
            f"{other.step_s / planned.step_s:.2f} x" if planned.step_s and other is not this else "",
            bar(other.step_s, longest, width),
        )
    return table


def _table(left: Sequence[str], right: Sequence[str], width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in left:
        folds = name in ("layer", "why not")
        table.add_column(name, no_wrap=not folds, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def draw_step(planned: PlannedTraining, problem: TrainingProblem, width: int) -> list[str]:
    """Return a step as lines of `width` characters, one for each device: when it goes forward, back, or waits."""
    runs = schedule_step(stage_loads(planned, problem), planned.plan.micro_batches, problem.broker, problem.latency_s)
    end = max(run.ended_s for run in runs)
    names = [
        ((stage, number), name) for stage, one in enumerate(planned.stages) for number, name in enumerate(one.devices)
    ]
    label = min(24, max(len(name) for _, name in names))
    cells = min(_MOST_COLUMNS, width) - label - 1
    lines = [
        f"{name[:label]:<{label}} {_row([run for run in runs if (run.stage, run.worker) == place], end, cells)}"
        for place, name in names
    ]
    return [*lines, f"{'':<{label}} {FORWARD} forward  {BACKWARD} backward  {WAITING} waits; {duration(end)} in all"]


def _row(runs: Sequence[ScheduledRun], end: float, cells: int) -> str:
    """Return what one worker does, cell by cell: of each the work that takes most of it."""
    row = []
    for cell in range(cells):
        begin, stop = end * cell / cells, end * (cell + 1) / cells
        taken = {FORWARD: 0.0, BACKWARD: 0.0}
        for run in runs:
            taken[BACKWARD if run.backward else FORWARD] += max(0.0, min(stop, run.ended_s) - max(begin, run.began_s))
        most = max(taken, key=lambda kind: taken[kind])
        row.append(most if sum(taken.values()) * 2 >= stop - begin else WAITING)
    return "".join(row)


def stage_loads(planned: PlannedTraining, problem: TrainingProblem) -> list[ScheduledStage]:
    """Return the stages of a plan as the simulation sees them."""
    links = {device.name: device.link_bytes_per_s for device in problem.devices}
    return [
        ScheduledStage(
            workers=len(stage.devices),
            in_flight=stage.in_flight,
            forward_s=stage.forward_s,
            backward_s=stage.backward_s,
            update_s=stage.update_s,
            entering_bytes=stage.entering_bytes,
            gradient_bytes=stage.gradient_bytes,
            link_byte_s=1 / links[stage.devices[0]] if links[stage.devices[0]] else 0.0,
            joined=stage is planned.stages[-1],
        )
        for stage in planned.stages
    ]
