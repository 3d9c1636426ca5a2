"""A coordinator among nodes that do as they should, on a broker in memory and a clock that a test moves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.coordinator.config import CoordinatorConfig
from har_edge.coordinator.coordinator import NAME, Coordinator
from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.replan import PlacementSpec, PlanRequest, PlanResponse
from har_edge.coordinator.service import CoordinatorService
from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Outgoing, Session, TakenOver, Will
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.planner.relocation import Forecast
from har_edge.protocol.deployment import PROTOCOL, Deployment, Generation, Phase, Placement
from har_edge.protocol.events import PlanEvent, decode
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import (
    BrokerOffer,
    Heartbeat,
    NodeCapabilities,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import PROBE, Kind, Topics
from har_edge.runtime.status_publisher import Identity
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec
from tests.protocol.reading import read_status
from tests.runtime.deployed import TASK

TOPICS = Topics("har", "har")
MODEL = "a" * 64
STEP_S = 0.1
FETCH_S = 0.3


def contents(model: str, count: int) -> list[bytes]:
    return [f"{model[:4]} slice {k} of {count}".encode() for k in range(count)]


def by_hash(model: str, count: int) -> dict[str, bytes]:
    return {hashlib.sha256(one).hexdigest(): one for one in contents(model, count)}


def cut(model: str, count: int) -> SliceManifest:
    """Return the slices of a chain of `count` stages."""
    spec = tuple(TensorSpec(name, (1, 4), "float32") for name in ("x", *(f"t{k}" for k in range(1, count)), "y"))
    slices = tuple(
        SliceEntry(
            f"slice-{k}.tflite", hashlib.sha256(content).hexdigest(), k, k + 1, spec[k : k + 1], spec[k + 1 : k + 2]
        )
        for k, content in enumerate(contents(model, count))
    )
    return SliceManifest(1, "m.tflite", model, slices)


@dataclass
class Drawer:
    """Stands for the planner's thread: one stage a node, quickest first, up to `most`, none on a far slower node.

    The whole model takes 4 s at speed 100.
    """

    model: str = MODEL
    spec: PlacementSpec = field(default_factory=PlacementSpec)
    most: int = 4
    problem: str = ""
    remarks: tuple[str, ...] = ()
    asked: list[PlanRequest] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    _made: list[PlanResponse] = field(default_factory=list)

    def request(self, request: PlanRequest) -> None:
        if not request.candidates:
            self._made.append(PlanResponse(request.number, contents=self._cut_again(request)))
            return
        self.asked.append(request)
        if self.problem:
            self._made.append(PlanResponse(request.number, problem=self.problem))
            return
        nodes = sorted(request.candidates, key=lambda one: (-one.effective_speed, one.name))
        nodes = [one for one in nodes if one.effective_speed > nodes[0].effective_speed / 5]
        count = self.spec.stages or min(len(nodes), self.most)
        placements = tuple(Placement(k, nodes[k % len(nodes)].name) for k in range(count))
        current = next((one for one in request.generations if one.epoch == request.epoch), None)
        self._made.append(
            PlanResponse(
                request.number,
                manifest=cut(self.model, count),
                placements=placements,
                forecast=self._forecast(request, placements, count),
                current=self._forecast(request, current.placements, len(current.manifest.slices)) if current else None,
                stage_costs={0: (StageCost(1.0, 10),) * count},
                contents=by_hash(self.model, count),
                reference_speed=100.0,
                remarks=self.remarks,
            )
        )

    def _cut_again(self, request: PlanRequest) -> dict[str, bytes]:
        counts = [len(one.manifest.slices) for one in request.generations if one.manifest.model_sha256 == self.model]
        return {sha256: content for count in counts for sha256, content in by_hash(self.model, count).items()}

    def _forecast(self, request: PlanRequest, placements: tuple[Placement, ...], count: int) -> Forecast | None:
        speeds = {one.name: one.effective_speed / 100 for one in request.candidates}
        busy = dict.fromkeys(speeds, 0.0)
        for placement in placements:
            if placement.node not in speeds:
                return None
            busy[placement.node] += 4 / count / speeds[placement.node]
        return Forecast(max(busy.values()), sum(busy.values()), (4 / count,) * count)

    def delete_session(self, client_id: str, url: str = "") -> None:
        self.swept.append(f"{client_id} at {url}" if url else client_id)

    def poll(self) -> list[PlanResponse]:
        made, self._made = self._made, []
        return made


@dataclass
class FakeNode:
    """A node that loads in FETCH_S what the plan gives it, and runs it."""

    name: str
    broker: MemoryBroker
    number: int
    speed: float = 100.0
    runtime: str = "litert"
    protocol: int = PROTOCOL
    failing: str = ""
    lacks: str = ""
    slow: float = 1.0
    fetch_s: float = FETCH_S
    phases: dict[tuple[int, int, int], tuple[StagePhase, float]] = field(default_factory=dict)
    deployment: Deployment | None = None
    hung: bool = False
    state: State = State.READY
    windows: int = 0
    routed: int = 0
    leaves_at: float = 0.0
    beat_at: float = 0.0
    beats: int = 0
    routes: bool = False
    offer: str = ""
    machine: str = "m"
    linked: bool = True  # whether its stages are connected to the brokers that the plan names
    unreachable: tuple[str, ...] = ()
    # What it says of a replica, instead of ten windows a beat.
    reports: Callable[[str, tuple[int, int, int], StagePhase, float], StageReport] | None = None

    def __post_init__(self) -> None:
        will = Will(TOPICS.status(self.name), self.status(State.LOST))
        self.bus: MemoryBus = self.broker.connect(Session(f"har.har.{self.name}", will=will))
        self.bus.subscribe([TOPICS.plan()])
        self.say()

    @property
    def instance(self) -> str:
        return f"{self.name}-{self.number}"

    def status(self, state: State) -> bytes:
        offer = BrokerOffer(self.offer, "Mosquitto") if self.offer else None
        card = NodeCapabilities(
            self.protocol, self.machine, "Linux", 1, 10**9, self.runtime, self.speed, routes=self.routes, broker=offer
        )
        return encode_status(NodeStatus(self.name, "node", state, self.instance, float(self.number), device=card))

    def say(self) -> None:
        self.bus.publish(TOPICS.status(self.name), self.status(self.state), retain=True)

    def step(self, now: float) -> None:
        if self.hung:
            return
        reconnects = self.bus.traffic.reconnects
        for delivery in self.bus.poll(0):
            self.bus.acknowledge(delivery)
            event = decode(delivery, TOPICS)
            found = event.deployment if isinstance(event, PlanEvent) else None
            if found is not None and (self.deployment is None or found.replaces(self.deployment)):
                self.deployment = found
        if self.bus.traffic.reconnects != reconnects:
            self.say()
        before = dict(self.phases)
        self._follow(now)
        if {key: phase for key, (phase, _) in before.items()} != {
            key: phase for key, (phase, _) in self.phases.items()
        }:
            self.beat_at = 0.0
        if now >= self.beat_at:
            self.beat_at, self.beats = now + 0.5, self.beats + 1
            self.windows += 10
            revision = self.deployment.revision if self.deployment else 0
            self.routed = revision if self.linked else self.routed
            stages = tuple(self._report(key, phase, now) for key, (phase, _) in self.phases.items())
            beat = Heartbeat(self.name, self.instance, self.beats, now, revision, stages)
            self.bus.publish(TOPICS.heartbeat(self.name), encode_heartbeat(beat))

    def _report(self, key: tuple[int, int, int], phase: StagePhase, now: float) -> StageReport:
        if self.reports is not None:
            return self.reports(self.name, key, phase, now)
        return StageReport(
            *key,
            phase,
            self.failing,
            windows=self.windows,
            service_s=self.slow,
            lacks=self.lacks,
            routed=self.routed,
            unreachable=self.unreachable,
        )

    def _follow(self, now: float) -> None:
        wanted: dict[tuple[int, int, int], tuple[bool, bool]] = {}
        for generation in self.deployment.generations if self.deployment else ():
            draining = self.deployment.phase(generation.epoch) is Phase.DRAINING  # type: ignore[union-attr]
            for placement in generation.placements:
                if placement.node == self.name or self.name in placement.standby:
                    wanted[(generation.epoch, *placement.key)] = (placement.node == self.name, draining)
        for key in self.phases.keys() - wanted.keys():
            del self.phases[key]
        for key, (hold, draining) in wanted.items():
            phase, since = self.phases.get(key, (StagePhase.FETCHING, now))
            if self.failing:
                phase = StagePhase.FAILED
            elif phase is StagePhase.FAILED:
                phase, since = StagePhase.FETCHING, now
            elif now >= since + self.fetch_s and phase is StagePhase.FETCHING:
                phase = StagePhase.PREPARED
            if hold and phase in (StagePhase.PREPARED, StagePhase.RUNNING, StagePhase.DRAINED):
                phase = StagePhase.DRAINED if draining else StagePhase.RUNNING
            self.phases[key] = (phase, since)

    def runs(self, generation: Generation, placement: Placement) -> bool:
        phase, _ = self.phases.get((generation.epoch, *placement.key), (StagePhase.FAILED, 0.0))
        return not self.hung and phase in (StagePhase.RUNNING, StagePhase.DRAINED)


class World:
    """Nodes, a coordinator, and an onlooker who notes every plan and every status of the coordinator."""

    def __init__(
        self,
        spec: PlacementSpec | None = None,
        *,
        margin: float = 0.15,
        settle_s: float = 3.0,
        local_brokers: bool = False,
    ) -> None:
        self.broker, self.now, self.started = MemoryBroker(), 1000.0, 0
        self.spec, self.margin, self.settle_s = spec or PlacementSpec(), margin, settle_s
        self.local_brokers = local_brokers
        self.drawer = Drawer(spec=self.spec)
        self.nodes: dict[str, FakeNode] = {}
        self.mute: set[int] = set()
        self.muted_all = False
        self.misfits: set[int] = set()
        self.plans: list[Deployment] = []
        self.lines: list[str] = []
        self.status: NodeStatus | None = None
        self.retained: dict[str, bytes] = {}
        self.answered: set[int] = set()
        self.reports: Callable[[str, tuple[int, int, int], StagePhase, float], StageReport] | None = None
        self.onlooker = self.broker.connect(Session("onlooker", expiry_s=99))
        self.onlooker.subscribe(["har/#"])
        self.mouth = self.broker.connect(Session("mouth"))
        self.coordinator: Coordinator | None = None

    def start(self, *, model: str = MODEL, clock: float | None = None) -> Coordinator:
        """Start a coordinator, whose clock may be off; an older one is cut off as it would be."""
        self.started += 1
        self.drawer.model = model
        started = float(self.started) if clock is None else clock
        identity = Identity(TOPICS, NAME, NAME, "memory", instance=f"c{self.started}", started=started)
        config = PipelineConfig(TASK)
        setup = CoordinatorConfig(
            TOPICS, config, model, {}, {}, identity.instance, identity.started, 5000, self.spec, self.margin,
            self.settle_s, self.probe, self.local_brokers,
        )  # fmt: skip
        self.coordinator = Coordinator(setup, self.now)
        self.bus = self.broker.connect(identity.session(expiry_s=0))
        self.service: CoordinatorService | None = CoordinatorService(
            self.bus, self.coordinator, identity, self.drawer, self.lines.append
        )
        return self.coordinator

    def kill(self) -> None:
        """The coordinator dies without a word."""
        if self.service is not None:
            self.bus.crash()
        self.service = None

    def probe(self, generation: Generation, stream: str, number: int) -> list[Outgoing]:
        if generation.epoch in self.misfits:
            raise ConfigError("the slices do not fit the task")
        return [Outgoing(TOPICS.window(stream, "chest"), f"{generation.epoch} {number}".encode())]

    def join(self, name: str, **more: object) -> FakeNode:
        self.started += 1
        more = {"reports": self.reports} | more
        self.nodes[name] = FakeNode(name, self.broker, self.started, **more)  # type: ignore[arg-type]
        return self.nodes[name]

    def crash(self, name: str) -> None:
        """A node dies, and the broker says so."""
        self.nodes.pop(name).bus.crash()

    def leave(self, name: str) -> None:
        """A node is asked to stop: it goes when it has nothing to do, at most 10 s later."""
        self.nodes[name].state = State.DRAINING
        self.nodes[name].leaves_at = self.now + 10
        self.nodes[name].say()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.step()

    def until(self, done: object, seconds: float = 60.0) -> None:
        """Step until something holds."""
        for _ in range(round(seconds / STEP_S)):
            if done():  # type: ignore[operator]
                return
            self.step()
        raise AssertionError("\n".join([*self.lines, repr(self.status), repr(self.plan)]))

    def step(self) -> None:
        self.now += STEP_S
        for node in list(self.nodes.values()):
            node.step(self.now)
            held = node.deployment and any(one.of(node.name) for one in node.deployment.generations)
            if node.state is State.DRAINING and not node.hung and (not held or self.now > node.leaves_at):
                node.state = State.STOPPED
                node.say()
                node.bus.close()
                del self.nodes[node.name]
        if self.service is not None:
            try:
                self.service.step(0, lambda: self.now)
                self.service.step(0, lambda: self.now)
            except TakenOver:
                self.service = None
        self.look()

    def look(self) -> None:
        for delivery in self.onlooker.poll(0):
            self.onlooker.acknowledge(delivery)
            topic = TOPICS.read(delivery.topic)
            if topic.retained:
                self.retained[delivery.topic] = delivery.payload
            if topic.kind is Kind.PLAN and not delivery.retained:
                event = decode(delivery, TOPICS)
                if isinstance(event, PlanEvent) and event.deployment is not None:
                    self.plans.append(event.deployment)
            elif topic.kind is Kind.STATUS and topic.levels[0] == NAME:
                self.status = read_status(delivery)
            elif topic.kind is Kind.WINDOW and topic.levels[0].startswith(PROBE):
                self._answer(topic.levels[0], *map(int, delivery.payload.split()))

    def _answer(self, stream: str, epoch: int, number: int) -> None:
        """A probe comes back when every stage of its epoch runs."""
        generation = self.plans[-1].generation(epoch) if self.plans else None
        if generation is None or epoch in self.mute or self.muted_all:
            return
        for placement in generation.placements:
            node = self.nodes.get(placement.node)
            if node is None or not node.runs(generation, placement):
                return
        self.answered.add(epoch)
        result = Result(stream, number, "still", 1, 1.0, self.now, self.now, epoch)
        self.say(TOPICS.result(stream), encode_results([result]))

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish as somebody else."""
        self.mouth.publish(topic, payload, retain=retain)
        self.mouth.poll(0)

    @property
    def plan(self) -> Deployment | None:
        return self.plans[-1] if self.plans else None

    @property
    def homes(self) -> dict[int, str]:
        """Who runs the stages of the current epoch."""
        current = self.plan.current if self.plan else None
        return {one.stage: one.node for one in current.placements} if current else {}

    @property
    def ready(self) -> bool:
        return self.status is not None and self.status.state is State.READY

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)
