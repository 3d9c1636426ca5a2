"""What `har-edge plan` prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from har_edge.cli.figures import bar, duration, size
from har_edge.planning.plan import Alternative, Objective, Plan

_REPLICAS = (
    "devices that take turns at a stage need a shared subscription, which `har-edge stage` by itself does not make; "
    "--replicas 1 plans without"
)
_WIDTH = 110  # where the output is no terminal


class PlanReport(msgspec.Struct, frozen=True):
    """A plan, others to compare it with, and what its figures rest on."""

    plan: Plan
    alternatives: list[Alternative]
    notes: list[str]


def print_plan(report: PlanReport, model: str, *, as_json: bool) -> None:
    """Print all of it."""
    if as_json:
        print(msgspec.json.encode(report).decode())
        return
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_WIDTH)
    plan = report.plan
    console.print(_stages(plan))
    console.print()
    for line in _summary(plan):
        console.print(Text(line), soft_wrap=True)
    console.print()
    console.print(_alternatives(plan, report.alternatives))
    lines = [f"note: {note}" for note in report.notes]
    if any(stage.replicas > 1 for stage in plan.stages):
        lines.append(f"note: {_REPLICAS}")
    if plan.cuts:
        lines.append(f"cut it with: har-edge slice {model} --at {','.join(map(str, plan.cuts))} --out DIR")
    if lines:
        console.print()
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _stages(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "operators", "device"):
        table.add_column(name, no_wrap=True)
    for name in ("compute", "messages", "link", "bytes", "memory", "period"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for number, stage in enumerate(plan.stages):
        device = ", ".join(stage.devices) if stage.replicas < 4 else f"{stage.devices[0]} and {stage.replicas - 1} more"
        table.add_row(
            str(number),
            escape(f"[{stage.start}, {stage.stop})"),
            escape(device),
            *(duration(seconds) for seconds in (stage.compute_s, stage.message_s, stage.link_s)),
            size(stage.received_bytes + stage.sent_bytes),
            size(stage.memory_bytes),
            duration(stage.period_s),
            bar(stage.period_s, plan.bottleneck_s, 12),
        )
    return table


def _summary(plan: Plan) -> list[str]:
    stages, devices = len(plan.stages), len(plan.devices)
    rate = f"{1 / plan.bottleneck_s:.0f}" if plan.bottleneck_s else "any number of"
    lines = [
        f"{stages} stage{'s' * (stages > 1)} on {devices} of {devices + len(plan.spare)} devices: a window every "
        f"{duration(plan.bottleneck_s)} at the slowest stage, at most {rate} windows/s; "
        f"{duration(plan.latency_s)} from the last sample to the answer"
    ]
    goal = "bottleneck" if plan.objective is Objective.THROUGHPUT else "latency"
    if plan.proven:
        lines.append(f"no plan has a smaller {goal}: proven")
    elif plan.bound_s > 0:
        lines.append(
            f"a smaller {goal} was not found; one below {duration(plan.bound_s)} is ruled out, {plan.gap:.1%} lower"
        )
    else:
        lines.append(f"a smaller {goal} was not found, which proves nothing: this model has too many ways to be cut")
    if plan.spare:
        lines.append(f"not used: {', '.join(plan.spare)}")
    return lines


def _alternatives(plan: Plan, alternatives: Sequence[Alternative]) -> Table:
    """Compare by what the plan is for; the longest bar is the worst of them."""
    throughput = plan.objective is Objective.THROUGHPUT
    goal = plan.bottleneck_s if throughput else plan.latency_s
    rows = [(each, each.bottleneck_s if throughput else each.latency_s) for each in alternatives]
    longest = max([goal, *(value for _, value in rows if value is not None)])
    table = Table(box=None, pad_edge=False)
    for name, justify in (("why not", "left"), ("bottleneck", "right"), ("latency", "right"), ("", "right")):
        table.add_column(name, justify=justify, no_wrap=justify == "right")  # type: ignore[arg-type]
    table.add_column("")
    table.add_row("this plan", duration(plan.bottleneck_s), duration(plan.latency_s), "", bar(goal, longest))
    for each, value in rows:
        if value is None or each.bottleneck_s is None or each.latency_s is None:
            table.add_row(escape(each.name), "-", "-", "", escape(each.reason or ""))
            continue
        times = f"{value / goal:.2f} x" if goal else ""
        table.add_row(
            escape(each.name), duration(each.bottleneck_s), duration(each.latency_s), times, bar(value, longest)
        )
    return table
