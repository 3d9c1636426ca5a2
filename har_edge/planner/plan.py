"""Find the best plan for unequal devices and links, and compare it with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import msgspec
import numpy as np

from har_edge.errors import ConfigError, CutError
from har_edge.planner.cost_model import SliceCosts, make_search_problem, slice_costs
from har_edge.planner.devices import UNLIMITED, BrokerLink, DeviceClass, PlannerDevice, SensorMessages, group_by_class
from har_edge.planner.partition import balance
from har_edge.planner.problem import NEVER, Floats, SearchProblem, StageAssignment
from har_edge.planner.search import Solution, minimize_bottleneck, minimize_latency
from har_edge.planner.slice_graph import SliceGraph, make_slice_graph
from har_edge.tflite.model import Model
from har_edge.tflite.split.plan import PARITIES, SplitPlan
from har_edge.units import size

VERSION = 1
REPLICAS = 4
_QUICK = 16  # states kept for plans that are only compared with


class Objective(Enum):
    """The figure that a plan optimises: windows per second (the smallest bottleneck), or the latency of one window."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


class PlannedStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Operators [start, stop) on one device, or on several that take turns; seconds are those of the slowest device.

    For one window, a device spends `compute_s` on the model and `message_s` on messages, and its link is busy for
    `link_s`. The stage takes one window every `period_s`. One window takes `latency_s` from the broker and back to it.
    With `split`, the devices share each window: shard k runs on device k.
    """

    devices: tuple[str, ...]
    start: int
    stop: int
    received: int
    received_bytes: int
    sent: int
    sent_bytes: int
    memory_bytes: int
    compute_s: float
    message_s: float
    link_s: float
    period_s: float
    latency_s: float
    split: SplitPlan | msgspec.UnsetType = msgspec.UNSET

    @property
    def replicas(self) -> int:
        """The devices that take turns; those of a split work together."""
        return len(self.devices) if self.split is msgspec.UNSET else 1


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stages in order, and the devices that no stage needs.

    `bound_s` is a lower bound of the objective over all plans of whole layers, and `proven` says that this plan meets
    it. The plan says how long the link of the broker's host is busy for a window, and the bytes on it, if that link has
    a rate or layers are shared. A plan that shares layers also says the size of the largest message, and how its
    activations are packed (by default they are not): all in one way, `packing`, or each tensor by name, `packings`.
    `brokers` names, by the number of a slice, the device whose own broker its flows go through; others go through the
    central one.
    """

    version: int
    model: str
    model_sha256: str
    objective: Objective
    stages: tuple[PlannedStage, ...]
    spare: tuple[str, ...]
    bottleneck_s: float
    latency_s: float
    bound_s: float
    proven: bool
    broker_s: float | msgspec.UnsetType = msgspec.UNSET
    broker_bytes: int | msgspec.UnsetType = msgspec.UNSET
    max_payload_bytes: int | msgspec.UnsetType = msgspec.UNSET
    packing: str | msgspec.UnsetType = msgspec.UNSET
    packings: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    brokers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET

    @property
    def turns(self) -> tuple[int, ...]:
        """How many devices take turns at each stage."""
        return tuple(stage.replicas for stage in self.stages)

    @property
    def is_split(self) -> bool:
        """Whether devices share layers."""
        return any(stage.split is not msgspec.UNSET for stage in self.stages)

    @property
    def is_packed(self) -> bool:
        """Whether activations travel in fewer bytes."""
        return self.packing is not msgspec.UNSET or self.packings is not msgspec.UNSET

    @property
    def has_parity(self) -> bool:
        """Whether layers have a parity, so that a device may be away."""
        splits = [stage.split for stage in self.stages if stage.split is not msgspec.UNSET]
        return any(block.method in PARITIES for split in splits for block in split.blocks)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The operators to cut the model at."""
        return tuple(stage.start for stage in self.stages[1:])

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices in use, in the order of the stages."""
        return tuple(name for stage in self.stages for name in stage.devices)

    @property
    def value_s(self) -> float:
        """The figure that the objective makes small."""
        return self.bottleneck_s if self.objective is Objective.THROUGHPUT else self.latency_s

    @property
    def gap(self) -> float:
        """How much better another plan could be at most, as a fraction of the bound."""
        return 0.0 if self.proven else self.value_s / self.bound_s - 1 if self.bound_s > 0 else math.inf


