"""Choose between stages of whole layers and devices that share layers, and say why the others are worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.errors import ConfigError
from har_edge.planner.flow_choice import ChosenFlows, FlowOptions, choose_flows, find_options
from har_edge.planner.plan import Alternative, Objective, OtherPlan, Plan, PlanningProblem, make_plan, other_plans
from har_edge.planner.profile import Profile
from har_edge.planner.split_plan import (
    SplitCandidate,
    compare_split,
    find_candidate,
    make_split_costs,
    make_split_plan,
    name_limits,
    with_best_borders,
)
from har_edge.tflite.model import Model

_SAME = 1 - 1e-9
NEAR = 1.01  # a plan no slower than by this factor is as good, if it has fewer devices
SHARING_GAIN = 1.05  # shared layers that promise less than this: predictions are off by about as much (docs/results.md)
SHARED = "shared layers"
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
    own_brokers: bool = False,
    carriers: frozenset[str] = frozenset(),
) -> PlanChoice:
    """Return the best plan of all.

    Among plans with nearly the same bottleneck, it is one of fewer devices whose latency is no longer. Devices share
    layers where that promises SHARING_GAIN over whole layers on as many devices, or where those do not fit.

    Args:
        profile: The measurements that speeds refer to.
        packings: Ways to pack activations that may be used; the profile has their costs. With `auto`, each tensor
            travels in the one that is best for it, or without loss.
        split: Whether devices may share layers.
        own_brokers: Whether flows may go through brokers on the devices that make them, where that gains.
        carriers: Devices that carry a broker already, which what they send goes through.

    Raises ConfigError when the model is too large for all devices together, shared or not.
    """
    options = find_options(profile, packings, own_brokers=own_brokers)
    flows, shared = None, None
    if split:
        flows, shared = _find_split(model, planning, profile, objective, options, carriers)
    candidate = None if flows is None else flows.candidate
    try:
        plan, others = _best_whole(planning, make_plan(planning, objective))
    except ConfigError:
        if shared is None or flows is None:
            raise
        return _shared(flows, shared, None, ())
    if shared is not None and flows is not None and prefer([plan, shared]) is shared and not _as_good(plan, shared):
        return _shared(flows, shared, plan, others)
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


def _as_good(whole: Plan, shared: Plan) -> bool:
    """Return whether whole layers, on no more devices, come so close to shared ones that a prediction cannot tell."""
    if not shared.is_split or len(whole.devices) > len(shared.devices):
        return False
    return whole.value_s <= SHARING_GAIN * shared.value_s


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
    options: FlowOptions,
    carriers: frozenset[str],
) -> tuple[ChosenFlows | None, Plan | None]:
    """Return the best way to share layers, with its flows, and its plan; no plan where it is one block."""
    costs = make_split_costs(model, profile.bounds, planning.devices, planning.broker)
    if costs is None:
        return None, None
    carried = frozenset(k for k, device in enumerate(planning.devices) if device.name in carriers)
    candidate = find_candidate(costs.with_flows(own_brokers=carried), objective)
    if candidate is None:
        return None, None
    flows = ChosenFlows(candidate)
    if len(candidate.blocks) > 1 or options.own_brokers:
        flows = choose_flows(candidate, options, profile, objective)
    if len(flows.candidate.blocks) == 1:
        return flows, None
    flows = replace(flows, candidate=with_best_borders(flows.candidate, objective))
    return flows, flows.name(make_split_plan(model, flows.candidate, objective), model)


def _shared(flows: ChosenFlows, plan: Plan, whole: Plan | None, others_of_whole: Sequence[OtherPlan]) -> PlanChoice:
    """Return a plan that shares layers, beside the best one of `whole` layers and the others beside that."""
    candidate = flows.candidate
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
    remarks += flows.remarks
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
            Alternative(SHARED, len(shared.stages), len(shared.devices), shared.bottleneck_s, shared.latency_s)
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
