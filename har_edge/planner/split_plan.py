"""Plans whose stages may be groups of devices that share layers, and their figures stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from har_edge.planner.devices import BrokerLink, PlannerDevice
from har_edge.planner.lean_splits import best_lean_split
from har_edge.planner.plan import VERSION, Alternative, Objective, Plan, PlannedStage
from har_edge.planner.simulation import Simulator, SplitForecast
from har_edge.planner.split_costs import SOURCE, PackingCost, SplitCosts
from har_edge.planner.split_model import make_split_model, operator_seconds
from har_edge.planner.split_search import SplitSolution, best_split, fits, improve
from har_edge.planner.stage_groups import best_groups
from har_edge.tflite.model import Model
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan

# Rates at which a plan is looked at once more if links limit it, in bytes a second, with the text for each.
FASTER = ((37_500_000, "300 Mbit/s"), (125_000_000, "1 Gbit/s"))
_NEAR = 1.03  # the broker's link does not bind a plan that it makes slower by less
_WORTH = 1.1  # a faster link is worth a line from here


@dataclass(frozen=True, slots=True)
class SplitCandidate:
    """Blocks over all devices, and their forecast."""

    costs: SplitCosts
    blocks: tuple[Block, ...]
    border_first: bool
    forecast: SplitForecast

    def value(self, objective: Objective) -> float:
        """Return the figure that an objective makes small."""
        return self.forecast.latency_s if objective is Objective.LATENCY else self.forecast.period_s


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Consecutive blocks whose devices compute no other block: devices by index, and the blocks' bounds for these."""

    devices: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def split(self) -> bool:
        return len(self.devices) > 1


def make_split_costs(
    model: Model, bounds: Sequence[int], devices: Sequence[PlannerDevice], broker: BrokerLink
) -> SplitCosts | None:
    """Return the costs of splits of a model, None without an input or a second device to split it at.

    Args:
        bounds: Operators at which the segments of the profiles begin, and the number of operators.
    """
    split = make_split_model(model)
    if len(devices) < 2 or not model.main.inputs:
        return None
    known: dict[tuple[float, ...], tuple[float, ...]] = {}
    seconds = []
    for device in devices:
        work = device.kind.work_s
        known[work] = known.get(work) or operator_seconds(model, bounds, work)
        seconds.append(known[work])
    return SplitCosts(split, devices, seconds, broker)


def find_candidate(costs: SplitCosts, objective: Objective) -> SplitCandidate | None:
    """Return the best split that was found; None where none fits the memory of the devices."""
    if objective is Objective.THROUGHPUT:
        blocks = best_groups(costs)
        return None if blocks is None else make_candidate(costs, blocks, border_first=False)
    best, settled = None, False
    if any(device.kind.memory_bytes is not None for device in costs.devices):
        best, settled = _find_limited(costs)
    for border_first in (True, False):
        limit = float("inf") if best is None else best.latency_s
        # Borders apart seldom cost more than they hide; then the quick search finds it.
        quick = best is not None and (settled or not border_first)
        best = best_split(costs, border_first=border_first, best_s=limit, quick=quick) or best
    return None if best is None else make_candidate(costs, best.blocks, border_first=best.border_first)


def _find_limited(costs: SplitCosts) -> tuple[SplitSolution | None, bool]:
    """Return a split within limits of memory to begin with, and whether a longer search would find little better."""
    lean, best = best_lean_split(costs), None
    if lean is not None:
        best = improve(costs, SplitSolution(*lean, border_first=False, exact=False))
    if costs.broker.link_bytes_per_s is None:
        return best, False
    # Memory decides first: a plan that fits is found more easily where the broker's link costs nothing. A quick search
    # says whether that link binds. If so, there is little to hide, and borders that are not apart take less memory.
    free, border_first = costs.with_flows(broker=BrokerLink()), False
    limit = float("inf") if best is None else best.latency_s
    found = best_split(free, border_first=False, best_s=limit, quick=True)
    if found is not None:
        border_first = _priced(costs, found).latency_s < _NEAR * found.latency_s
        limit = found.latency_s
    found = best_split(free, border_first=border_first, best_s=limit) or found
    if found is None:
        return best, best is not None
    priced = improve(costs, _priced(costs, found))
    return (priced, True) if best is None or priced.latency_s < best.latency_s else (best, True)


def _priced(costs: SplitCosts, found: SplitSolution) -> SplitSolution:
    """Return a split with its latency at these costs."""
    latency_s = Simulator(costs, border_first=found.border_first).latency(found.blocks)
    return replace(found, latency_s=latency_s)


