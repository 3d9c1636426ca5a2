"""A plan whose split a person chose: which node runs which shard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from har_edge.config.pipeline import generation_id
from har_edge.config.task import Task
from har_edge.config.wiring import find_wiring
from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.replan import PlanRequest, PlanResponse
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.planner.devices import DeviceClass, DevicesFile
from har_edge.planner.message_loads import MessageLoad, message_loads
from har_edge.planner.profile import Profile
from har_edge.planner.relocation import (
    MESSAGE_S,
    Candidate,
    Forecast,
    StageLoad,
    apply_overrides,
    devices_of,
    quantize,
    relocate,
)
from har_edge.protocol.deployment import Placement
from har_edge.runtime.node.capabilities import measure_speed
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.model import Model
from har_edge.tflite.split.folder import write_contents
from har_edge.tflite.split.plan_file import PlanFile, homes_of
from har_edge.tflite.split.program import SplitLayout, ordinary, split_model


def placeable_homes(plan: PlanFile, manifest: SliceManifest, task: Task) -> tuple[tuple[str, ...], ...]:
    """Return the devices that a plan names for each stage of its manifest; empty where it names none.

    Raises ConfigError where several should take turns at a stage that takes more than one message for a window.
    """
    homes = homes_of(plan)
    for stage, names in enumerate(homes):
        if len(names) > 1 and not find_wiring(manifest, task, stage).may_take_turns:
            raise ConfigError(
                f"the plan lets {' and '.join(names)} take turns at stage {stage}, which takes more than one message "
                "for a window: the broker would give its parts to different ones; name one device there, or plan anew"
            )
    return homes if any(homes) else ()


@dataclass(slots=True)
class SplitPlanner:
    """Places the shards of one split on nodes; `devices` may say what nodes do not know of themselves, and is at
    `path`.

    A shard's time is its share of the model's multiply-adds in the time of the whole model, which is measured here, and
    the time of its messages. A group is as slow as its slowest shard, with the time of that one's link.

    `homes` are the nodes that a plan names for each stage (`placeable_homes`). A stage runs there where one of them is
    among the nodes; several take turns. Stages whose nodes are all absent go where relocation puts them, with a remark.
    """

    model: Model
    layout: SplitLayout
    profile: Callable[[Model], Profile]
    devices: DevicesFile | None = None
    path: Path = field(default_factory=Path)
    speed: Callable[[], float] = measure_speed
    homes: tuple[tuple[str, ...], ...] = ()
    manifest: SliceManifest = field(init=False)
    loads: tuple[MessageLoad, ...] = field(init=False)
    _contents: dict[str, bytes] = field(init=False, repr=False)
    _reference: Profile | None = None
    _speed: float = 0.0

    def __post_init__(self) -> None:
        self.manifest, self._contents = write_contents(self.layout)
        self.loads = message_loads(self.manifest)

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
        devices, remarks = devices_of(nodes, self._reference, self.devices, self.path)
        kinds = {device.name: device.kind for device in devices}
        costs = self._costs(self._reference)
        placements, missing = self._place(costs, nodes)
        found = self._forecast(costs, placements, nodes, kinds)
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
            remarks=(*remarks, *missing),
            manifest=self.manifest,
            placements=placements,
            forecast=found,
            current=self._forecast(costs, current.placements, nodes, kinds) if current is not None and there else None,
            stage_costs=dict.fromkeys([0, *(one.epoch for one in ours)], costs),
            contents=self._contents,
            reference_speed=self._speed,
        )

    def _place(self, costs: Sequence[StageCost], nodes: Sequence[Candidate]) -> tuple[tuple[Placement, ...], list[str]]:
        """Return who runs what, and what a person should read of it: the nodes of the plan that are not there."""
        known, loads, remarks = {node.name for node in nodes}, list[StageLoad](), list[str]()
        homes, spared = self.homes or ((),) * len(costs), set(self.manifest.spared)
        for stage, (names, cost) in enumerate(zip(homes, costs, strict=True)):
            there: list[str | None] = [name for name in names if name in known]
            turns = max(1, len(there))
            # Each stage on a node of its own, or at least two shards that one parity stands for.
            apart = 0 if len(costs) <= len(nodes) or stage in spared else None
            loads += [
                StageLoad((0, stage, replica), cost.seconds / turns, cost.memory_bytes, node, apart)
                for replica, node in enumerate(there or [None])
            ]
        found = relocate(loads, nodes)
        placements = tuple(Placement(load.key[1], load.node or found[load.key], replica=load.key[2]) for load in loads)
        for stage, names in enumerate(homes):
            absent = [name for name in names if name not in known]
            used = ", ".join(one.node for one in placements if one.stage == stage)
            if absent:
                verb = "goes to" if len(absent) == len(names) else "runs only on"
                remarks.append(
                    f"stage {stage} {verb} {used}: the plan names {' and '.join(absent)}, but no node of that name can "
                    "take it now; start it with `har-edge node --name`"
                )
        return placements, remarks

    def _costs(self, reference: Profile) -> tuple[StageCost, ...]:
        """Return what each shard takes on the reference device, messages included."""
        (whole,) = split_model(self.model, [ordinary(0, len(self.model.main.operators))]).programs
        seconds = sum(segment.seconds for segment in reference.segments)
        each, message = seconds / max(1, whole.macs), reference.message
        message_s, byte_s = (MESSAGE_S, 0.0) if message is None else (message.seconds, message.seconds_per_byte)
        sizes = {sha256: len(content) for sha256, content in self._contents.items()}
        return tuple(
            StageCost(
                program.macs * each + load.seconds(message_s, byte_s),
                sum(sizes[sha256] for sha256 in set(entry.files.values())),
            )
            for program, entry, load in zip(self.layout.programs, self.manifest.slices, self.loads, strict=True)
        )

    def _forecast(
        self,
        costs: Sequence[StageCost],
        placements: Sequence[Placement],
        nodes: Sequence[Candidate],
        kinds: Mapping[str, DeviceClass],
    ) -> Forecast:
        """Return the figures of a placement; infinite where a node lacks memory."""
        by_name: Mapping[str, Candidate] = {node.name: node for node in nodes}
        stages_s = [0.0] * len(costs)
        busy, link = dict.fromkeys(by_name, 0.0), dict.fromkeys(by_name, 0.0)
        memory = dict.fromkeys(by_name, 0)
        groups: dict[int, float] = {}
        turns = Counter(one.stage for one in placements)
        for one in placements:
            seconds, kind, load = costs[one.stage].seconds, kinds[one.node], self.loads[one.stage]
            seconds /= by_name[one.node].effective_speed
            stages_s[one.stage] = max(stages_s[one.stage], seconds)
            busy[one.node] += seconds / turns[one.stage]
            most = max(load.received_bytes, load.sent_bytes)
            link[one.node] += (most if kind.duplex else load.bytes) / kind.link_bytes_per_s / turns[one.stage]
            memory[one.node] += costs[one.stage].memory_bytes
            start = self.manifest.slices[one.stage].start
            way = load.bytes / kind.link_bytes_per_s + 2 * kind.latency_s
            groups[start] = max(groups.get(start, 0.0), seconds + way)
        short = any(node.memory_bytes is not None and memory[node.name] > node.memory_bytes for node in nodes)
        period = math.inf if short else max(*busy.values(), *link.values())
        return Forecast(period, sum(groups.values()), tuple(stages_s))
