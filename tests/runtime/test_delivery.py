"""Fixed slices on brokers as they are: ones that drop, hold back, forget or never say that nobody listens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.codecs.catalog import make_reducer
from har_edge.monitor.window_account import WindowAccount
from har_edge.mqtt.broker import router
from har_edge.mqtt.bus import Delivery, Outgoing, PublishOutcome, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import Kind
from har_edge.runtime.counters import Counters
from har_edge.runtime.sender import Sender
from har_edge.runtime.sensor.flow_control import FlowController, Untracked
from har_edge.runtime.sensor.retransmission import MOST_FILTERS, Retransmitter
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
from har_edge.runtime.sensor.sensor import FIRST_ROOM, Sensor, SensorSetup
from har_edge.runtime.sink import Sink
from har_edge.runtime.stage.stage import Stage
from tests.runtime.rig import CHANNELS, LENGTH, TOPICS, Clock, small_stage
from tests.runtime.sensor.test_sensor import window

SOURCES = ("chest", "arm")


class Broker(MemoryBroker):
    """Drops windows and results when told to, with success; never says that nobody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = 0

    def route(
        self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, properties: bytes = b""
    ) -> tuple[PublishOutcome, list[router.WindowAccount]]:
        if self.drops and TOPICS.read(topic).kind in (Kind.WINDOW, Kind.RESULT):
            self.drops -= 1
            return PublishOutcome.ACKED, []
        outcome, takers = super().route(topic, payload, retain=retain, qos=qos, properties=properties)
        return PublishOutcome.ACKED if outcome is PublishOutcome.NO_SUBSCRIBERS else outcome, takers


class Node:
    """A sensor process: some streams of one source, a connection, and what it does about its windows."""

    def __init__(
        self,
        world: World,
        name: str,
        streams: tuple[str, ...],
        *sources: str,
        tracked: bool = True,
        live: bool = False,
        first: int = 0,
    ) -> None:
        self.world, self.name, self.streams, self.run = world, name, streams, next(world.runs)
        self.started = world.clock.now
        reducers = {source: make_reducer("none", LENGTH, CHANNELS[source]) for source in sources}
        self.sensor = Sensor(SensorSetup(TOPICS, 1, reducers, frozenset({1}), combine=len(sources) > 1))
        buffer = RetransmitBuffer(sources, self.started)
        resend = Retransmitter(self.sensor, buffer, TOPICS, 0.0, expires=live, partial=live, run=self.run)
        self.flow: FlowController = resend if tracked else Untracked(self.sensor, self.run)
        self.bus = world.broker.connect(Session(name, expiry_s=300))
        self.flow.expect(streams)
        self.bus.subscribe(self.flow.filters)
        self.sender = Sender(self.bus, self.sensor.counters, "-")
        self.left = {stream: iter(range(first, world.count)) for stream in streams}

    def step(self) -> None:
        now = self.world.clock.now
        for delivery in self.bus.poll(0.0):
            self.bus.acknowledge(delivery)
            self.flow.take(delivery, now)
        while self.bus.connected and sum(self.send_next(stream, now) for stream in self.streams):
            pass
        blocked = self.sender.kept > 0
        forgotten = self.bus.traffic.forgotten
        self.send(self.flow.again(now, connected=self.bus.connected, blocked=blocked, forgotten=forgotten))

    def send_next(self, stream: str, now: float) -> bool:
        """Send the next window of a stream, unless too many are out; return whether one went."""
        if self.flow.room is not None and self.flow.open_of(stream) >= self.flow.room:
            return False
        seq = next(self.left[stream], None)
        if seq is None:
            return False
        self.send(self.flow.send([window(seq, stream=stream)], [self.world.captured(self, seq)], now))
        return True

    def send(self, outgoing: list[Outgoing]) -> None:
        for one in outgoing:
            self.sender.send(one)

    def status(self) -> NodeStatus:
        return NodeStatus(self.name, "sensor", State.READY, str(self.run), 1.0, streams=dict(self.flow.streams()))


