"""Choose between stages of whole layers and devices that share layers, and say why the others are worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from har_edge.errors import ConfigError
from har_edge.planner.devices import BrokerLink
from har_edge.planner.plan import Alternative, Objective, Plan, PlannedStage, PlanningProblem, compare, make_plan
from har_edge.planner.profile import PackingFigures, Profile
from har_edge.planner.split_costs import PackingCost
from har_edge.planner.split_plan import (
    SplitCandidate,
    compare_split,
    find_candidate,
    make_split_costs,
    make_split_plan,
    name_limits,
    with_packing,
)
from har_edge.tflite.model import Model

_SAME = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """The best plan, the others, and remarks; `candidate` is what the plan was made of if its devices share layers."""

    plan: Plan
    alternatives: list[Alternative]
    remarks: list[str]
    candidate: SplitCandidate | None = None


def choose_plan(
    model: Model,
    planning: PlanningProblem,
    profile: Profile,
    objective: Objective,
    broker: BrokerLink,
    packings: Sequence[str] = (),
) -> PlanChoice:
    """Return the best plan of all.

    Args:
        profile: The measurements that speeds refer to.
        packings: Ways to pack activations that may be used; the profile has their costs.

    Raises ConfigError when the model is too large for all devices together, shared or not.
    """
    ways = [_figures(profile, name) for name in packings]
    whole, refusal = _whole_layers(planning, objective, broker)
    costs = make_split_costs(model, profile.bounds, planning.devices, broker)
    candidate = None if costs is None else find_candidate(costs, objective)
    if candidate is not None and len(candidate.blocks) > 1:
        candidate, packing = _packed(candidate, ways, profile, objective)
        shared = make_split_plan(model, candidate, objective)
        if packing:
            shared = msgspec.structs.replace(shared, packing=packing)
        if whole is None or _value(shared) < _value(whole) * _SAME:
            return _shared(planning, candidate, shared, whole)
    if whole is None:
        assert refusal is not None
        raise refusal
    return _unshared(planning, whole, candidate)


def _figures(profile: Profile, name: str) -> PackingFigures:
    found = profile.packing(name)
    if found is None:
        known = () if profile.packings is msgspec.UNSET else [one.packing for one in profile.packings]
        raise ConfigError(
            f"--pack {name} came, but the profile has no figures for it (it has {', '.join(known) or 'none'}); "
            "measure them with 'har-edge profile --again'"
        )
    return found


def _packed(
    candidate: SplitCandidate, ways: Sequence[PackingFigures], profile: Profile, objective: Objective
) -> tuple[SplitCandidate, str]:
    """Return the candidate with the way to pack that is best for it, and its name; an empty one for none."""
    best, name = candidate, ""
    work = sum(max(0.0, segment.seconds - profile.overhead_s) for segment in profile.segments)
    scale = min(map(sum, candidate.costs.seconds)) / work if work else 1.0
    for way in ways:
        packed = with_packing(candidate, PackingCost(way.ratio, way.seconds_per_byte / 2 * scale), objective)
        if packed.value(objective) < best.value(objective):
            best, name = packed, way.packing
    return best, name


def _whole_layers(
    planning: PlanningProblem, objective: Objective, broker: BrokerLink
) -> tuple[Plan | None, ConfigError | None]:
    """Return the best plan that shares no layer, no faster than the broker's link; else why there is none."""
    try:
        plan = make_plan(planning, objective)
    except ConfigError as error:
        return None, error
    seconds = broker_seconds(plan.stages, broker)
    if seconds > plan.bottleneck_s:
        proven = plan.proven and objective is Objective.LATENCY
        plan = msgspec.structs.replace(plan, bottleneck_s=seconds, broker_s=seconds, proven=proven)
    return plan, None


def broker_seconds(stages: Sequence[PlannedStage], broker: BrokerLink) -> float:
    """Return how long the link of the broker's host is busy for a window."""
    if broker.link_bytes_per_s is None:
        return 0.0
    # Windows enter as sensors send them, and the result leaves: as many bytes each way as stages take and send.
    taken, sent = sum(stage.received_bytes for stage in stages), sum(stage.sent_bytes for stage in stages)
    entering = sent + stages[0].received_bytes
    return (max(taken, entering) if broker.duplex else taken + entering) / broker.link_bytes_per_s


def _value(plan: Plan) -> float:
    return plan.bottleneck_s if plan.objective is Objective.THROUGHPUT else plan.latency_s


def _shared(
    planning: PlanningProblem,
    candidate: SplitCandidate,
    plan: Plan,
    whole: Plan | None,
) -> PlanChoice:
    if whole is None:
        reason = "too large for the memory of the devices"
        others = [Alternative("whole layers only", 0, 0, None, None, reason)]
        one = None
    else:
        others = compare(planning, whole)
        one = next((each for each in others if each.name.startswith("one device")), None)
        if len(whole.stages) > 1:
            devices = len(whole.devices)
            others = [
                Alternative("whole layers only", len(whole.stages), devices, whole.bottleneck_s, whole.latency_s),
                *(each for each in others if each is one or each.name.endswith("devices in order")),
            ]
        elif one is not None:
            others = [one]
    remarks = [f"the largest message has {candidate.forecast.largest_bytes} bytes"] if plan.is_split else []
    value = None if one is None else one.bottleneck_s if plan.objective is Objective.THROUGHPUT else one.latency_s
    if value is not None:
        remarks += name_limits(candidate, plan.objective, value)
    return PlanChoice(plan, [*compare_split(candidate), *others], remarks, candidate)


def _unshared(planning: PlanningProblem, plan: Plan, candidate: SplitCandidate | None) -> PlanChoice:
    others, remarks = compare(planning, plan), []
    if len(plan.devices) == 1 and len(planning.devices) > 1:
        what = "a window takes" if plan.objective is Objective.LATENCY else "windows come"
        faster = "less" if plan.objective is Objective.LATENCY else "no slower"
        remarks.append(
            f"one device is faster: {what} {faster} on {plan.devices[0]} alone than on several, where messages and "
            "links cost more than sharing saves"
        )
    if candidate is None and len(planning.devices) > 1:
        remarks.append("layers cannot be shared here: no place where one tensor crosses, or too little memory")
    return PlanChoice(plan, others, remarks)