def with_packing(candidate: SplitCandidate, packing: PackingCost, objective: Objective) -> SplitCandidate:
    """Return the best of a candidate's blocks and, for throughput, of others if activations travel packed."""
    costs = candidate.costs
    packed = costs.with_flows(packing=packing)
    same = make_candidate(packed, candidate.blocks, border_first=candidate.border_first)
    if objective is Objective.LATENCY:
        return same
    other = find_candidate(packed, objective)
    return same if other is None or same.value(objective) <= other.value(objective) else other


def with_best_borders(candidate: SplitCandidate, objective: Objective) -> SplitCandidate:
    """Return the candidate, with border rows computed first or not, whichever is better."""
    other = make_candidate(candidate.costs, candidate.blocks, border_first=not candidate.border_first)
    fitting = fits(other.costs, other.blocks, border_first=other.border_first)
    return other if fitting and other.value(objective) < candidate.value(objective) * (1 - 1e-9) else candidate


def make_candidate(costs: SplitCosts, blocks: tuple[Block, ...], *, border_first: bool) -> SplitCandidate:
    """Return blocks with their forecast."""
    return SplitCandidate(costs, blocks, border_first, Simulator(costs, border_first=border_first).forecast(blocks))


def groups_of(blocks: Sequence[Block]) -> list[DeviceGroup]:
    """Return the groups of devices: a new one begins where no device before it computes any more."""
    used = [{k for k, (low, high) in enumerate(pairwise(block.bounds)) if low < high} for block in blocks]
    groups, first = [], 0
    for index in range(1, len(blocks) + 1):
        before, after = (set[int]().union(*each) for each in (used[first:index], used[index:]))
        if before & after:
            continue
        devices = tuple(sorted(before))
        own = tuple(_only(block, devices) for block in blocks[first:index])
        if len(devices) == 1:
            own = (Block(own[0].start, own[-1].stop, SplitMethod.WHOLE, (0, 1)),)
        groups.append(DeviceGroup(devices, own))
        first = index
    return groups


def _only(block: Block, devices: Sequence[int]) -> Block:
    """Return a block with the shares of some devices alone; the others have none."""
    bounds = [0]
    for k in devices:
        low, high = block.share(k)
        bounds.append(bounds[-1] + high - low)
    return replace(block, bounds=tuple(bounds))


def make_split_plan(model: Model, candidate: SplitCandidate, objective: Objective) -> Plan:
    """Return a candidate as a plan."""
    groups, forecast = groups_of(candidate.blocks), candidate.forecast
    used = {k for group in groups for k in group.devices}
    ready = _ready(candidate, groups)
    return Plan(
        version=VERSION,
        model=model.name,
        model_sha256=model.sha256,
        objective=objective,
        stages=tuple(
            _stage(candidate, group, after - before)
            for group, (before, after) in zip(groups, pairwise(ready), strict=True)
        ),
        spare=tuple(device.name for k, device in enumerate(candidate.costs.devices) if k not in used),
        bottleneck_s=forecast.period_s,
        latency_s=forecast.latency_s,
        bound_s=0.0,
        proven=False,
        broker_s=forecast.broker_s,
        broker_bytes=sum(forecast.broker_bytes),
        max_payload_bytes=forecast.largest_bytes,
        brokers=_brokers(candidate, groups) or msgspec.UNSET,
    )


def _brokers(candidate: SplitCandidate, groups: Sequence[DeviceGroup]) -> dict[str, str]:
    """Return the device whose own broker the flows of a slice go through, by the number of the slice."""
    slices = [device for group in groups for device in group.devices]
    devices, own = candidate.costs.devices, candidate.costs.own_brokers
    return {str(number): devices[device].name for number, device in enumerate(slices) if device in own}


def _ready(candidate: SplitCandidate, groups: Sequence[DeviceGroup]) -> list[float]:
    """Return when the devices of each group have what they take, and when the result is there."""
    simulator, blocks = Simulator(candidate.costs, border_first=candidate.border_first), candidate.blocks
    owners = {group.blocks[0].start: group for group in groups}
    timeline, found = simulator.start(blocks[0]), [0.0]
    for block, after in pairwise(blocks):
        timeline = simulator.advance(timeline, candidate.costs.transfer(block, after, candidate.border_first))
        if after.start in owners:
            found.append(max(timeline.processors[k] for k in owners[after.start].devices))
    return [*found, candidate.forecast.latency_s]