@dataclass
class World:
    """Sensors, a stage that joins two sources, and a watcher, on one broker; a test moves the clock."""

    count: int = 40
    receive_max: int = 1024
    broker: Broker = field(default_factory=Broker)
    clock: Clock = field(default_factory=Clock)
    sink: Sink = field(default_factory=Sink)
    results: list[Result] = field(default_factory=list)
    capacity: int = 256
    a_step: int = 10**9  # how many windows the stage runs in a step

    def __post_init__(self) -> None:
        self.runs, self.nodes = itertools.count(1), list[Node]()
        self.account = WindowAccount(0.0)
        self.watch = self.broker.connect(Session("watch", expiry_s=300))
        self.watch.subscribe([TOPICS.result("+")])
        self.stage: Stage | None = None
        self.backlog = deque[tuple[float, Delivery]]()

    def captured(self, node: Node, seq: int) -> float:
        """When a window was captured: later in a later run of its sensor."""
        return node.started + seq / 1000

    def begin(self) -> None:
        """Start the stage: another process, the same session."""
        self.stage = small_stage(clock=self.clock, capacity=self.capacity)
        self.bus = self.broker.connect(Session("stage-0", expiry_s=3600, receive_max=self.receive_max))
        self.bus.subscribe(self.stage.filters)
        self.sender = Sender(self.bus, Counters(), "-")
        self.backlog.clear()

    def crash(self) -> None:
        if self.stage is not None:
            self.bus.crash()
        self.stage = None

    def step(self, seconds: float = 0.05) -> None:
        self.clock.now += seconds
        for node in self.nodes:
            node.step()
        if self.stage is not None:
            self.backlog += [(self.clock.now, delivery) for delivery in self.bus.poll(0.0)]
            most = self.stage.counters.windows + self.a_step
            while self.backlog and self.stage.counters.windows < most:
                came, delivery = self.backlog.popleft()
                for outgoing in self.stage.handle(delivery, came):
                    self.sender.send(outgoing)
            for outgoing in self.stage.tick(self.backlog[0][0] if self.backlog else None):
                self.sender.send(outgoing)
        for delivery in self.watch.poll(0.0):
            self.watch.acknowledge(delivery)
            for result in self.sink.handle(delivery):
                self.results.append(result)
                self.account.take_result(result)
        for node in self.nodes:
            self.account.take_status(node.status(), self.clock.now)

    def settle(self, seconds: float = 400.0) -> float:
        """Go on until every window is answered; return how long that took."""
        began = self.clock.now
        while any(node.flow.open or any(True for _ in self.peek(node)) for node in self.nodes):
            self.step()
            assert self.clock.now < began + seconds, "windows remain open"
        for _ in range(5):
            self.step()
        return self.clock.now - began

    def peek(self, node: Node) -> list[int]:
        """Return the windows that a sensor has not sent."""
        left = {stream: list(windows) for stream, windows in node.left.items()}
        node.left = {stream: iter(windows) for stream, windows in left.items()}
        return [seq for windows in left.values() for seq in windows]

    def came(self) -> list[tuple[str, int]]:
        return sorted((one.stream, one.seq) for one in self.results)

    def all_of(self, *streams: str) -> list[tuple[str, int]]:
        return sorted((stream, seq) for stream in streams for seq in range(self.count))


def pair(world: World, *streams: str) -> None:
    world.nodes += [Node(world, f"sensor-{source}", streams, source) for source in SOURCES]


def test_a_stage_that_starts_late_loses_nothing_though_no_broker_says_that_nobody_listens() -> None:
    world = World()
    pair(world, "s")
    while world.clock.now < 4.0:
        world.step()
    assert world.nodes[0].flow.open == FIRST_ROOM and world.nodes[0].sensor.counters.unheard == 0
    world.begin()
    assert world.settle() < 10.0 and world.came() == world.all_of("s")
    world.account.close()
    assert world.account.lost(world.clock.now) == 0


