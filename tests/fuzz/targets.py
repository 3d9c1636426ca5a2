"""Decoders and state machines that take what comes over the network: none may raise what its contract does not name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.errors import ConfigError, HarEdgeError
from har_edge.mqtt.broker import codec
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.protocol.artifacts import Header, encode_header
from har_edge.protocol.cluster_state import ClusterState
from har_edge.protocol.deployment import encode_deployment
from har_edge.protocol.events import PlanEvent, decode
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import (
    Heartbeat,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    StreamCount,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import Update, VectorPart, encode_training
from har_edge.runtime.deployment_files import materialise
from har_edge.runtime.sensor.plan_follower import PlanFollower
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.sink import Sink
from tests.runtime import rig
from tests.runtime.coordinated import World
from tests.runtime.deployed import CARD, deployment, generation
from tests.runtime.sensor.test_retransmit_buffer import plan_of

TEST, HAR = Topics("har", "test"), Topics("har", "har")
Feed = Callable[[str, bytes, int], None]  # a topic, a payload, and the number of the message


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """A thing to feed: `make` returns it new, `seeds` are good messages by topic, after `most` it begins anew."""

    make: Callable[[], Feed]
    seeds: tuple[tuple[str, bytes], ...]
    most: int = 100_000


def delivery(topic: str, payload: bytes, number: int) -> Delivery:
    """Return a message as it comes; each seventh was stored, each fifth was sent before."""
    return Delivery(topic, payload, (1, number), retained=number % 7 == 0, duplicate=number % 5 == 0)


def _messages(topics: Topics) -> tuple[tuple[str, bytes], ...]:
    """Return a good message of each kind."""
    window = wire.Message("anna", 3, 7, (1.0, 2.0), {"chest": np.zeros((2, 4), np.float32)}, (1, None), sent=(5, 2))
    result = Result("anna", 3, "still", 1, 0.9, 1.0, 2.0, 7, room=5, sent=(9, 3))
    report = StageReport(1000, 0, 0, StagePhase.RUNNING, windows=5)
    streams = {"anna": StreamCount(5, 1.0, 3, 2)}
    status = NodeStatus("a", "node", State.READY, "i", 1.0, "1", counters={"windows": 3}, device=CARD, streams=streams)
    update = Update(
        run="night", author="a", worker="pi", round=1, task=2, samples=3, vector=VectorPart("f4", 1, b"\0\0\0\0")
    )
    plan = deployment(generation("a", "b", "c"))
    plan = msgspec.structs.replace(plan, config=msgspec.structs.replace(plan.config, name=topics.pipeline))
    hashed = "a" * 64
    return (
        (topics.window("anna", "chest"), wire.encode(window)),
        (topics.window("anna", "all"), wire.encode(window, 3, {"chest": 4}, {"chest"})),
        (topics.activation(7, 0, "anna"), wire.encode(window, 3)),
        (topics.result("anna"), encode_results([result, result])),
        (topics.status("a"), encode_status(status)),
        (topics.heartbeat("a"), encode_heartbeat(Heartbeat("a", "i", 1, 5.0, 7, (report,)))),
        (topics.plan(), encode_deployment(plan)),
        (topics.slice(hashed), encode_header(Header(1, hashed, 300_000, 262_144, 2))),
        (topics.chunk(hashed, 0), b"bytes"),
        (topics.training("night", "update", "pi"), encode_training(update)),
    )


def _decoder() -> Feed:
    state, sink = ClusterState(), Sink(1000)

    def feed(topic: str, payload: bytes, number: int) -> None:
        event = decode(delivery(topic, payload, number))
        state.apply(event, float(number))
        sink.take(event)
        assert len(str(getattr(event, "reason", ""))) <= 1000

    return feed


def _stage(**options: object) -> Callable[[], Feed]:
    def make() -> Feed:
        clock = rig.Clock()
        stage = rig.small_stage(clock=clock, capacity=16, **options)

        def feed(topic: str, payload: bytes, number: int) -> None:
            clock.now += 0.01
            stage.handle(delivery(topic, payload, number))
            assert stage.waiting <= 16

        return feed

    return make


def _stage_seeds(epoch: int = 1) -> tuple[tuple[str, bytes], ...]:
    parts = [rig.part(source, seq, epoch=epoch) for source in rig.CHANNELS for seq in range(3)]
    parts += [rig.part(source, 2, epoch=epoch, captured=(5.0, 6.0)) for source in rig.CHANNELS]
    return tuple((one.topic, one.payload) for one in parts)


def _later_seeds() -> tuple[tuple[str, bytes], ...]:
    tensors = {"x": np.zeros((1, 5), np.float32), "y": np.ones((1, 5), np.float32)}
    messages = [wire.Message("s", seq, 1, (5.0,), {name: tensors[name]}) for seq in range(3) for name in tensors]
    return tuple(
        (rig.TOPICS.activation(1, "xy".index(next(iter(one.tensors))), "s"), wire.encode(one)) for one in messages
    )


def _later_stage() -> Feed:
    run = lambda values: {"scores": values["x"][:, :2] + values["y"][:, :2]}  # noqa: E731
    return _stage(run=run, earlier={0: ("x",), 1: ("y",)}, deployed=True)()


def _coordinator() -> Feed:
    world = World()
    coordinator = world.start()
    for name in "abc":
        world.join(name)
    world.run(10)
    now = world.now

    def feed(topic: str, payload: bytes, number: int) -> None:
        nonlocal now
        now += 0.002
        coordinator.handle(delivery(topic, payload, number), now)
        if number % 20 == 0:
            coordinator.tick(now)

    return feed


def _follower() -> Feed:
    sensor = Sensor(SensorSetup(TEST, 1, {"chest": make_reducer("none", 4, 2)}, frozenset([1])))
    follower = PlanFollower(plan_of(1), sensor, RetransmitBuffer(["chest"], 0.0), TEST, lambda _: sensor.setup, 120.0)
    follower.expect(["anna"])

    def feed(topic: str, payload: bytes, number: int) -> None:
        try:
            follower.take(delivery(topic, payload, number), number / 100)
            follower.again(number / 100, connected=True, blocked=False)
        except ConfigError:
            pass  # a plan for windows that this sensor does not make ends it, with that reason

    return feed


def _follower_seeds() -> tuple[tuple[str, bytes], ...]:
    plans = [plan_of(1, one, revision=one) for one in (2, 3)]
    return (*_messages(TEST)[3:4], *((TEST.plan(), encode_deployment(one)) for one in plans))


class _Store:
    """A store that has every file, with the same content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "file"
        self._file.write_bytes(b"content")

    def keep(self, hashes: Collection[str]) -> None:
        """Keep all."""

    def path(self, sha256: str) -> Path:
        return self._file


