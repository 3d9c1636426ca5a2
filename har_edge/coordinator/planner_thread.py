"""Slow work beside the coordinator, which must never be blind: profiling, planning, cutting, deleting sessions."""

from __future__ import annotations

import hashlib
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.replan import PlacementSpec, PlanRequest, PlanResponse, cuts_of
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.planner.cost_model import slice_costs
from har_edge.planner.devices import DevicesFile
from har_edge.planner.plan import PlanningProblem, make_plan, make_planning_problem
from har_edge.planner.profile import MessageCost, Profile, load_profile, profile_path, store_profile
from har_edge.planner.relocation import (
    Candidate,
    StageLoad,
    StagePlacement,
    apply_overrides,
    devices_of,
    forecast,
    quantize,
    relocate,
)
from har_edge.protocol.deployment import Generation, Placement
from har_edge.runtime.node.capabilities import measure_speed
from har_edge.runtime.profiling import Watch, make_profile, measure_memory, time_model
from har_edge.runtime.slicing import even_stages
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.manifest import SliceManifest
from har_edge.tflite.model import Model
from har_edge.tflite.slices import slice_model, write_slice

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _CutModel:
    manifest: SliceManifest
    contents: dict[str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The nodes of a request with their figures, relative to the reference device of that profile and speed, and the
    planning problem that they make.
    """

    nodes: tuple[Candidate, ...]
    planning: PlanningProblem
    remarks: tuple[str, ...]
    reference: Profile
    reference_speed: float


@dataclass(slots=True)
class Planner:
    """Plans for one model; `devices` may say what nodes do not know of themselves, and is at `path`.

    `wire` is the version of messages that nodes may send, by default the lowest one that can carry what crosses.
    """

    model: Model
    spec: PlacementSpec
    profile: Callable[[Model], Profile]
    devices: DevicesFile | None = None
    path: Path = field(default_factory=Path)
    speed: Callable[[], float] = measure_speed
    wire: int | None = None
    _reference: Profile | None = None
    _speed: float = 0.0
    _cut_models: dict[tuple[int, ...], _CutModel] = field(default_factory=dict)

    def plan(self, request: PlanRequest) -> PlanResponse:
        """Return the best plan for the nodes of a request, cut; where there is none, why."""
        try:
            return self._plan(request)
        except HarEdgeError as error:
            return PlanResponse(request.number, problem=str(error))

    def survey(self, candidates: Sequence[Candidate]) -> Survey:
        """Return the planning problem of these nodes. Raises ConfigError as `devices_of` does."""
        if self._reference is None:
            self._reference, self._speed = self.profile(self.model), self.speed()
        relative = [replace(one, speed=one.speed / self._speed) for one in candidates]
        nodes = tuple(quantize(one) for one in apply_overrides(relative, self.devices))
        devices, remarks = devices_of(nodes, self._reference, self.devices, self.path)
        file = self.devices or DevicesFile([])
        planning = make_planning_problem(
            self.model,
            self._reference.bounds,
            devices,
            replicas=self.spec.replicas,
            sensors=file.sensors,
            broker=file.broker,
        )
        return Survey(nodes, planning, tuple(remarks), self._reference, self._speed)

    def _plan(self, request: PlanRequest) -> PlanResponse:
        kept = self._cut_again(request.generations)
        if not request.candidates:
            self._cut_models = kept
            return PlanResponse(request.number, contents=_contents(kept))
        survey = self.survey(request.candidates)
        nodes, planning = survey.nodes, survey.planning
        deployed = [one for one in request.generations if cuts_of(one.manifest) in kept and self._is_ours(one)]
        current = next((one for one in deployed if one.epoch == request.epoch), None)
        cuts, placements = self._choose(planning, nodes, cuts_of(current.manifest) if current else None)
        cores = {node.name: node.cores for node in nodes}
        found = forecast(planning, cuts, _places(placements), cores)
        if found is not None and math.isinf(found.period_s):
            raise ConfigError(
                f"the memory of {', '.join(sorted({one.node for one in placements}))} does not hold {self.model.name} "
                f"in {len(cuts) + 1} slices; start more nodes, or ask for other cuts"
            )
        cut_model = self._cut(cuts)
        self._cut_models = kept = {cuts: cut_model, **kept}
        return PlanResponse(
            number=request.number,
            remarks=survey.remarks,
            manifest=cut_model.manifest,
            placements=placements,
            forecast=found,
            current=forecast(planning, cuts_of(current.manifest), _places(current.placements), cores)
            if current
            else None,
            stage_costs={one.epoch: self.costs_of(planning, cuts_of(one.manifest)) for one in deployed}
            | {0: self.costs_of(planning, cuts)},
            contents=_contents(kept),
            reference_speed=self._speed,
        )

    def _is_ours(self, generation: Generation) -> bool:
        return generation.manifest.model_sha256 == self.model.sha256

    def _cut_again(self, generations: Iterable[Generation]) -> dict[tuple[int, ...], _CutModel]:
        """Return the slices of generations of this model; whoever wrote a plan may have named cuts that cannot be."""
        found = {}
        for generation in filter(self._is_ours, generations):
            cuts = cuts_of(generation.manifest)
            try:
                cut_model = self._cut(cuts)
            except HarEdgeError as error:
                _log.warning("epoch %d is left out of account: %s", generation.epoch, error)
                continue
            if cuts_of(cut_model.manifest) == cuts:
                found[cuts] = cut_model
        return found

    def _choose(
        self, planning: PlanningProblem, nodes: Sequence[Candidate], deployed: tuple[int, ...] | None
    ) -> tuple[tuple[int, ...], tuple[Placement, ...]]:
        """Return where to cut and who runs what; ConfigError where it cannot be as asked for."""
        spec, count = self.spec, self.spec.stages
        cuts = spec.cuts
        if cuts is None and count is not None:
            segments = len(planning.slice_graph.bounds) - 1
            if count > segments:
                raise ConfigError(f"{count} stages were asked for, but the model can be cut into {segments} at most")
            if count <= len(nodes):
                cuts = make_plan(replace(planning, least=count, most=count, replicas=1), spec.objective).cuts
            elif deployed is not None and len(deployed) == count - 1:
                cuts = deployed
            else:
                profile = self._reference
                assert profile is not None
                cuts = even_stages(self.model, profile.segments, profile.overhead_s, count).cuts
        if cuts is None or len(cuts) < len(nodes):
            plan = make_plan(planning if cuts is None else replace(planning, cuts=cuts), spec.objective)
            return plan.cuts, tuple(
                Placement(number, name, replica)
                for number, stage in enumerate(plan.stages)
                for replica, name in enumerate(stage.devices)
            )
        stage_costs = self.costs_of(planning, cuts)
        loads = [StageLoad((0, number, 0), work.seconds, work.memory_bytes) for number, work in enumerate(stage_costs)]
        homes = relocate(loads, nodes)
        return cuts, tuple(Placement(number, homes[0, number, 0]) for number in range(len(stage_costs)))

    def costs_of(self, planning: PlanningProblem, cuts: Sequence[int]) -> tuple[StageCost, ...]:
        """Return what each slice takes on the reference device."""
        assert self._reference is not None
        places = [planning.slice_graph.bounds.index(cut) for cut in cuts if cut in planning.slice_graph.bounds]
        edges = planning.slice_graph.walk(places) if len(places) == len(cuts) else None
        if edges is None:
            return (StageCost(1.0, 0),) * (len(cuts) + 1)
        kind = devices_of([Candidate("reference", 1.0)], self._reference, None, self.path)[0][0].kind
        costs = slice_costs(planning.slice_graph, [kind])
        return tuple(
            StageCost(
                float(costs.compute_s[0, edge] + costs.message_s[0, edge]),
                int(costs.memory_bytes[0, edge]) - kind.base_bytes,
            )
            for edge in edges
        )

    def contents_of(self, generations: Iterable[Generation]) -> dict[str, bytes]:
        """Return the slices of generations of whole layers, by hash."""
        whole = (one for one in generations if not any(entry.steps for entry in one.manifest.slices))
        return _contents(self._cut_again(whole))

    def _cut(self, cuts: tuple[int, ...]) -> _CutModel:
        """Return the slices between cuts; the same ones as `har-edge slice` makes."""
        known = self._cut_models.get(cuts)
        if known is not None:
            return known
        slices = slice_model(self.model, cuts)
        draft = make_manifest(self.model, slices, wire=self.wire)
        contents, entries = {}, []
        for piece, entry in zip(slices, draft.slices, strict=True):
            content = bytes(write_slice(self.model, piece))
            sha256 = hashlib.sha256(content).hexdigest()
            contents[sha256] = content
            entries.append(msgspec.structs.replace(entry, sha256=sha256))
        manifest = msgspec.structs.replace(draft, slices=tuple(entries))
        return _CutModel(manifest, contents)


def _contents(kept: Mapping[tuple[int, ...], _CutModel]) -> dict[str, bytes]:
    return {sha256: content for one in kept.values() for sha256, content in one.contents.items()}


def _places(placements: Sequence[Placement]) -> list[StagePlacement]:
    return [StagePlacement(placement.stage, placement.node) for placement in placements]


def reference_profile(
    model: Model,
    device: str,
    messages: Callable[[], MessageCost | None],
    watch: Watch = lambda segments, total: segments,
    delegate: str | None = None,
) -> Profile:
    """Return what a model costs on this device: as measured before (`har-edge profile`), else measured now and kept.

    `messages` measures what a message costs, and is asked where that is not known yet; `watch` sees the segments pass
    as they are timed, by `delegate`.
    """
    path = profile_path(device, model.sha256, 1, delegate)
    profile = _known_profile(path, delegate)
    if profile is not None and profile.message is not None:
        return profile
    profile = msgspec.structs.replace(profile or _measure(model, device, watch, delegate), message=messages())
    try:
        store_profile(profile, path)
    except ConfigError as error:
        _log.warning("%s; the next start measures again", error)
    return profile


def _known_profile(path: Path, delegate: str | None) -> Profile | None:
    if path.is_file():
        try:
            return load_profile(path, delegate)
        except ConfigError as error:
            _log.warning("%s; measuring anew", error)
    return None


def _measure(model: Model, device: str, watch: Watch, delegate: str | None) -> Profile:
    """Time the model and weigh it."""
    timing = time_model(model, watch=watch, delegate=delegate)
    for remark in timing.remarks:
        _log.warning("%s", remark)
    profile = make_profile(model, device, timing, delegate=delegate)
    return msgspec.structs.replace(profile, memory=measure_memory(model, timing.bounds, delegate))


class PlannerThread:
    """One thread that does what is asked of it, one thing after the other; answers are polled."""

    def __init__(self, plan: Callable[[PlanRequest], PlanResponse], delete_session: Callable[[str, str], None]) -> None:
        self._plan, self._delete_session = plan, delete_session
        self._asked: queue.SimpleQueue[PlanRequest | tuple[str, str] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[PlanResponse] = queue.SimpleQueue()
        # A daemon: a process that ends need not wait for a plan that nobody will read.
        self._thread = threading.Thread(target=self._work, name="planner_thread", daemon=True)
        self._thread.start()

    def request(self, request: PlanRequest) -> None:
        """Ask for a plan."""
        self._asked.put(request)

    def delete_session(self, client_id: str, url: str = "") -> None:
        """Ask for a session to be deleted, at the broker with this address, by default at the central one."""
        self._asked.put((client_id, url))

    def poll(self) -> list[PlanResponse]:
        """Return the plans that have been made since."""
        found = []
        while not self._made.empty():
            found.append(self._made.get())
        return found

    def close(self) -> None:
        """Let the thread end after what was asked of it."""
        self._asked.put(None)
        self._thread.join(timeout=2.0)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            if isinstance(asked, tuple):
                self._delete(*asked)
                continue
            try:
                draft = self._plan(asked)
            except Exception as error:  # a fault in planning must not leave the coordinator waiting for ever
                _log.exception("planning failed")
                draft = PlanResponse(asked.number, problem=f"planning failed: {error!r}")
            self._made.put(draft)

    def _delete(self, client_id: str, url: str) -> None:
        try:
            self._delete_session(client_id, url)
        except Exception as error:  # nor may this end the thread: nobody would plan any more
            where = f" at {url}" if url else ""
            _log.warning("the session %s%s could not be deleted: %s", client_id, where, error)
