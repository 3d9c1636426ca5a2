"""A pipeline of several stages over the broker in memory, and the faults that a test gives it.

    chest, arm -> stage 0 -> "both" -> stage 1 -> "left"  \\
                                    -> stage 2 -> "right" -> stage 3 -> result

Stage 0 joins sources, stages 1 and 2 are two shards, stage 3 joins these; or one stage does what these three do.
Or a group of shards that run steps and exchange rows does the work of stages 1 and 2:

    chest, arm -> [stage 0 ->] shard <-> shard -> last stage -> result

Samples are small whole numbers, so that sums are exact in whatever order, and differ by stream, window and source.
A test moves the clock.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.codecs.catalog import make_reducer
from har_edge.config.wiring import Wiring, find_wiring, flow_level
from har_edge.data.recording import Window
from har_edge.inference.shard_program import ShardProgram
from har_edge.mqtt.bus import Delivery, Outgoing, PublishOutcome, Session
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol import wire
from har_edge.protocol.events import ResultsEvent, decode
from har_edge.protocol.results import Result
from har_edge.protocol.topics import Kind
from har_edge.runtime.sender import Sender
from har_edge.runtime.sensor.flow_control import FlowController, Untracked
from har_edge.runtime.sensor.retransmission import Retransmitter
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer, SentState
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.sink import Sink
from har_edge.runtime.stage.shard import make_stage as stage_of
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorRegion, TensorSpec, versioned
from tests.runtime.rig import CHANNELS, LENGTH, TASK, TOPICS, Clock, small_stage

SOURCES = ("chest", "arm")
GIVE_UP_S = 400.0  # longer than the faults of a schedule last
MOST_OUT = 64
HASH = "0" * 64
Key = tuple[str, int]
Array = npt.NDArray[Any]
Values = Mapping[str, Array]


def samples_of(stream: str, seq: int, source: str) -> Array:
    """Return the samples of a window: whole numbers, so that float32 sums are exact."""
    rng = np.random.default_rng([ord(stream), seq, CHANNELS[source]])
    return rng.integers(-50, 50, (LENGTH, CHANNELS[source])).astype(np.float32)


def expected_scores(stream: str, seq: int, missing: Sequence[str]) -> list[float]:
    """Return the scores of the whole model, with zero for what is missing."""
    return [0.0 if one in missing else float(samples_of(stream, seq, one).sum()) for one in SOURCES]


def both(values: Values) -> Values:
    return {"both": np.concatenate([values["c"], values["a"]], axis=2)}


def left(values: Values) -> Values:
    return {"left": values["both"][:, :, :2].sum(axis=(1, 2))[:, None]}


def right(values: Values) -> Values:
    return {"right": values["both"][:, :, 2:].sum(axis=(1, 2))[:, None]}


def scores(values: Values) -> Values:
    return {"scores": np.concatenate([values["left"], values["right"]], axis=1)}


def total(values: Values) -> Values:
    return scores({**left(values), **right(values)})


Slice = tuple[Callable[[Values], Values], dict[int, tuple[str, ...]], str]
SHAPES = {"both": [-1, LENGTH, 5], "left": [-1, 1], "right": [-1, 1], "scores": [-1, 2]}
SHARDS: list[Slice] = [
    (both, {}, "both"),
    (left, {0: ("both",)}, "left"),
    (right, {0: ("both",)}, "right"),
    (scores, {1: ("left",), 2: ("right",)}, ""),
]
CHAIN: list[Slice] = [(both, {}, "both"), (total, {0: ("both",)}, "")]


@dataclasses.dataclass(frozen=True)
class Group:
    """Slices of which some are shards, and what each step or slice runs.

    `coded` are the levels of topics that bring the shares of a tensor and their parity; any one may be missing.
    """

    manifest: SliceManifest
    runs: tuple[tuple[Callable[[Values], Values], ...], ...]
    coded: tuple[frozenset[str], ...] = ()

    def __len__(self) -> int:
        return len(self.manifest.slices)


def rows(name: str, start: int, stop: int, channels: int, called: str = "", flow: int = 0) -> TensorSpec:
    region = TensorRegion(name, 1, start, stop)
    title = called or f"{name}[1:{start}:{stop}]"
    return TensorSpec(title, (-1, stop - start, channels), "float32", region=region, flow=flow)


def double(values: Values) -> Values:
    """Return rows of a tensor that is twice what came."""
    return {"h": 2 * np.concatenate([values[name] for name in values], axis=2)}


def above(values: Values) -> Values:
    """Return rows that are exact only if the halo row is of the same window and of the same run."""
    came = np.concatenate([values[name] for name in ("c", "a") if name in values] or [values["both"]], axis=2)
    assert came.shape[1] == 3 and values["h"].shape[1] == 3
    halo = [row for row in (0, 2) if values["edge"].item() == row]
    return {"g": values["h"][:, 1 - halo[0] // 2 : 3 - halo[0] // 2] / 2 + 1000 * _gap(values["h"], came, halo[0])}


def _gap(h: Array, came: Array, row: int) -> Array:
    return h[:, row : row + 1] - 2 * came[:, row : row + 1]


def make_group(*, sources: bool) -> Group:
    """Return two shards of rows [0, 2) and [2, 4), which take the sources, or what stage 0 makes of them.

    Each doubles its border row and sends it, doubles its other row, then makes its rows of g with the other's border.
    """
    taken = {"c": 2, "a": 3} if sources else {"both": 5}
    entries, runs = list[SliceEntry](), list[tuple[Callable[[Values], Values], ...]]()
    if not sources:
        plain = [TensorSpec(name, (-1, LENGTH, width), "float32") for name, width in (("c", 2), ("a", 3))]
        entries.append(SliceEntry("f", HASH, 0, 1, tuple(plain), (TensorSpec("both", (-1, LENGTH, 5), "float32"),)))
        runs.append((both,))
    at = len(entries)
    for border, inside, halo, first in ((1, 0, 2, 0), (2, 3, 1, 2)):
        reach = (min(first, halo), min(first, halo) + 3)

        def step(row: int) -> ShardStep:
            inputs = tuple(rows(name, row, row + 1, width, name) for name, width in taken.items())
            return ShardStep("f", HASH, inputs, (rows("h", row, row + 1, 5, "h"),))

        last = tuple(rows(name, *reach, width, name) for name, width in taken.items())
        steps = (
            step(border),
            step(inside),
            ShardStep("g", HASH, (*last, rows("h", *reach, 5, "h")), (rows("g", first, first + 2, 5, "g"),)),
        )
        whole = tuple(TensorSpec(name, (-1, LENGTH, width), "float32") for name, width in taken.items())
        entries.append(
            SliceEntry(
                "f",
                HASH,
                at,
                at + 1,
                (*whole, rows("h", halo, halo + 1, 5)),
                (rows("g", first, first + 2, 5), rows("h", border, border + 1, 5, flow=1)),
                steps=steps,
            )
        )
        row = np.array(0 if halo < first else 2)
        runs.append((double, double, lambda values, row=row: above({**values, "edge": row})))
    parts = (rows("g", 0, 2, 5), rows("g", 2, 4, 5))
    entries.append(SliceEntry("e", HASH, at + 1, at + 2, parts, (TensorSpec("scores", (-1, 2), "float32"),)))
    runs.append((sum_rows,))
    return Group(versioned(SliceManifest(0, "m", HASH, tuple(entries))), tuple(runs))


def sum_rows(values: Values) -> Values:
    g = np.concatenate([values["g[1:0:2]"], values["g[1:2:4]"]], axis=1)
    return {"scores": np.stack([g[:, :, :2].sum(axis=(1, 2)), g[:, :, 2:].sum(axis=(1, 2))], axis=1)}


def make_stage(slices: Sequence[Slice] | Group, index: int, clock: Clock, **options: Any) -> Stage:
    """Return one of the stages that run these slices."""
    if isinstance(slices, Group):
        return make_member(slices, index, clock, **options)
    run, earlier, sends = slices[index]
    setup = small_stage(**options)._setup
    last = index == len(slices) - 1
    if index:
        taken = [TensorSpec(name, SHAPES[name], "float32") for names in earlier.values() for name in names]
        made = [TensorSpec(sends or "scores", SHAPES[sends or "scores"], "float32")]
        entry = SliceEntry("slice.tflite", "0" * 64, 0, 1, taken, made)
        setup = dataclasses.replace(setup, feeds={}, ports={}, wiring=Wiring(index, entry, {}, earlier, (), last))
    wiring = dataclasses.replace(setup.wiring, index=index, sends=(sends,) if sends else ())
    port = setup.result_port if last else None
    return Stage(dataclasses.replace(setup, run=run, wiring=wiring, result_port=port), clock=clock, monotonic=clock)


def make_member(group: Group, index: int, clock: Clock, **options: Any) -> Stage:
    """Return a stage of a pipeline with shards."""
    setup = small_stage(**options)._setup
    wiring, runs = find_wiring(group.manifest, TASK, index), group.runs[index]
    program = ShardProgram(wiring.entry, runs) if wiring.entry.steps else None
    run = runs[0] if program is None else program.run
    feeds = {source: setup.feeds[source] for source in wiring.sources}
    ports = {source: setup.ports[source] for source in wiring.sources}
    port = setup.result_port if wiring.answers else None
    made = dataclasses.replace(
        setup, wiring=wiring, run=run, program=program, feeds=feeds, ports=ports, result_port=port
    )
    return stage_of(made, clock=clock, monotonic=clock)


class FaultyBroker(MemoryBroker):
    """Drops and doubles messages when told to; remembers which outputs it was given."""

    def __init__(self, last: int, levels: Mapping[int, set[str]]) -> None:
        super().__init__()
        self.levels, self.flows = levels, dict[tuple[int, Key], set[str]]()
        self.drops, self.doubles, self.last = 0, 0, last
        self.routed = set[tuple[int, Key]]()  # by stage, the first window of a message

    def route(self, topic: str, payload: bytes, **options: Any) -> tuple[PublishOutcome, list[Any]]:
        read = TOPICS.read(topic)
        if read.kind not in (Kind.WINDOW, Kind.ACTIVATION, Kind.RESULT):
            return super().route(topic, payload, **options)
        if self.drops:
            self.drops -= 1
            outcome: tuple[PublishOutcome, list[Any]] = (PublishOutcome.ACKED, [])
        else:
            outcome = super().route(topic, payload, **options)
            if self.doubles:
                self.doubles -= 1
                super().route(topic, payload, **options)
        if outcome[0] is PublishOutcome.ACKED:
            self._note(topic, read.kind, read.levels, payload)
        return outcome

    def _note(self, topic: str, kind: Kind, levels: Sequence[str], payload: bytes) -> None:
        if kind is Kind.ACTIVATION:
            message = wire.decode(payload)
            index = int(levels[1].partition("-")[0])
            sent = self.flows.setdefault((index, (message.stream, message.seq)), set())
            sent.add(levels[1])
            if sent >= self.levels.get(index, {levels[1]}):
                self.routed.add((index, (message.stream, message.seq)))
        elif kind is Kind.RESULT:
            event = decode(Delivery(topic, payload, (0, 0)))
            assert isinstance(event, ResultsEvent)
            first = event.results[0]
            self.routed.add((self.last, (first.stream, first.seq)))


class CheckedBus:
    """A bus that reports each delivery before it is acknowledged."""

    def __init__(self, bus: MemoryBus, check: Callable[[Delivery], None]) -> None:
        self._bus, self._check = bus, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def acknowledge(self, delivery: Delivery) -> None:
        self._check(delivery)
        self._bus.acknowledge(delivery)


class StageProcess:
    """A stage with its session; another process after each crash."""

    def __init__(self, pipeline: Pipeline, index: int) -> None:
        self.pipeline, self.index, self.up = pipeline, index, False
        self.backlog = deque[tuple[float, Delivery]]()
        self.start()

    def start(self) -> None:
        pipeline = self.pipeline
        options = pipeline.stage_options if self.index == 0 else pipeline.stage_options | {"carry_on_after_s": None}
        self.stage = make_stage(pipeline.slices, self.index, pipeline.clock, **options)
        session = Session(f"stage-{self.index}", expiry_s=3600, receive_max=pipeline.receive_max)
        bus = CheckedBus(pipeline.broker.connect(session), lambda one: pipeline.check_ack(self.index, one))
        self.bus: Any = bus
        self.bus.subscribe(self.stage.filters)
        self.sender = Sender(self.bus, self.stage.counters, "-")
        self.backlog.clear()
        self.reconnects, self.up = 0, True

    def crash(self) -> None:
        if self.up:
            self.bus.crash()
        self.up = False

    def receive(self) -> None:
        """Take what came, in the order of streams that the test wants, and within each as it came."""
        if not self.up:
            return
        now, order = self.pipeline.clock.now, self.pipeline.order
        came = self.bus.poll(0.0)
        if self.bus.traffic.reconnects != self.reconnects:  # the broker sends again what was not acknowledged
            self.reconnects = self.bus.traffic.reconnects
            self.backlog.clear()
        self.backlog += sorted(((now, one) for one in came), key=lambda one: order.index(stream_of(one[1])))

    def step(self, most: int = 10**9) -> None:
        """Handle what came, at most so many messages."""
        if not self.up:
            return
        self.receive()
        for _ in range(min(most, len(self.backlog))):
            at, delivery = self.backlog.popleft()
            for outgoing in self.stage.handle(delivery, at):
                self.sender.send(outgoing)
        for _ in range(most):
            if not self.stage.ready:
                break
            for outgoing in self.stage.step():
                self.sender.send(outgoing)
            self.receive()  # what it gave leaves before the next step
        for outgoing in self.stage.tick(self.backlog[0][0] if self.backlog else self.pipeline.clock.now):
            self.sender.send(outgoing)
        self.sender.retry(float("inf"))

    def holds_another(self, delivery: Delivery) -> bool:
        """Return whether the broker has the same message once more for this stage, not acknowledged."""
        session = self.bus._account
        if session is None:
            return True  # stale: the broker sends it again
        return sum(one.payload == delivery.payload for one in (*session.unacknowledged.values(), *session.queue)) > 1


def stream_of(delivery: Delivery) -> str:
    read = TOPICS.read(delivery.topic)
    return read.levels[2] if read.kind is Kind.ACTIVATION else read.levels[0]


class SensorProcess:
    """A sensor of one source and all streams; what it sends are the windows that were captured since it began."""

    def __init__(self, pipeline: Pipeline, source: str) -> None:
        self.pipeline, self.source, self.run = pipeline, source, next(pipeline.runs)
        reducers = {source: make_reducer("none", LENGTH, CHANNELS[source])}
        self.sensor = Sensor(SensorSetup(TOPICS, 1, reducers, frozenset({1})))
        self.buffer = RetransmitBuffer([source], pipeline.clock.now)
        live, give_up_s = pipeline.live, GIVE_UP_S if pipeline.live else 0.0
        tracked = Retransmitter(self.sensor, self.buffer, TOPICS, give_up_s, expires=live, partial=live, run=self.run)
        self.flow: FlowController = tracked if pipeline.tracked else Untracked(self.sensor, self.run)
        self.bus = pipeline.broker.connect(Session(f"sensor-{source}", expiry_s=300))
        self.flow.expect(pipeline.streams)
        self.bus.subscribe(self.flow.filters)
        self.sender = Sender(self.bus, self.sensor.counters, "-")
        self.waiting = deque[list[Window]]()
        self.sent = set[Key]()

    def capture(self, windows: list[Window]) -> None:
        self.waiting.append(windows)

    def step(self) -> None:
        now = self.pipeline.clock.now
        for delivery in self.bus.poll(0.0):
            self.bus.acknowledge(delivery)
            self.flow.take(delivery, now)
        self.sender.retry(float("inf"))
        while self.bus.connected and self.waiting and self._may_send(self.waiting[0][0].stream):
            windows = self.waiting.popleft()
            captured = [self.pipeline.captured[one.stream, one.seq, self.source] for one in windows]
            self.sent |= {(one.stream, one.seq) for one in windows}
            self._send(self.flow.send(windows, captured, now))
        blocked, forgotten = self.sender.kept > 0, self.bus.traffic.forgotten
        self._send(self.flow.again(now, connected=self.bus.connected, blocked=blocked, forgotten=forgotten))

    def _may_send(self, stream: str) -> bool:
        if self.pipeline.live:  # a device does not wait for the stages, see LiveLoop
            return self.flow.open < MOST_OUT
        return self.flow.room is None or self.flow.open_of(stream) < self.flow.room * self.pipeline.batch

    def _send(self, outgoing: list[Outgoing]) -> None:
        for one in outgoing:
            self.sender.send(one)

    @property
    def not_awaited(self) -> dict[Key, SentState]:
        """The windows that this sensor counted as lost or incomplete."""
        over = (SentState.LOST, SentState.INCOMPLETE)
        return {key: state for key, (state, _) in self.buffer._closed.items() if state in over}

    @property
    def open(self) -> set[Key]:
        return set(self.buffer._batch_of)


class Watcher:
    """A sink with a session that outlives it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.bus = pipeline.broker.connect(Session("watch", expiry_s=3600))
        self.bus.subscribe([TOPICS.result("+")])
        self.sink, self.results = Sink(), list[Result]()

    def step(self) -> None:
        for delivery in self.bus.poll(0.0):
            self.results += self.sink.handle(delivery)
            self.bus.acknowledge(delivery)


