"""Choose between stages of whole layers and devices that share layers, and say why the others are worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from har_edge.errors import ConfigError
from har_edge.planner.plan import Alternative, Objective, OtherPlan, Plan, PlanningProblem, make_plan, other_plans
from har_edge.planner.profile import PackingFigures, Profile
from har_edge.planner.split_costs import PackingCost, SplitCosts
from har_edge.planner.split_plan import (
    SplitCandidate,
    compare_split,
    find_candidate,
    make_split_costs,
    make_split_plan,
    name_limits,
    with_best_borders,
    with_packing,
)
from har_edge.tflite.model import Model

_SAME = 1 - 1e-9
NEAR = 1.01  # a plan no slower than by this factor is as good, if it has fewer devices
_ROUNDS = 3


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
    packings: Sequence[str] = (),
    *,
    split: bool = True,
) -> PlanChoice:
    """Return the best plan of all.

    Among plans with nearly the same bottleneck, it is one of fewer devices whose latency is no longer.

    Args:
        profile: The measurements that speeds refer to.
        packings: Ways to pack activations that may be used; the profile has their costs.
        split: Whether devices may share layers.

    Raises ConfigError when the model is too large for all devices together, shared or not.
    """
    ways = [_figures(profile, name) for name in packings]
    candidate, shared = None, None
    if split:
        candidate, shared = _find_split(model, planning, profile, objective, ways)
    try:
        plan, others = _best_whole(planning, make_plan(planning, objective))
    except ConfigError:
        if shared is None or candidate is None:
            raise
        return _shared(candidate, shared, None, ())
    if shared is not None and candidate is not None and prefer([plan, shared]) is shared:
        return _shared(candidate, shared, plan, others)
    obstacle = _obstacle(candidate, shared) if split and len(planning.devices) > 1 else ""
    return _unshared(planning, plan, others, shared, obstacle)


def prefer(plans: Sequence[Plan]) -> Plan:
    """Return the plan with the smallest value, or for throughput one nearly as good that is otherwise much better.

    Such a plan has fewer devices and no longer latency, or as many and half the latency. The first one of equal plans
    counts.
    """
    best = min(plans, key=lambda plan: plan.value_s)
    best = next(plan for plan in plans if plan.value_s * _SAME <= best.value_s)
    if best.objective is Objective.LATENCY:
        return best
    near = [
        plan
        for plan in plans
        if plan.bottleneck_s <= NEAR * best.bottleneck_s
        and len(plan.devices) <= len(best.devices)
        and plan.latency_s <= best.latency_s / (1 if len(plan.devices) < len(best.devices) else 2)
    ]
    return min(near, key=lambda plan: (len(plan.devices), plan.latency_s), default=best)


def _best_whole(planning: PlanningProblem, whole: Plan) -> tuple[Plan, list[OtherPlan]]:
    """Return the preferred plan of whole layers, and the others beside it; a narrow search may find a better one."""
    plan, known, left = whole, [whole], _ROUNDS
    while True:
        others = other_plans(planning, plan)
        known += [other.plan for other in others if other.plan is not None]
        better = prefer(known)
        if not left or (better.value_s == plan.value_s and len(better.devices) == len(plan.devices)):
            break
        plan, left = better, left - 1
    if plan is whole:
        return whole, others
    best = min(known, key=lambda each: each.value_s)
    shown = min((other.plan.value_s for other in others if other.plan is not None), default=math.inf)
    if best.value_s < min(shown, plan.value_s) * _SAME:
        others = [OtherPlan("the smallest bottleneck", best), *others]
    bound = min(whole.bound_s, plan.value_s)
    return msgspec.structs.replace(plan, bound_s=bound, proven=bound >= plan.value_s * _SAME), others


def _find_split(
    model: Model,
    planning: PlanningProblem,
    profile: Profile,
    objective: Objective,
    ways: Sequence[PackingFigures],
) -> tuple[SplitCandidate | None, Plan | None]:
    """Return the best way to share layers, packed where that gains, and its plan; no plan where it is one block."""
    costs = make_split_costs(model, profile.bounds, planning.devices, planning.broker)
    candidate = None if costs is None else find_candidate(costs, objective)
    if candidate is None or len(candidate.blocks) == 1:
        return candidate, None
    candidate, packing = _packed(candidate, ways, profile, objective)
    candidate = with_best_borders(candidate, objective)
    plan = make_split_plan(model, candidate, objective)
    return candidate, msgspec.structs.replace(plan, packing=packing) if packing else plan


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
    for way in ways:
        packed = with_packing(candidate, _cost(candidate.costs, profile, way), objective)
        if packed.value(objective) < best.value(objective):
            best, name = packed, way.packing
    return best, name


def packing_cost(costs: SplitCosts, profile: Profile, name: str) -> PackingCost | None:
    """Return what a way to pack activations costs on these devices, None where the profile has no figures for it."""
    way = profile.packing(name)
    return None if way is None else _cost(costs, profile, way)


def _cost(costs: SplitCosts, profile: Profile, way: PackingFigures) -> PackingCost:
    """Return a measured way to pack, with the seconds of one end on the fastest device."""
    work = sum(max(0.0, segment.seconds - profile.overhead_s) for segment in profile.segments)
    scale = min(map(sum, costs.seconds)) / work if work else 1.0
    return PackingCost(way.ratio, way.seconds_per_byte / 2 * scale)


def _shared(
    candidate: SplitCandidate, plan: Plan, whole: Plan | None, others_of_whole: Sequence[OtherPlan]
) -> PlanChoice:
    """Return a plan that shares layers, beside the best one of `whole` layers and the others beside that."""
    one = next((each for each in others_of_whole if each.name.startswith("one device")), None)
    if whole is None:
        reason = "too large for the memory of the devices"
        others = [Alternative("whole layers only", 0, 0, None, None, reason)]
    elif len(whole.stages) > 1:
        kept = [each for each in others_of_whole if each is one or each.name.endswith("devices in order")]
        others = [_whole_only(whole), *(each.alternative for each in kept)]
    elif len(whole.devices) > 1:
        others = [_whole_only(whole), *([] if one is None else [one.alternative])]
    else:
        others = [] if one is None else [one.alternative]
    remarks = [f"the largest message has {candidate.forecast.largest_bytes} bytes"] if plan.is_split else []
    if one is not None and one.plan is not None:
        remarks += name_limits(candidate, plan.objective, one.plan.value_s)
    return PlanChoice(plan, [*compare_split(candidate), *others], remarks, candidate)


def _whole_only(plan: Plan) -> Alternative:
    return Alternative("whole layers only", len(plan.stages), len(plan.devices), plan.bottleneck_s, plan.latency_s)


def _unshared(
    planning: PlanningProblem, plan: Plan, others: Sequence[OtherPlan], shared: Plan | None, obstacle: str
) -> PlanChoice:
    """Return a plan of whole layers; `shared` is the best one that shares some, `obstacle` why there is none."""
    found, remarks = [other.alternative for other in others], []
    if shared is not None and shared.is_split:
        found.append(
            Alternative("shared layers", len(shared.stages), len(shared.devices), shared.bottleneck_s, shared.latency_s)
        )
    values = [each.bottleneck_s if plan.objective is Objective.THROUGHPUT else each.latency_s for each in found]
    better = min((value for value in values if value is not None), default=math.inf) < plan.value_s * _SAME
    if len(plan.devices) == 1 and len(planning.devices) > 1 and not better:
        what = "a window takes" if plan.objective is Objective.LATENCY else "windows come"
        faster = "less" if plan.objective is Objective.LATENCY else "no slower"
        remarks.append(
            f"one device is faster: {what} {faster} on {plan.devices[0]} alone than on several, where messages and "
            "links cost more than sharing saves"
        )
    return PlanChoice(plan, found, [*remarks, obstacle] if obstacle else remarks)


def _obstacle(candidate: SplitCandidate | None, shared: Plan | None) -> str:
    """Return why no layer can be shared, or why none is in the best way that was found; empty where some are."""
    if candidate is None:
        return "layers cannot be shared here: no way was found that fits the memory of the devices and one message"
    if len(candidate.costs.model.places) == 1:
        return (
            "layers cannot be shared here: the planner shares them up to places where one tensor crosses; there is none"
        )
    if shared is None or not shared.is_split:
        return "no way to share layers was found that is faster than whole ones"
    return ""