def test_what_the_broker_drops_with_success_is_sent_again() -> None:
    world = World()
    world.begin()
    pair(world, "s", "t")
    world.broker.drops = 25
    world.settle()
    assert world.came() == world.all_of("s", "t") and world.sink.counters.duplicates == 0


@pytest.mark.slow
@pytest.mark.parametrize("receive_max", [10, 20, 100])
def test_a_broker_that_holds_back_starves_no_join(receive_max: int) -> None:
    """The second sensor starts when the first has out what the broker gives, and more."""
    world = World(count=200, receive_max=receive_max)
    world.begin()
    chest, arm = (
        Node(world, "sensor-chest", tuple("abcdefghijklmnop"), "chest"),
        Node(world, "sensor-arm", tuple("abcdefghijklmnop"), "arm"),
    )
    world.nodes.append(chest)
    while world.clock.now < 2.0:
        world.step()
    world.nodes.append(arm)
    assert world.settle() < 60.0 and world.came() == world.all_of(*chest.streams)
    assert world.stage is not None and world.stage.counters.given_up == 0


def test_a_stage_that_is_held_back_learns_how_much_it_may_hold_and_one_that_is_not_does_not() -> None:
    for receive_max, learns in ((10, True), (1024, False)):
        world = World(count=100, receive_max=receive_max)
        world.begin()
        chest = Node(world, "sensor-chest", ("a", "b", "c"), "chest")
        world.nodes.append(chest)
        for _ in range(60):
            world.step()
        assert world.stage is not None and (world.stage._join.hold is not None) is learns
        assert world.stage.counters.shelved > 0


def test_many_senders_of_a_pipeline_have_no_more_out_than_a_join_holds() -> None:
    """Sixteen streams from eight processes, sources apart; without grants each process alone would fill the join."""
    world = World(count=60, capacity=32)
    world.begin()
    for gateway in range(4):
        streams = tuple(f"g{gateway}-{number}" for number in range(4))
        world.nodes += [Node(world, f"sensor-{gateway}-{source}", streams, source) for source in SOURCES]
    most = 0
    for turn in range(20):
        world.step()
        if turn > 6:  # all streams have been answered since all are there
            most = max(most, *(node.flow.open_of(stream) for node in world.nodes for stream in node.streams))
    assert most == 32 // 16
    assert world.settle() < 30.0
    assert world.came() == world.all_of(*(f"g{gateway}-{number}" for gateway in range(4) for number in range(4)))
    resent = sum(node.sensor.counters.resent for node in world.nodes)
    assert resent == 0 and world.stage is not None and world.stage.counters.given_up == 0


def test_windows_of_sensors_that_listen_to_no_results_are_counted_though_nobody_can_send_them_again() -> None:
    world = World(count=20)
    world.begin()
    world.nodes += [Node(world, f"sensor-{source}", ("s",), source, tracked=False) for source in SOURCES]
    world.broker.drops = 3
    for _ in range(100):
        world.step()
    lost = world.count - len(world.results)
    assert lost in (2, 3) and world.account.lost(world.clock.now) == 0
    for _ in range(60):
        world.step(1.1)
    assert world.account.lost(world.clock.now) == lost
    world.account.close()
    assert world.account.sentence(world.clock.now) == f"lost windows: {lost} of 20 of s"


@pytest.mark.parametrize("groups", [SOURCES, ("all",)])
def test_a_slow_pipeline_is_not_made_slower_by_what_is_sent_again(groups: tuple[str, ...]) -> None:
    """One window a second for sixteen streams: an answer takes longer than a lost window is waited for elsewhere."""
    world = World(count=12, a_step=1, capacity=64)
    world.begin()
    streams = tuple(f"s{number}" for number in range(16))
    for group in groups:
        world.nodes.append(Node(world, f"sensor-{group}", streams, *(SOURCES if group == "all" else (group,))))
    while any(node.flow.open or world.peek(node) for node in world.nodes):
        world.step(1.0)
        assert world.clock.now < 1.1 * 12 * 16
    assert len(world.results) == 12 * 16