def _stage(candidate: SplitCandidate, group: DeviceGroup, latency_s: float) -> PlannedStage:
    """Describe a group; seconds and memory are those of its busiest or fullest device."""
    costs, forecast = candidate.costs, candidate.forecast
    kinds = [costs.devices[k].kind for k in group.devices]
    links = []
    for k, kind in zip(group.devices, kinds, strict=True):
        up, down = forecast.up_bytes[k], forecast.down_bytes[k]
        links.append((max(up, down) if kind.duplex else up + down) / kind.link_bytes_per_s)
    busy = [forecast.compute_s[k] + forecast.message_s[k] for k in group.devices]
    slowest = group.devices[max(range(len(busy)), key=busy.__getitem__)]
    received, sent = _messages(candidate, group)
    plan = PlannedStage(
        devices=tuple(costs.devices[k].name for k in group.devices),
        start=group.blocks[0].start,
        stop=group.blocks[-1].stop,
        received=received,
        received_bytes=sum(forecast.down_bytes[k] for k in group.devices),
        sent=sent,
        sent_bytes=sum(forecast.up_bytes[k] for k in group.devices),
        memory_bytes=max(forecast.memory_bytes[k] for k in group.devices),
        compute_s=forecast.compute_s[slowest],
        message_s=forecast.message_s[slowest],
        link_s=max(links),
        period_s=max(*busy, *links),
        latency_s=latency_s,
    )
    if not group.split:
        return plan
    split = SplitPlan(len(group.devices), group.blocks, candidate.border_first)
    return msgspec.structs.replace(plan, split=split)


def _messages(candidate: SplitCandidate, group: DeviceGroup) -> tuple[int, int]:
    """Return how many messages the devices of a group take and send for a window, the result included."""
    costs, received, sent = candidate.costs, 0, 0
    for block, after in zip((None, *candidate.blocks), (*candidate.blocks, None), strict=True):
        for piece in costs.transfer(block, after, candidate.border_first).pieces:
            sent += piece.sender != SOURCE and piece.sender in group.devices
            received += sum(taker in group.devices for taker in piece.takers)
    return received, sent + (group.blocks[-1].stop == costs.model.n)


def name_limits(candidate: SplitCandidate, objective: Objective, one_s: float) -> list[str]:
    """Return what a faster link would bring, where links limit the plan; `one_s` is the figure of one device."""
    found = []
    for rate, text in FASTER:
        for what, costs in _faster(candidate.costs, rate):
            blocks = candidate.blocks
            value = make_candidate(costs, blocks, border_first=candidate.border_first).value(objective)
            if candidate.value(objective) > _WORTH * value:
                found.append(
                    f"{what} the limit: at {text} this plan would be {one_s / value:.1f}x one device, instead of "
                    f"{one_s / candidate.value(objective):.1f}x"
                )
        if found:
            break
    return found


def _faster(costs: SplitCosts, rate: float) -> list[tuple[str, SplitCosts]]:
    """Return the costs with faster links: of the broker, of the devices, and of both where only both help."""
    found = []
    devices = [
        replace(device, kind=replace(device.kind, link_bytes_per_s=max(rate, device.kind.link_bytes_per_s)))
        for device in costs.devices
    ]
    slow = costs.broker.link_bytes_per_s
    broker = costs.broker if slow is None or slow >= rate else BrokerLink(rate, costs.broker.duplex)
    if broker is not costs.broker:
        found.append(("the link of the broker's host is", _with(costs, costs.devices, broker)))
    if devices != list(costs.devices):
        found.append(("the devices' links are", _with(costs, devices, costs.broker)))
    return found


def _with(costs: SplitCosts, devices: Sequence[PlannerDevice], broker: BrokerLink) -> SplitCosts:
    if devices is costs.devices:
        return costs.with_flows(broker=broker)
    return replace(costs, devices=devices, broker=broker)


def compare_split(candidate: SplitCandidate) -> list[Alternative]:
    """Return splits that a reader may have expected instead."""
    costs, found = candidate.costs, []
    if any(block.method is SplitMethod.ROWS for block in candidate.blocks):
        other = make_candidate(costs, candidate.blocks, border_first=not candidate.border_first)
        name = "the same blocks, borders first" if other.border_first else "the same blocks, borders not first"
        if other.forecast != candidate.forecast:
            found.append(_alternative(name, other))
    if costs.own_brokers:
        central = costs.with_flows(own_brokers=frozenset())
        same = make_candidate(central, candidate.blocks, border_first=candidate.border_first)
        found.append(_alternative("the same blocks, all through the central broker", same))
    return found


def _alternative(name: str, candidate: SplitCandidate) -> Alternative:
    groups = groups_of(candidate.blocks)
    devices = sum(len(group.devices) for group in groups)
    return Alternative(name, len(groups), devices, candidate.forecast.period_s, candidate.forecast.latency_s)
