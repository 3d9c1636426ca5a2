"""The output of `har-edge plan`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from har_edge.cli.console import first_fit, make_console, say
from har_edge.cli.reports.bars import bar
from har_edge.cli.reports.shared_layers import draw_blocks
from har_edge.planner.choice import NEAR, SHARED, SHARING_GAIN
from har_edge.planner.plan import Alternative, Objective, Plan, PlannedStage
from har_edge.planner.split_plan import SplitCandidate
from har_edge.units import duration, plural, size

_REPLICAS = (
    "devices that take turns at a stage need a shared subscription, which `har-edge stage` makes with --turn on each; "
    "--replicas 1 plans without"
)
_BARS = (24, 12, 6, 0)  # from the widest terminal to the narrowest


class PlanReport(msgspec.Struct, frozen=True):
    """A plan, other plans to compare it with, and remarks on the origin of its figures."""

    plan: Plan
    alternatives: list[Alternative]
    notes: list[str]


def print_plan(
    report: PlanReport,
    model: str,
    *,
    as_json: bool,
    candidate: SplitCandidate | None = None,
    out: Path | None = None,
) -> None:
    """Print the plan and the others; `candidate` is what a plan of shared layers was made of, `out` where it is."""
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    console, plan = make_console(), report.plan
    ways = [(width, True) for width in _BARS] + [(width, False) for width in _BARS]
    console.print(first_fit(console, [partial(_stages, plan, width, named=named) for width, named in ways]))
    console.print()
    if candidate is not None:
        for line in draw_blocks(candidate):
            console.print(line, markup=False, highlight=False)
        console.print()
    for line in _summary(plan, report.alternatives):
        say(line)
    console.print()
    console.print(first_fit(console, [partial(_alternatives, plan, report.alternatives, width) for width in _BARS]))
    lines = [f"note: {note}" for note in report.notes]
    if any(stage.replicas > 1 for stage in plan.stages):
        lines.append(f"note: {_REPLICAS}")
    if plan.brokers is not msgspec.UNSET:
        lines.append(f"note: {_brokers(plan.brokers)}")
    if plan.is_split or plan.is_packed or plan.brokers is not msgspec.UNSET:
        pack = "" if plan.packing is msgspec.UNSET else f" --pack {plan.packing}"
        pack = pack if plan.packings is msgspec.UNSET else " --pack auto"
        file = "FILE" if out is None else shlex.quote(str(out))
        lines.append(f"cut it with: har-edge slice {model} --plan {file}{pack} --out DIR")
        if out is None:
            lines.append("note: --out FILE writes this plan to the file that it takes")
    elif plan.cuts:
        lines.append(f"cut it with: har-edge slice {model} --at {','.join(map(str, plan.cuts))} --out DIR")
    else:
        lines.append(f"nothing to cut: the whole model runs on {' and '.join(plan.stages[0].devices)}")
    console.print()
    for line in lines:
        say(line)


def _brokers(brokers: Mapping[str, str]) -> str:
    """Return which flows go through brokers on devices, and how to start these."""
    parts = [f"those of slice {number} at {device}" for number, device in brokers.items()]
    return (
        f"flows go through the brokers of devices: {', '.join(parts)}; all others through the central one. Nodes carry "
        "them with `har-edge node --own-broker` (coordinator --local-brokers); stages of a fixed folder find them in "
        "[flows] of pipeline.toml (docs/how-to/brokers-on-the-devices.md)"
    )


def _stages(plan: Plan, width: int, *, named: bool) -> Table:
    """Return a row for each stage, with bars up to `width`; unless `named`, the devices stand below each row."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "operators", *(("device",) if named else ())):
        table.add_column(name, no_wrap=True)
    for name in ("compute", "messages", "link", "bytes", "memory", "period"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bar" if width else "", no_wrap=True)
    for number, stage in enumerate(plan.stages):
        cells = (
            *(duration(seconds) for seconds in (stage.compute_s, stage.message_s, stage.link_s)),
            size(stage.received_bytes + stage.sent_bytes),
            size(stage.memory_bytes),
            duration(stage.period_s),
            bar(stage.period_s, plan.bottleneck_s, width),
        )
        home = (escape(_homes(stage)),) if named else ()
        table.add_row(str(number), escape(f"[{stage.start}, {stage.stop})"), *home, *cells)
    if not named:
        homes = [f"stage {number} on {_homes(stage)}" for number, stage in enumerate(plan.stages)]
        table.caption, table.caption_justify = Text("\n".join(homes)), "left"
    return table


def _homes(stage: PlannedStage) -> str:
    """Return the names of a stage's devices, or the number if there are many."""
    devices = stage.devices
    return ", ".join(devices) if len(devices) < 4 else f"{devices[0]} and {len(devices) - 1} more"


def goal_of(plan: Plan) -> str:
    """Return what the objective makes small."""
    return "bottleneck" if plan.objective is Objective.THROUGHPUT else "latency"


def _limit(plan: Plan) -> str:
    """Return which part of a plan takes longest for a window."""
    slowest = max(stage.period_s for stage in plan.stages)
    broker_s = 0.0 if plan.broker_s is msgspec.UNSET else plan.broker_s
    return "at the link of the broker's host" if broker_s > slowest * (1 + 1e-9) else "at the slowest stage"


def _summary(plan: Plan, alternatives: Sequence[Alternative]) -> list[str]:
    stages, devices = len(plan.stages), len(plan.devices)
    rate = "any number of"
    if plan.bottleneck_s:
        rate = f"{1 / plan.bottleneck_s:.0f}" if plan.bottleneck_s <= 0.1 else f"{1 / plan.bottleneck_s:.2g}"
    lines = [
        f"{stages} stage{'s' * (stages > 1)} on {devices} of {devices + len(plan.spare)} devices: a window every "
        f"{duration(plan.bottleneck_s)} {_limit(plan)}, at most {rate} windows/s; "
        f"{duration(plan.latency_s)} from the last sample to the answer"
    ]
    goal, smaller = goal_of(plan), _smaller(plan, alternatives)
    if smaller is not None:
        lines.append(smaller)
    elif plan.proven:
        lines.append(f"no plan of whole layers has a smaller {goal}: proven")
    elif plan.bound_s > 0:
        lines.append(
            f"a smaller {goal} was not found; one below {duration(plan.bound_s)} is ruled out, {plan.gap:.1%} lower"
        )
    elif plan.is_split:
        lines.append(f"a smaller {goal} was not found, which proves nothing: not all ways to share layers were tried")
    else:
        lines.append(f"a smaller {goal} was not found, which proves nothing: this model has too many ways to be cut")
    if plan.spare:
        lines.append(f"not used: {', '.join(plan.spare)}")
    return lines


def _smaller(plan: Plan, alternatives: Sequence[Alternative]) -> str | None:
    """Return why another plan that is better by the objective is not the one; None where none was found."""
    throughput = plan.objective is Objective.THROUGHPUT
    figures = [  # of each: that of the objective, and the other one
        (each, *((each.bottleneck_s, each.latency_s) if throughput else (each.latency_s, each.bottleneck_s)))
        for each in alternatives
    ]
    known = [(value, other, each) for each, value, other in figures if value is not None and other is not None]
    value, other, best = min(known, key=lambda one: one[0], default=(math.inf, 0.0, None))
    if best is None or value >= plan.value_s * (1 - 1e-9):
        return None
    goals = ("bottleneck", "latency") if throughput else ("latency", "bottleneck")
    text = (
        f"{best.name}: a {goals[0]} {1 - value / plan.value_s:.1%} smaller, with {plural(best.devices, 'device')} and "
        f"a {goals[1]} of {duration(other)}"
    )
    if plan.has_parity:
        return f"{text}: the difference is what the parity costs"
    if best.name == SHARED and plan.value_s <= SHARING_GAIN * value:
        return f"{text}: less than predictions are off by, so that layers stay whole"
    return f"{text}: this plan does nearly as much with {len(plan.devices)}" if plan.value_s <= NEAR * value else text


def _alternatives(plan: Plan, alternatives: Sequence[Alternative], width: int) -> Table:
    """Return the plans compared by the objective; the longest bar is the worst of them."""
    throughput = plan.objective is Objective.THROUGHPUT
    goal = plan.bottleneck_s if throughput else plan.latency_s
    rows = [(each, each.bottleneck_s if throughput else each.latency_s) for each in alternatives]
    longest = max([goal, *(value for _, value in rows if value is not None)])
    table = Table(box=None, pad_edge=False)
    for name, justify in (("why not", "left"), ("bottleneck", "right"), ("latency", "right"), ("ratio", "right")):
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")  # type: ignore[arg-type]
    table.add_column("bar" if width else "", overflow="fold")
    table.add_row(
        "this plan",
        duration(plan.bottleneck_s),
        duration(plan.latency_s),
        "",
        bar(goal, longest, width),
    )
    reasons: list[str] = []  # below the table, where that has no bars
    for each, value in rows:
        if value is None or each.bottleneck_s is None or each.latency_s is None:
            table.add_row(escape(each.name), "-", "-", "", escape(each.reason or "") if width else "")
            reasons += [] if width else [f"{each.name}: {each.reason or 'no reason is known'}"]
            continue
        times = f"{value / goal:.2f} x" if goal else ""
        table.add_row(
            escape(each.name),
            duration(each.bottleneck_s),
            duration(each.latency_s),
            times,
            bar(value, longest, width),
        )
    if reasons:
        table.caption, table.caption_justify = Text("\n".join(reasons)), "left"
    return table