STEPS = ["wait", "wait", "long", "drop", "drop 5", "cut chest", "cut arm", "crash", "begin", "restart"]


def take_step(world: World, step: str) -> None:
    match step.split():
        case ["wait"]:
            world.step()
        case ["long"]:
            world.step(2.0)
        case ["drop", *many]:
            world.broker.drops += int(*many or ["1"])
        case ["cut", source]:
            world.nodes[SOURCES.index(source)].bus.cut()
        case ["crash"]:
            world.crash()
        case ["begin"]:
            world.crash()
            world.begin()
        case ["restart"]:
            world.backlog.clear()
            world.broker.stop()
            world.broker.start()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=25), st.sampled_from([6, 64, 1024]))
def test_whatever_the_broker_does_every_window_is_answered_once(steps: list[str], receive_max: int) -> None:
    world = World(count=15, receive_max=receive_max, capacity=8)
    world.begin()
    pair(world, "s", "t")
    for step in steps:
        take_step(world, step)
    if world.stage is None:
        world.begin()
    world.broker.drops = 0
    world.settle()
    assert world.came() == world.all_of("s", "t")
    for node in world.nodes:
        assert all(one.answered == one.sent == 15 and not one.lost for one in node.flow.streams().values())
    world.account.close()
    assert world.account.lost(world.clock.now) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*STEPS, "kill chest", "kill arm"]), max_size=20))
def test_sensors_that_die_may_lose_windows_and_each_of_these_is_counted(steps: list[str]) -> None:
    """Both sources of a stream start again, as one device that lost its power."""
    world = World(count=12)
    world.begin()
    pair(world, "s")
    for step in steps:
        match step.split():
            case ["drop", *_]:
                world.broker.drops += 1
            case ["kill", _]:
                world.step()
                for node in world.nodes:
                    node.bus.crash()
                world.clock.now += 1.0
                world.nodes.clear()
                pair(world, "s")
            case _:
                world.step(0.3)
    world.broker.drops = 0
    world.settle()
    world.account.close()
    now = world.clock.now
    (figures,) = world.account.figures(now)
    assert figures.sent == figures.came + figures.lost and figures.came <= len(world.results)


def devices(world: World, *firsts: int) -> None:
    """Start sensors of one stream that read devices: each has its windows from another number on."""
    for source, first in zip(SOURCES, firsts, strict=True):
        world.nodes.append(Node(world, f"sensor-{source}", ("s",), source, live=True, first=first))


def counts(world: World) -> list[tuple[int, int, int]]:
    """Return what each sensor sent, called incomplete, and called lost."""
    told = [node.flow.streams()["s"] for node in world.nodes]
    return [(one.sent, one.incomplete, one.lost) for one in told]


def test_windows_from_before_another_device_was_there_are_incomplete_and_not_lost() -> None:
    world = World()
    world.begin()
    devices(world, 0, 4)
    assert world.settle() < 25.0
    assert world.came() == [("s", seq) for seq in range(4, 40)]
    assert counts(world) == [(40, 4, 0), (36, 0, 0)]
    assert world.nodes[0].sensor.counters.unanswered == 0 and world.nodes[0].sensor.counters.incomplete == 4
    world.account.close()
    assert world.account.lost(world.clock.now) == 0
    said = "windows that not all sensors of their stream have sent: 4 of 40 of s"
    assert world.account.incomplete_sentence(world.clock.now) == said


def test_what_the_broker_drops_of_devices_is_sent_again_and_not_called_incomplete() -> None:
    world = World()
    world.begin()
    devices(world, 0, 0)
    world.broker.drops = 9
    world.settle()
    assert world.came() == world.all_of("s") and counts(world) == [(40, 0, 0), (40, 0, 0)]