def _materialiser() -> Feed:
    folder = tempfile.TemporaryDirectory(prefix="har-edge-fuzz-")
    store = _Store(Path(folder.name))

    def feed(topic: str, payload: bytes, number: int) -> None:
        assert folder.name  # it lives as long as this function
        event = decode(delivery(topic, payload, number), HAR)
        plan = event.deployment if isinstance(event, PlanEvent) else None
        if plan is None:
            return
        for one in plan.generations[:2]:
            try:
                materialise(plan, one, store, range(min(3, len(one.manifest.slices))))  # type: ignore[arg-type]
            except HarEdgeError:
                continue

    return feed


def _plan_seeds(topics: Topics) -> tuple[tuple[str, bytes], ...]:
    plans = [deployment(generation("a", "b", "c")), deployment(generation("a", "b", "c", epoch=1001), epoch=1001)]
    return tuple((topics.plan(), encode_deployment(one)) for one in plans)


def _packets() -> Feed:
    readers: list[Callable[[codec.Packet], object]] = [codec.read_connect]
    for version in (codec.V5, 4):
        of_version = (codec.read_publish, codec.read_subscribe, codec.read_unsubscribe, codec.read_disconnect)
        readers += [partial(read, version=version) for read in of_version]

    def feed(topic: str, payload: bytes, number: int) -> None:
        try:
            taken = codec.take_packet(bytearray(payload), 0, 100_000)
        except codec.ProtocolViolation:
            return
        if taken is None:
            return
        for read in readers:
            try:
                read(taken[0])
            except codec.ProtocolViolation:
                continue

    return feed


def _packet_seeds() -> tuple[tuple[str, bytes], ...]:
    connect = b"\x10\x1a\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x3c\x00\x08stage-00"
    packets = (
        connect,
        b"\x32\x0e\x00\x05topic\x00\x07\x00data",
        b"\x82\x0b\x00\x01\x00\x00\x05a/+/#\x01",
        b"\xa2\x09\x00\x01\x00\x00\x04a/+b",
    )
    return tuple(("-", one) for one in packets)


TARGETS = {
    "decoders": FuzzTarget(_decoder, _messages(TEST)),
    "stage": FuzzTarget(_stage(), _stage_seeds()),
    "deployed": FuzzTarget(_stage(deployed=True, carry_on_after_s=1.0), _stage_seeds()),
    "activations": FuzzTarget(_later_stage, _later_seeds()),
    "coordinator": FuzzTarget(_coordinator, _messages(HAR), 20_000),
    "follower": FuzzTarget(
        _follower,
        (*_messages(TEST)[3:4], *((TEST.plan(), encode_deployment(plan_of(1, one))) for one in (2, 3))),
        20_000,
    ),
    "materialise": FuzzTarget(_materialiser, _plan_seeds(HAR), 5_000),
    "packets": FuzzTarget(_packets, _packet_seeds()),
}