class Pipeline:
    """Sensors, stages and a watcher, and what a test does to them."""

    streams = ("p", "q")

    def __init__(
        self,
        *,
        slices: Sequence[Slice] | Group,
        tracked: bool,
        live: bool,
        batch: int,
        receive_max: int,
        stage_options: Mapping[str, Any],
    ) -> None:
        self.slices = slices
        self.tracked, self.live, self.batch, self.receive_max = tracked, live, batch, receive_max
        self.stage_options: dict[str, Any] = dict(stage_options)
        levels = dict[int, set[str]]()
        if isinstance(slices, Group):
            wirings = [find_wiring(slices.manifest, TASK, index) for index in range(len(slices))]
            levels = {one.index: {flow_level(one.index, flow) for flow in one.messages} for one in wirings}
        self.broker, self.clock = FaultyBroker(len(slices) - 1, levels), Clock(1000.0)
        self.runs: Iterator[int] = itertools.count(1)
        self.captured: dict[tuple[str, int, str], float] = {}
        self.count = dict.fromkeys(self.streams, 0)
        self.order: Sequence[str] = self.streams
        self.early: list[str] = []  # what was acknowledged although nothing safe had followed from it
        self.orphans = set[Key]()  # windows that a sensor had sent, or was about to, when it was killed
        self.partly = set[Key]()  # windows that not all sensors have
        self.stages = [StageProcess(self, index) for index in range(len(slices))]
        self.watchers = [Watcher(self)]
        self.sensors = {source: SensorProcess(self, source) for source in SOURCES}

    def capture(self, stream: str, sources: Sequence[str] = SOURCES) -> None:
        """Give sensors of these sources the next windows of a stream, as many as a message carries."""
        seqs = range(self.count[stream], self.count[stream] + self.batch)
        self.count[stream] += self.batch
        if len(sources) < len(SOURCES):
            self.partly |= {(stream, seq) for seq in seqs}
        for skew, source in enumerate(SOURCES):
            if source in sources:
                for seq in seqs:
                    self.captured[stream, seq, source] = self.clock.now + skew / 1000
                made = [Window(stream, seq, seq, {source: samples_of(stream, seq, source)}, None) for seq in seqs]
                self.sensors[source].capture(made)

    def step(self, seconds: float) -> None:
        self.clock.now += seconds
        for sensor in self.sensors.values():
            sensor.step()
        for stage in self.stages:
            stage.step()
        self.watchers[-1].step()

    def check_ack(self, index: int, delivery: Delivery) -> None:
        """Note what is acknowledged although its output is not safe and no sensor keeps, or has counted, its window."""
        message = wire.decode(delivery.payload)
        key = (message.stream, message.seq)
        if (index, key) in self.broker.routed or self.orphans & {(key[0], key[1] + one) for one in range(self.batch)}:
            return
        if isinstance(self.slices, Group) and self._can_do_without(index, key):
            return
        read = TOPICS.read(delivery.topic)
        makers = [self.sensors[read.levels[1]]] if read.kind is Kind.WINDOW else list(self.sensors.values())
        windows = {(key[0], key[1] + offset) for offset in range(message.count)}
        kept = self.tracked and any(windows & (one.open | one.not_awaited.keys()) for one in makers)
        if not kept and not self.stages[index].holds_another(delivery):
            self.early.append(f"stage {index} acknowledged {key} although nothing safe had followed from it")

    def _can_do_without(self, index: int, key: Key) -> bool:
        """Return whether a shard sent its share of each coded tensor, or all others did."""
        assert isinstance(self.slices, Group)
        sent = set[str]().union(*(levels for (_, one), levels in self.broker.flows.items() if one == key))
        own = [level for level in self.broker.levels.get(index, ()) if any(level in one for one in self.slices.coded)]
        others = [next(one for one in self.slices.coded if level in one) - {level} for level in own]
        return bool(own) and all(level in sent or rest <= sent for level, rest in zip(own, others, strict=True))

    def kill_sensor(self, source: str) -> None:
        """Start a sensor again, as a device that lost its power: what it knew is gone, and it sends new windows."""
        old = self.sensors[source]
        waiting = {(one.stream, one.seq) for windows in old.waiting for one in windows}
        self.orphans |= (old.open | waiting) if self.tracked else old.sent | waiting
        self.partly |= waiting
        old.bus.crash()
        self.sensors[source] = SensorProcess(self, source)

    def restart_watcher(self) -> None:
        self.watchers[-1].bus.crash()
        self.watchers.append(Watcher(self))

    def restart_broker(self, *, forget: bool) -> None:
        """Cut all connections; with `forget`, lose all that the broker knew, once the watcher has what came."""
        self.watchers[-1].step()
        self.broker.stop()
        if forget:
            self.broker.forget()
        self.broker.start()
        self.watchers[-1].step()  # back at once, so that it sees what sensors see
        for stage in self.stages:
            stage.receive()  # back before the sensors, so that nothing is published to nobody

    def settle(self, seconds: float) -> None:
        """Heal everything, and go on until no window is open and nothing is under way, at most so long."""
        self.broker.drops = self.broker.doubles = 0
        for stage in self.stages:
            if not stage.up:
                stage.start()
        began, quiet = self.clock.now, 0
        while quiet < 40 and self.clock.now < began + seconds:
            self.step(0.25 if self.clock.now < began + 100.0 else 2.0)  # later, only what is given up is awaited
            quiet = 0 if self.is_busy else quiet + 1

    @property
    def is_busy(self) -> bool:
        sensors = any(one.flow.open or one.waiting or one.sender.pending for one in self.sensors.values())
        return sensors or any(one.backlog or one.stage.waiting or one.sender.pending for one in self.stages)