def test_a_stage_that_is_away_makes_no_window_incomplete() -> None:
    """Nothing is answered after a window was sent again, so nothing shows that others lack it."""
    world = World()
    world.begin()
    devices(world, 0, 4)
    for _ in range(20):
        world.step()
    world.crash()
    world.broker.drops = 10**9
    for _ in range(1200):
        world.step()
    assert counts(world) == [(40, 0, 0), (36, 0, 0)]
    world.broker.drops = 0
    world.begin()
    for _ in range(1200):
        world.step()
    assert world.came() == [("s", seq) for seq in range(4, 40)]


def test_a_window_that_comes_after_all_is_no_longer_incomplete() -> None:
    world = World()
    world.begin()
    devices(world, 0, 4)
    world.settle()
    late = Node(world, "sensor-late", ("s",), "arm", live=True)
    late.left = {"s": iter([2])}
    world.nodes.append(late)
    world.settle()
    assert ("s", 2) in world.came() and counts(world)[0] == (40, 3, 0)


def test_a_recording_waits_for_sensors_that_are_not_there_yet() -> None:
    world = World()
    world.begin()
    world.nodes.append(Node(world, "sensor-chest", ("s",), "chest"))
    for _ in range(2400):
        world.step()
    world.nodes.append(Node(world, "sensor-arm", ("s",), "arm"))
    world.settle()
    assert world.came() == world.all_of("s") and counts(world) == [(40, 0, 0), (40, 0, 0)]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=25), st.integers(0, 6), st.integers(0, 6))
def test_whatever_the_broker_does_devices_call_incomplete_what_only_one_of_them_has(
    steps: list[str], chest: int, arm: int
) -> None:
    world = World(count=15, capacity=8)
    world.begin()
    devices(world, chest, arm)
    for step in steps:
        take_step(world, step)
    if world.stage is None:
        world.begin()
    world.broker.drops = 0
    for _ in range(2400):
        world.step()
    common = max(chest, arm)
    assert world.came() == [("s", seq) for seq in range(common, 15)]
    for first, (sent, incomplete, lost) in zip((chest, arm), counts(world), strict=True):
        assert (sent, incomplete, lost) == (15 - first, common - first, 0)


def test_a_sensor_hears_the_results_of_its_own_streams_unless_they_are_many() -> None:
    world = World()
    world.begin()
    world.nodes += [Node(world, f"sensor-{name}", (name,), *SOURCES) for name in "ab"]
    heard = [0, 0]
    for number, node in enumerate(world.nodes):
        take = node.flow.take

        def note(delivery: Delivery, now: float, number: int = number, take: Callable[..., None] = take) -> None:
            heard[number] += 1
            take(delivery, now)

        node.flow.take = note  # type: ignore[method-assign]
    world.settle()
    assert heard == [40, 40] and world.came() == world.all_of("a", "b")
    flow = world.nodes[0].flow
    flow.expect([f"s{number}" for number in range(MOST_FILTERS + 1)])
    assert flow.filters == [TOPICS.result("+")]


def forged(**fields: object) -> Delivery:
    """A result that no stage made."""
    made = Result("p", 1_000_000, "x", 1, 1.0, 1.0, 2e9, 1)
    return Delivery(TOPICS.result("p"), encode_results([msgspec.structs.replace(made, **fields)]), (1, 1))


@pytest.mark.parametrize("seq", [-1, 2**62 + 1])
def test_a_result_with_a_number_that_no_window_has_is_dropped(seq: int) -> None:
    world = World()
    pair(world, "p")
    for node in world.nodes:
        node.flow.take(forged(seq=seq), 0.0)
        assert node.sensor.counters.rejected == 1


def test_a_result_of_other_slices_answers_nothing() -> None:
    """It lacks all sources, and so would stand for all windows before it."""
    world = World(count=5)
    pair(world, "p")
    for node in world.nodes:
        node.step()
        assert node.flow.open_of("p") == 5
        node.flow.take(forged(epoch=7, missing=["a", "b"]), world.clock.now)
        assert (node.flow.open_of("p"), node.sensor.counters.foreign) == (5, 1)
        assert node.status().streams["p"].answered == 0