class Alternative(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another plan, for comparison; without figures, `reason` says why there is none."""

    name: str
    stages: int
    devices: int
    bottleneck_s: float | None
    latency_s: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PlanningProblem:
    """A model in all its slices, the devices by class, and the cost of every slice on every class.

    A plan has `least` to `most` devices; with `cuts`, it has exactly those slices.
    """

    model: str
    model_sha256: str
    slice_graph: SliceGraph
    devices: tuple[PlannerDevice, ...]
    kinds: tuple[DeviceClass, ...]
    names: tuple[tuple[str, ...], ...]
    costs: SliceCosts
    replicas: int
    least: int = 1
    most: int = NEVER
    cuts: tuple[int, ...] | None = None
    broker: BrokerLink = UNLIMITED

    @property
    def problem(self) -> SearchProblem:
        counts = [len(names) for names in self.names]
        problem = replace(
            make_search_problem(self.slice_graph, self.costs, counts, self.replicas), least=self.least, most=self.most
        )
        return problem if self.cuts is None else replace(problem, period_s=self._only(problem, self.cuts))

    def _only(self, problem: SearchProblem, cuts: tuple[int, ...]) -> Floats:
        """Return the periods with every slice ruled out that does not lie between two of the `cuts`."""
        edges = self.slice_graph.walk(
            [self.slice_graph.bounds.index(cut) for cut in cuts if cut in self.slice_graph.bounds]
        )
        if edges is None or not set(cuts) <= set(self.slice_graph.bounds):
            raise ConfigError(
                f"cuts {', '.join(map(str, cuts))} came; expected operators among "
                f"{', '.join(map(str, self.slice_graph.bounds[1:-1]))}, where the model can be cut together"
            )
        period = np.full_like(problem.period_s, math.inf)
        period[:, edges] = problem.period_s[:, edges]
        return period


def make_planning_problem(
    model: Model,
    bounds: Sequence[int],
    devices: Sequence[PlannerDevice],
    *,
    replicas: int = REPLICAS,
    sensors: SensorMessages = SensorMessages.APART,
    broker: BrokerLink = UNLIMITED,
) -> PlanningProblem:
    """Combine a model, devices, and the link of the broker's host.

    Args:
        bounds: Operators at which the segments of the profiles begin, and the number of operators.
        replicas: Most replicas of one stage.

    Raises ConfigError for bounds that are not this model's.
    """
    if bounds[-1] != len(model.main.operators):
        raise ConfigError(
            f"the profile ends at operator {bounds[-1]}, but {model.name} has {len(model.main.operators)}; profile it "
            "anew"
        )
    slice_graph, found = make_slice_graph(model, bounds, sensors), group_by_class(devices)
    kinds, names = tuple(found), tuple(tuple(group) for group in found.values())
    return PlanningProblem(
        model.name,
        model.sha256,
        slice_graph,
        tuple(devices),
        kinds,
        names,
        slice_costs(slice_graph, kinds, broker),
        min(replicas, len(devices)),
        broker=broker,
    )


def make_plan(planning: PlanningProblem, objective: Objective) -> Plan:
    """Return the best plan.

    Raises ConfigError when the model is too large for all devices together, SearchLimit when the search cannot decide
    it.
    """
    solution = _solve(planning.problem, objective)
    if solution is None:
        raise ConfigError(_too_large(planning))
    return _assemble(planning, objective, solution.steps, solution)


def _assemble(
    planning: PlanningProblem, objective: Objective, steps: Sequence[StageAssignment], bound: Solution | None = None
) -> Plan:
    """Return steps as a plan, with the bound that was found for it, if any."""
    left = [list(names) for names in planning.names]
    stages = tuple(_stage(planning, step, left) for step in steps)
    edges, costs = [step.edge for step in steps], planning.costs
    broker_s, priced = float(sum(costs.broker_s[edges])), planning.broker.link_bytes_per_s is not None
    exact = planning.slice_graph.whole and bound is not None
    return Plan(
        version=VERSION,
        model=planning.model,
        model_sha256=planning.model_sha256,
        objective=objective,
        stages=stages,
        spare=tuple(device.name for device in planning.devices if any(device.name in names for names in left)),
        bottleneck_s=max(broker_s, *(stage.period_s for stage in stages)),
        latency_s=sum(stage.latency_s for stage in stages),
        bound_s=bound.bound_s if bound is not None and exact else 0.0,
        proven=bound is not None and bound.proven and exact,
        broker_s=broker_s if priced else msgspec.UNSET,
        broker_bytes=int(costs.broker_bytes[edges].sum()) if priced else msgspec.UNSET,
    )


@dataclass(frozen=True, slots=True)
class OtherPlan:
    """A plan of whole layers that a reader may have expected instead; without a plan, `reason` says why."""

    name: str
    plan: Plan | None
    reason: str = ""
    stages: int = 0

    @property
    def alternative(self) -> Alternative:
        """The figures for a reader."""
        plan = self.plan
        if plan is None:
            return Alternative(self.name, self.stages, self.stages, None, None, self.reason)
        return Alternative(self.name, len(plan.stages), len(plan.devices), plan.bottleneck_s, plan.latency_s)


def other_plans(planning: PlanningProblem, plan: Plan) -> list[OtherPlan]:
    """Return the plans of whole layers that a reader may have expected instead."""
    used = len(plan.devices)
    found = []
    if used > 1:
        plural = "s" if used > 2 else ""
        found.append(_bounded(f"at most {used - 1} device{plural}", replace(planning, most=used - 1), plan.objective))
    if used < len(planning.devices):
        found.append(_bounded(f"at least {used + 1} devices", replace(planning, least=used + 1), plan.objective))
    if any(stage.replicas > 1 for stage in plan.stages):
        found.append(_bounded("no replicas", replace(planning, replicas=1), plan.objective))
    return [*found, _equal_times(planning, plan.objective), _single(planning, plan.objective)]


def compare(planning: PlanningProblem, plan: Plan) -> list[Alternative]:
    """Return the plans that a reader may have expected instead, with their predicted figures."""
    return [other.alternative for other in other_plans(planning, plan)]


def _solve(problem: SearchProblem, objective: Objective, width: int | None = None) -> Solution | None:
    search = minimize_bottleneck if objective is Objective.THROUGHPUT else minimize_latency
    return search(problem) if width is None else search(problem, width)


def _stage(planning: PlanningProblem, step: StageAssignment, left: list[list[str]]) -> PlannedStage:
    """Describe one step, and take its devices from those that are left."""
    slice_graph, costs, edge = planning.slice_graph, planning.costs, step.edge
    used = [k for k, count in enumerate(step.devices) if count]
    names = tuple(left[k].pop(0) for k in used for _ in range(step.devices[k]))
    slowest = max(used, key=lambda k: float(costs.period_s[k, edge]))
    return PlannedStage(
        devices=names,
        start=slice_graph.bounds[slice_graph.starts[edge]],
        stop=slice_graph.bounds[slice_graph.stops[edge]],
        received=int(slice_graph.received[edge]),
        received_bytes=int(slice_graph.received_bytes[edge]),
        sent=int(slice_graph.sent[edge]),
        sent_bytes=int(slice_graph.sent_bytes[edge]),
        memory_bytes=int(costs.memory_bytes[used, edge].max()),
        compute_s=float(costs.compute_s[slowest, edge]),
        message_s=float(costs.message_s[slowest, edge]),
        link_s=float(costs.link_s[slowest, edge]),
        period_s=planning.problem.period_of(step),
        latency_s=planning.problem.latency_of(step),
    )


def _bounded(name: str, planning: PlanningProblem, objective: Objective) -> OtherPlan:
    """Return the best plan of a narrower problem."""
    solution = _solve(planning.problem, objective, _QUICK)
    if solution is None:
        return OtherPlan(name, None, "no such plan fits the model and the memory")
    return OtherPlan(name, _assemble(planning, objective, solution.steps))


def _equal_times(planning: PlanningProblem, objective: Objective) -> OtherPlan:
    """Return the plan by time alone: slices of equal time, on the devices in the order of the file."""
    slice_graph, stages = planning.slice_graph, min(len(planning.devices), len(planning.slice_graph.bounds) - 1)
    name = f"{stages} slice{'s' * (stages > 1)} of equal time, devices in order"
    crossing = [0] * (len(slice_graph.bounds) - 2)
    chain = slice_graph.walk(range(1, len(slice_graph.bounds) - 1))
    if chain is not None:
        crossing = [int(slice_graph.received_bytes[edge]) for edge in chain[1:]]
    try:
        places = balance(planning.devices[0].kind.work_s, stages, crossing)
    except CutError as error:
        return OtherPlan(name, None, str(error), stages)
    edges = slice_graph.walk(places)
    if edges is None:
        return OtherPlan(name, None, "too many ways to cut this model; these were left out", stages)
    kinds = [planning.kinds.index(device.kind) for device in planning.devices[:stages]]
    for device, kind, edge in zip(planning.devices, kinds, edges, strict=False):
        if not math.isfinite(planning.costs.period_s[kind, edge]):
            return OtherPlan(name, None, f"its slice does not fit the memory of {device.name}", stages)
    steps = [_alone(planning, kind, edge) for kind, edge in zip(kinds, edges, strict=True)]
    return OtherPlan(name, _assemble(planning, objective, steps))


def _alone(planning: PlanningProblem, kind: int, edge: int) -> StageAssignment:
    """Return the step of one device of a class."""
    return StageAssignment(edge, tuple(int(k == kind) for k in range(len(planning.kinds))))


def _single(planning: PlanningProblem, objective: Objective) -> OtherPlan:
    """Return the whole model on the one device that does best."""
    (edge,) = planning.slice_graph.walk(()) or (None,)
    assert edge is not None  # the whole model is always a slice
    costs = planning.costs.period_s if objective is Objective.THROUGHPUT else planning.costs.latency_s
    best = int(costs[:, edge].argmin())
    if not math.isfinite(costs[best, edge]):
        return OtherPlan("one device", None, "the whole model fits the memory of none", 1)
    plan = _assemble(planning, objective, [_alone(planning, best, edge)])
    return OtherPlan(f"one device: {planning.names[best][0]}", plan)


def _too_large(planning: PlanningProblem) -> str:
    """Return the text that says which memory is missing when no plan fits."""
    slice_graph, costs = planning.slice_graph, planning.costs
    whole = slice_graph.walk(())
    assert whole is not None
    room = sum(
        (kind.memory_bytes or 0) * len(names) for kind, names in zip(planning.kinds, planning.names, strict=True)
    )
    text = (
        f"{planning.model} is too large for all devices together: as one slice it takes "
        f"{size(int(costs.memory_bytes[:, whole[0]].min()))}, and the {len(planning.devices)} devices offer "
        f"{size(room)} in all, each with a runtime of its own to hold"
    )
    smallest = [
        edge for edge in range(len(slice_graph.tails)) if slice_graph.stops[edge] == slice_graph.starts[edge] + 1
    ]
    for edge in smallest:
        if not math.isfinite(costs.period_s[:, edge].min()) and not _covered(slice_graph, costs, edge):
            start, stop = slice_graph.bounds[slice_graph.starts[edge]], slice_graph.bounds[slice_graph.stops[edge]]
            takes = size(int(costs.memory_bytes[:, edge].min()))
            text += f"; operators [{start}, {stop}), which cannot be cut, take {takes}, more than any device has"
            break
    return text + "; offer more devices, raise memory_bytes where there is more, or use a smaller model"


def _covered(slice_graph: SliceGraph, costs: SliceCosts, edge: int) -> bool:
    """Return whether some slice around these operators fits some device."""
    around = (slice_graph.starts <= slice_graph.starts[edge]) & (slice_graph.stops >= slice_graph.stops[edge])
    return bool(costs.period_s[:, around].min(initial=math.inf) < math.inf)
