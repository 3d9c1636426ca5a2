"""A plan whose split a person chose: which node runs which shard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from har_edge.config.pipeline import generation_id
from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.replan import PlanRequest, PlanResponse
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.planner.devices import DevicesFile
from har_edge.planner.profile import Profile
from har_edge.planner.relocation import Candidate, Forecast, StageLoad, apply_overrides, devices_of, quantize, relocate
from har_edge.protocol.deployment import Placement
from har_edge.runtime.node.capabilities import measure_speed
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.model import Model
from har_edge.tflite.split.folder import write_contents
from har_edge.tflite.split.program import SplitLayout, ordinary, split_model


@dataclass(slots=True)
class SplitPlanner:
    """Places the shards of one split on nodes; `devices` may say what nodes do not know of themselves, and is at
    `path`.

    A shard's time is its share of the model's multiply-adds in the time of the whole model, which is measured here. A
    group is as slow as its slowest shard; what travels between shards is not counted.
    """

    model: Model
    layout: SplitLayout
    profile: Callable[[Model], Profile]
    devices: DevicesFile | None = None
    path: Path = field(default_factory=Path)
    speed: Callable[[], float] = measure_speed
    manifest: SliceManifest = field(init=False)
    _contents: dict[str, bytes] = field(init=False, repr=False)
    _reference: Profile | None = None
    _speed: float = 0.0

    def __post_init__(self) -> None:
        self.manifest, self._contents = write_contents(self.layout)

    def plan(self, request: PlanRequest) -> PlanResponse:
        """Return the split on the nodes of a request; where it cannot run, why."""
        try:
            return self._plan(request)
        except HarEdgeError as error:
            return PlanResponse(request.number, problem=str(error))

    def _plan(self, request: PlanRequest) -> PlanResponse:
        if not request.candidates:
            return PlanResponse(request.number, contents=self._contents)
        if self._reference is None:
            self._reference, self._speed = self.profile(self.model), self.speed()
        relative = [replace(one, speed=one.speed / self._speed) for one in request.candidates]
        nodes = [quantize(one) for one in apply_overrides(relative, self.devices)]
        _, remarks = devices_of(nodes, self._reference, self.devices, self.path)
        costs = self._costs(self._reference)
        loads = [StageLoad((0, number, 0), cost.seconds, cost.memory_bytes) for number, cost in enumerate(costs)]
        homes = relocate(loads, nodes)
        placements = tuple(Placement(number, homes[0, number, 0]) for number in range(len(costs)))
        found = self._forecast(costs, placements, nodes)
        if math.isinf(found.period_s):
            raise ConfigError(
                f"the memory of {', '.join(sorted({one.node for one in placements}))} does not hold the "
                f"{len(costs)} shards of {self.model.name}; start more nodes, or ask for another split"
            )
        ours = [one for one in request.generations if generation_id(one.manifest) == generation_id(self.manifest)]
        current = next((one for one in ours if one.epoch == request.epoch), None)
        known = {node.name for node in nodes}
        there = current is not None and all(one.node in known for one in current.placements)
        return PlanResponse(
            number=request.number,
            remarks=tuple(remarks),
            manifest=self.manifest,
            placements=placements,
            forecast=found,
            current=self._forecast(costs, current.placements, nodes) if current is not None and there else None,
            stage_costs=dict.fromkeys([0, *(one.epoch for one in ours)], costs),
            contents=self._contents,
            reference_speed=self._speed,
        )

    def _costs(self, reference: Profile) -> tuple[StageCost, ...]:
        """Return what each shard takes on the reference device."""
        (whole,) = split_model(self.model, [ordinary(0, len(self.model.main.operators))]).programs
        seconds = sum(segment.seconds for segment in reference.segments)
        each = seconds / max(1, whole.macs)
        sizes = {sha256: len(content) for sha256, content in self._contents.items()}
        return tuple(
            StageCost(program.macs * each, sum(sizes[sha256] for sha256 in set(entry.files.values())))
            for program, entry in zip(self.layout.programs, self.manifest.slices, strict=True)
        )

    def _forecast(
        self, costs: Sequence[StageCost], placements: Sequence[Placement], nodes: Sequence[Candidate]
    ) -> Forecast:
        """Return the figures of a placement; infinite where a node lacks memory."""
        by_name: Mapping[str, Candidate] = {node.name: node for node in nodes}
        stages_s = [0.0] * len(costs)
        busy, memory = dict.fromkeys(by_name, 0.0), dict.fromkeys(by_name, 0)
        groups: dict[int, float] = {}
        for one in placements:
            seconds = costs[one.stage].seconds / by_name[one.node].effective_speed
            stages_s[one.stage] = seconds
            busy[one.node] += seconds
            memory[one.node] += costs[one.stage].memory_bytes
            start = self.manifest.slices[one.stage].start
            groups[start] = max(groups.get(start, 0.0), seconds)
        short = any(node.memory_bytes is not None and memory[node.name] > node.memory_bytes for node in nodes)
        return Forecast(math.inf if short else max(busy.values()), sum(groups.values()), tuple(stages_s))
