"""Plans whose stages may be groups of nodes that share layers: which ones follows from the nodes that are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from har_edge.config.pipeline import generation_id
from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.planner_thread import Planner, Survey
from har_edge.coordinator.replan import PlanRequest, PlanResponse, cuts_of
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.planner.choice import PlanChoice, choose_plan
from har_edge.planner.flow_choice import planned_costs
from har_edge.planner.placed_split import PlacedForecast, forecast_placed
from har_edge.planner.plan import Alternative, Plan
from har_edge.planner.relocation import Forecast, StagePlacement, forecast
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_plan import make_split_costs
from har_edge.protocol.deployment import Generation, Placement
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.packed_cuts import PackingRequest, parse_request, planned_requests, with_packings
from har_edge.tflite.packing import TensorPacking
from har_edge.tflite.split.folder import write_contents
from har_edge.tflite.split.plan import SplitPlan
from har_edge.tflite.split.program import ordinary, split_model
from har_edge.units import duration

# Returns how the tensors of slices travel, by name, as requests ask for.
Packer = Callable[[SliceManifest, Sequence[PackingRequest]], Mapping[str, TensorPacking]]


@dataclass(frozen=True, slots=True)
class _SplitFiles:
    """A split that was cut: its groups, how its activations are packed (all in one way, or each tensor by name), its
    manifest and the content of its files.
    """

    plans: tuple[SplitPlan, ...]
    packing: str
    packings: Mapping[str, str]
    manifest: SliceManifest
    contents: Mapping[str, bytes] = field(repr=False)


@dataclass(slots=True)
class SharedPlanner:
    """Plans for one model; `whole` plans it in whole layers, where that is better or devices cannot share any.

    `packings` are the ways to pack activations that may be used where they gain, and `pack` calibrates them. With
    `local_brokers`, flows go through the brokers that nodes carry.
    """

    whole: Planner
    packings: Sequence[str] = ()
    pack: Packer | None = None
    local_brokers: bool = False
    _known: dict[int, _SplitFiles] = field(default_factory=dict)

    def plan(self, request: PlanRequest) -> PlanResponse:
        """Return the best plan for the nodes of a request, cut; where there is none, why."""
        try:
            return self._plan(request)
        except HarEdgeError as error:
            return PlanResponse(request.number, problem=str(error))

    def _plan(self, request: PlanRequest) -> PlanResponse:
        kept = {epoch: files for one in request.generations for epoch, files in self._files_of(one)}
        plain = replace(request, generations=tuple(one for one in request.generations if not _is_shared(one)))
        if not request.candidates:
            self._known = {generation_id(files.manifest): files for files in kept.values()}
            response = self.whole.plan(plain)
            return replace(response, contents={**response.contents, **_contents(kept.values())})
        survey, whole = self.whole.survey(request.candidates), self.whole
        carriers = self._carriers(survey)
        choice = choose_plan(
            whole.model,
            survey.planning,
            survey.reference,
            whole.spec.objective,
            self.packings,
            carriers=frozenset(survey.nodes[k].name for k in carriers),
        )
        if choice.plan.is_split:
            response = self._respond(request, survey, choice.plan)
        else:
            response = whole.plan(plain)
            if response.problem:
                return response
        costs = {epoch: self._stage_costs(survey, files) for epoch, files in kept.items()}
        current = next((one for one in request.generations if one.epoch == request.epoch), None)
        remarks = [] if current is not None and _same(response, current) else _explain(choice)
        return replace(
            response,
            remarks=(*survey.remarks, *remarks),
            current=None if current is None else self._forecast(survey, current, kept.get(current.epoch)),
            stage_costs={**costs, **response.stage_costs},
            contents={**response.contents, **_contents(kept.values())},
        )

    def _files_of(self, generation: Generation) -> Iterator[tuple[int, _SplitFiles]]:
        """Yield the epoch of a generation and its files, if this process has cut it."""
        known = self._known.get(generation_id(generation.manifest))
        if known is not None and known.manifest == generation.manifest:
            yield generation.epoch, known

    def _respond(self, request: PlanRequest, survey: Survey, plan: Plan) -> PlanResponse:
        """Return the answer for a plan whose devices share layers."""
        files = self._cut(plan)
        names = [name for stage in plan.stages for name in stage.devices]
        placed = self._placed(survey, files, names)
        if math.isinf(placed.figures.period_s):
            raise ConfigError(f"{self.whole.model.name} does not fit the memory of {', '.join(dict.fromkeys(names))}")
        plain = (one for one in request.generations if not _is_shared(one))
        return PlanResponse(
            number=request.number,
            manifest=files.manifest,
            placements=tuple(Placement(stage, name) for stage, name in enumerate(names)),
            forecast=placed.figures,
            stage_costs={0: _reference_costs(survey, placed, names)}
            | {one.epoch: self.whole.costs_of(survey.planning, cuts_of(one.manifest)) for one in plain},
            contents={**files.contents, **self.whole.contents_of(request.generations)},
            reference_speed=survey.reference_speed,
        )

    def _cut(self, plan: Plan) -> _SplitFiles:
        """Return the files of a plan, cut once."""
        plans = tuple(
            stage.split if isinstance(stage.split, SplitPlan) else ordinary(stage.start, stage.stop)
            for stage in plan.stages
        )
        packing = plan.packing if isinstance(plan.packing, str) else ""
        packings = plan.packings if isinstance(plan.packings, dict) else {}
        for known in self._known.values():
            if (known.plans, known.packing, known.packings) == (plans, packing, packings):
                return known
        layout = split_model(self.whole.model, plans)
        requests = [parse_request(packing)] if packing else planned_requests(packings)
        if requests:
            assert self.pack is not None  # else no way to pack was allowed
            layout = replace(layout, manifest=with_packings(layout.manifest, self.pack(layout.manifest, requests)))
        files = _SplitFiles(plans, packing, packings, *write_contents(layout))
        self._known[generation_id(files.manifest)] = files
        return files

    def _placed(self, survey: Survey, files: _SplitFiles, names: Sequence[str]) -> PlacedForecast:
        """Return what a split takes with each shard on the node of this name."""
        costs = self._split_costs(survey, files)
        index = {node.name: k for k, node in enumerate(survey.nodes)}
        cores = [node.cores for node in survey.nodes]
        return forecast_placed(costs, files.plans, [index[name] for name in names], cores)

    def _carriers(self, survey: Survey) -> frozenset[int]:
        """Return the nodes, by number, that carry a broker which flows go through."""
        return frozenset(k for k, node in enumerate(survey.nodes) if self.local_brokers and node.own_broker)

    def _split_costs(self, survey: Survey, files: _SplitFiles) -> SplitCosts:
        planning, model = survey.planning, self.whole.model
        # A single node may run all shards when the others are lost, so it is given twice.
        devices = planning.devices * (1 + (len(planning.devices) == 1))
        costs = make_split_costs(model, survey.reference.bounds, devices, planning.broker)
        assert costs is not None  # it was split, so it has a place to split it at
        costs = costs.with_flows(own_brokers=self._carriers(survey))
        return planned_costs(costs, survey.reference, model, files.packing, files.packings)

    def _stage_costs(self, survey: Survey, files: _SplitFiles) -> tuple[StageCost, ...]:
        """Return what each shard takes on the reference device, if each has a node like the first one for itself."""
        names = [survey.nodes[0].name] * len(files.manifest.slices)
        return _reference_costs(survey, self._placed(survey, files, names), names)

    def _forecast(self, survey: Survey, generation: Generation, files: _SplitFiles | None) -> Forecast | None:
        """Return what a deployed generation takes on these nodes; None where one of its nodes is not among them.

        Another process may have planned it; then what that predicted counts.
        """
        nodes = {node.name: node for node in survey.nodes}
        if any(one.node not in nodes for one in generation.placements):
            return None
        if not _is_shared(generation):
            places = [StagePlacement(one.stage, one.node) for one in generation.placements]
            cores = {node.name: node.cores for node in survey.nodes}
            return forecast(survey.planning, cuts_of(generation.manifest), places, cores)
        if files is not None:
            by_stage = {one.stage: one.node for one in generation.placements}
            return self._placed(survey, files, [by_stage[k] for k in range(len(by_stage))]).figures
        if len(generation.predicted_s) != len(generation.manifest.slices):
            return None
        busy = dict.fromkeys(nodes, 0.0)
        for one in generation.placements:
            busy[one.node] += generation.predicted_s[one.stage]
        return Forecast(max(busy.values()), generation.predicted_latency_s, generation.predicted_s)


def _is_shared(generation: Generation) -> bool:
    return any(entry.steps for entry in generation.manifest.slices)


def _same(response: PlanResponse, current: Generation) -> bool:
    """Return whether a response changes nothing."""
    return response.manifest == current.manifest and set(response.placements) == set(current.placements)


def _contents(kept: Iterable[_SplitFiles]) -> dict[str, bytes]:
    return {sha256: content for files in kept for sha256, content in files.contents.items()}


def _reference_costs(survey: Survey, placed: PlacedForecast, names: Sequence[str]) -> tuple[StageCost, ...]:
    """Return seconds and bytes of each shard on the reference device, whose speed is 1."""
    speeds = {node.name: node.effective_speed for node in survey.nodes}
    return tuple(
        StageCost(seconds * speeds[name], size)
        for seconds, size, name in zip(placed.seconds, placed.memory_bytes, names, strict=True)
    )


def _explain(choice: PlanChoice) -> list[str]:
    """Return lines on what else there was, and what limits the plan."""
    plan = choice.plan
    others = [
        one for one in choice.alternatives if (one.bottleneck_s, one.latency_s) != (plan.bottleneck_s, plan.latency_s)
    ]
    return [*map(_rejection, others), *choice.remarks]


def _rejection(other: Alternative) -> str:
    if other.bottleneck_s is None or other.latency_s is None:
        return f"rejected: {other.name}: {other.reason}"
    nodes = "1 node" if other.devices == 1 else f"{other.devices} nodes"
    return (
        f"rejected: {other.name}, on {nodes}: a window every {duration(other.bottleneck_s)}, each takes "
        f"{duration(other.latency_s)}"
    )
