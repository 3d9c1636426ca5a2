"""A coordinator among nodes whose stages pass windows on, each at its speed, and among some that do not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise

from har_edge.config.wiring import Wiring, find_wiring
from har_edge.coordinator.replan import PlacementSpec, PlanRequest, PlanResponse
from har_edge.protocol.deployment import Generation, Placement
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import StagePhase, StageReport
from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorSpec
from tests.runtime.coordinated import MODEL, STEP_S, TOPICS, World
from tests.runtime.deployed import TASK

Key = tuple[int, int, int]
Window = tuple[str, int]


class Mode(Enum):
    """What a node does with the windows of its stages, while its heartbeats go on."""

    WELL = "runs them"
    HUNG = "its thread hangs: it takes nothing, and what it said last stays"
    GHOST = "says that it runs, and does nothing"
    WRONG = "runs them, and sends what others refuse"
    MUTE = "runs them, and sends nothing"


@dataclass
class Replica:
    """One replica of a stage, wherever it runs."""

    inbox: deque[tuple[Window, int, bool]] = field(default_factory=deque)  # what came from whom, and whether it is good
    parts: dict[Window, set[int]] = field(default_factory=dict)
    work: deque[Window] = field(default_factory=deque)
    node: str = ""
    done_at: float = 0.0
    heard_at: float = 0.0
    windows: int = 0
    errors: int = 0
    refuses: set[int] = field(default_factory=set)


class FlowWorld(World):
    """A World in which probes, and `rate` windows a second, go from stage to stage.

    `modes` are those of nodes that are not well, `service_s` says how long a window takes on a node. `results` are the
    times of results of windows that are no probes.
    """

    def __init__(self, spec: PlacementSpec) -> None:
        super().__init__(spec)
        self.rate = 0.0
        self.modes: dict[str, Mode] = {}
        self.service_s: dict[str, float] = {}
        self.replicas: dict[Key, Replica] = {}
        self.results: list[float] = []
        self.reports = self._report
        self._wirings: dict[int, list[Wiring]] = {}
        self._turns: dict[tuple[int, int], int] = {}
        self._number, self._owed = 0, 0.0

    def step(self) -> None:
        self.flow()
        super().step()

    def flow(self) -> None:
        """Let sensors send and stages run for one step."""
        self._owed += self.rate * STEP_S
        while self._owed >= 1:
            self._owed, self._number = self._owed - 1, self._number + 1
            if self.plan is not None and self.plan.epoch:
                self._enter(self.plan.epoch, ("sensor", self._number))
        for generation in self.plan.generations if self.plan else ():
            for wiring in self._wired(generation):
                for placement in generation.placements:
                    if placement.stage == wiring.index:
                        self._run(generation, wiring, placement)

    def gap(self, since: float) -> float:
        """Return the longest time between two results after a moment."""
        times = [since, *(at for at in self.results if at > since), self.now]
        return max(later - earlier for earlier, later in pairwise(times))

    def _answer(self, stream: str, epoch: int, number: int) -> None:
        if epoch not in self.mute and not self.muted_all:
            self._enter(epoch, (stream, number))

    def _enter(self, epoch: int, window: Window) -> None:
        generation = self.plan.generation(epoch) if self.plan else None
        for wiring in self._wired(generation) if generation else ():
            if wiring.sources and generation:
                self._send(generation, wiring.index, window, -1, good=True)

    def _send(self, generation: Generation, stage: int, window: Window, maker: int, *, good: bool) -> None:
        key = (generation.epoch, stage)
        self._turns[key] = self._turns.get(key, -1) + 1
        replica = self._turns[key] % max(1, generation.replicas(stage))
        self.replicas.setdefault((*key, replica), Replica()).inbox.append((window, maker, good))

    def _wired(self, generation: Generation) -> list[Wiring]:
        count = len(generation.manifest.slices)
        known = self._wirings.get(generation.epoch)
        if known is None:
            known = [find_wiring(generation.manifest, TASK, k) for k in range(count)]
            self._wirings[generation.epoch] = known
        return known

    def _run(self, generation: Generation, wiring: Wiring, placement: Placement) -> None:
        one = self.replicas.setdefault((generation.epoch, *placement.key), Replica())
        node, mode = self.nodes.get(placement.node), self.modes.get(placement.node, Mode.WELL)
        if node is None or not node.runs(generation, placement):
            return
        if one.node != placement.node:
            one.node, one.windows, one.errors, one.heard_at = placement.node, 0, 0, self.now
        if mode in (Mode.HUNG, Mode.GHOST):
            return
        while one.inbox:
            window, maker, good = one.inbox.popleft()
            one.heard_at = self.now
            if not good:
                one.errors += 1
                one.refuses.add(maker)
                continue
            parts = one.parts.setdefault(window, set())
            parts.add(maker)
            if maker == -1 and mode is not Mode.MUTE:  # border rows leave before the rest is computed
                for peer in wiring.peers:
                    self._send(generation, peer, window, wiring.index, good=mode is not Mode.WRONG)
            if parts.issuperset(self._makers(wiring)):
                del one.parts[window]
                one.done_at = self.now if not one.work else one.done_at
                one.work.append(window)
        service_s = self.service_s.get(placement.node, 0.02)
        while one.work and one.done_at + service_s <= self.now + 1e-9:
            one.done_at += service_s
            self._give(generation, wiring, one.work.popleft(), mode)
            one.windows += 1

    def _makers(self, wiring: Wiring) -> set[int]:
        return {*wiring.earlier, *([-1] if wiring.sources else [])}

    def _give(self, generation: Generation, wiring: Wiring, window: Window, mode: Mode) -> None:
        if mode is Mode.MUTE:
            return
        for taker in set(wiring.takers) - wiring.peers:
            self._send(generation, taker, window, wiring.index, good=mode is not Mode.WRONG)
        if wiring.answers and mode is not Mode.WRONG:
            stream, number = window
            if stream == "sensor":
                self.results.append(self.now)
                return
            self.answered.add(generation.epoch)
            result = Result(stream, number, "still", 1, 1.0, self.now, self.now, generation.epoch)
            self.say(TOPICS.result(stream), encode_results([result]))

    def _report(self, node: str, key: Key, phase: StagePhase, now: float) -> StageReport:
        one = self.replicas.get(key)
        if one is None or one.node != node:
            return StageReport(*key, phase)
        mode = self.modes.get(node, Mode.WELL)
        if mode is Mode.GHOST:
            return StageReport(*key, phase)
        refuses, one.refuses = tuple(sorted(one.refuses)), set()
        return StageReport(
            *key,
            phase,
            windows=one.windows,
            errors=one.errors,
            queued=len(one.work),
            waiting=len(one.parts),
            idle_s=max(0.0, now - one.heard_at),
            refuses=refuses,
        )


def flow_world(
    nodes: Sequence[str] = "abcd",
    *,
    latency_s: float = 0.2,
    spec: PlacementSpec | None = None,
    manifest: SliceManifest | None = None,
    replicas: int = 1,
) -> FlowWorld:
    """Return a world whose model runs in three stages, or as `manifest` says, on the first nodes, the others to spare.

    The first stage has so many `replicas`. Plans promise the latency.
    """
    world = FlowWorld(spec or PlacementSpec(stages=3))
    request = world.drawer.request

    def promising(asked: PlanRequest) -> None:
        request(asked)
        world.drawer._made = [_promised(one, asked, latency_s, manifest, replicas) for one in world.drawer._made]

    world.drawer.request = promising  # type: ignore[method-assign]
    for name in nodes:
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    return world


def _promised(
    made: PlanResponse, asked: PlanRequest, latency_s: float, manifest: SliceManifest | None, replicas: int
) -> PlanResponse:
    if made.forecast is None:
        return made
    placements, nodes = made.placements, sorted(one.name for one in asked.candidates)
    if replicas > 1:
        turns = [(0, k) for k in range(replicas)] + [(1, 0), (2, 0)]
        placements = tuple(Placement(*key[:1], nodes[k % len(nodes)], key[1]) for k, key in enumerate(turns))
    contents = dict(made.contents)
    if manifest is not None:
        contents |= {sha256: b"x" for entry in manifest.slices for sha256 in entry.files.values()}
    return replace(
        made,
        manifest=manifest or made.manifest,
        placements=placements,
        contents=contents,
        forecast=replace(made.forecast, latency_s=latency_s),
    )


def shard_manifest() -> SliceManifest:
    """Two shards of the same operators, which exchange border rows, and a stage that takes what both give."""

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name, (1, 4), "float32")

    def step(name: str, takes: Sequence[str], gives: Sequence[str]) -> ShardStep:
        return ShardStep(f"{name}.tflite", "b" * 64, tuple(map(spec, takes)), tuple(map(spec, gives)))

    shards = tuple(
        SliceEntry(
            f"one-{own}.tflite",
            "b" * 64,
            0,
            2,
            (spec("x"), spec(f"border-{other}")),
            (spec(f"border-{own}"), spec(f"half-{own}")),
            steps=(
                step(f"one-{own}", ["x"], [f"border-{own}"]),
                step(f"two-{own}", [f"border-{other}"], [f"half-{own}"]),
            ),
        )
        for own, other in ((0, 1), (1, 0))
    )
    last = SliceEntry("last.tflite", "c" * 64, 2, 3, (spec("half-0"), spec("half-1")), (spec("y"),))
    return SliceManifest(3, "m.tflite", MODEL, (*shards, last))
