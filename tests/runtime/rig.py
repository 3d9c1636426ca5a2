"""Stages and sensors over the memory bus, one step at a time, so that a test decides who does what when."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.config.pipeline import Pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.config.wiring import Wiring
from har_edge.data.recording import Window
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Port
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol import wire
from har_edge.protocol.results import Result
from har_edge.protocol.topics import Topics
from har_edge.runtime.build import build_stage
from har_edge.runtime.sender import Sender
from har_edge.runtime.sink import Sink
from har_edge.runtime.stage.setup import StageSetup
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from tests.protocol.reading import read_results

TOPICS = Topics("har", "test")
LENGTH = 4
TASK = Task(
    stream=StreamTask("mhealth", 50.0, LENGTH, 2),
    inputs={"chest": SourceInput("c"), "arm": SourceInput("a")},
    output="scores",
    labels=["still", "moving"],
    label_ids=[1, 4],
)
CHANNELS = {"chest": 2, "arm": 3}


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def sums(values):
    """Stand for a slice: the sums of the sources as scores, and as an activation."""
    c, a = values["c"], values["a"]
    scores = np.stack([c.sum(axis=(1, 2)), a.sum(axis=(1, 2))], axis=1)
    return {"scores": scores, "both": np.concatenate([c, a], axis=2)}


def small_stage(
    *,
    run=sums,
    reducer="none",
    sends=(),
    timeout_s=30.0,
    capacity=256,
    limit=100_000,
    dynamic=True,
    clock=None,
    earlier=None,
    dtype="float32",
    carry_on_after_s=None,
    epoch=1,
    **options,
) -> Stage:
    """Return a stage of two sources, chest [L, 2] -> c and arm [L, 3] -> a, that answers with two scores."""
    first = -1 if dynamic else 1
    ports = {"chest": "c", "arm": "a"}
    specs = [TensorSpec(name, [first, LENGTH, CHANNELS[source]], dtype) for source, name in ports.items()]
    made = [TensorSpec("scores", [first, 2], "float32")]
    taken = [TensorSpec(name, [first, 5], "float32") for names in (earlier or {}).values() for name in names]
    entry = SliceEntry("slice.tflite", "0" * 64, 0, 1, [*([] if earlier else specs), *taken], made)
    scale = (0.0, 0) if dtype == "float32" else (0.5, 3)
    inputs = {
        source: Port(name, (first, LENGTH, CHANNELS[source]), np.dtype(dtype), *scale) for source, name in ports.items()
    }
    feeds = {
        source: make_input_adapter(
            source, make_reducer(reducer, LENGTH, CHANNELS[source]), port, LENGTH, CHANNELS[source]
        )
        for source, port in inputs.items()
    }
    setup = StageSetup(
        topics=TOPICS,
        epoch=epoch,
        task=TASK,
        wiring=Wiring(1 if earlier else 0, entry, {} if earlier else ports, earlier or {}, sends, True),
        run=run,
        result_port=Port("scores", (first, 2), np.dtype("float32"), 0.0, 0),
        feeds={} if earlier else feeds,
        max_payload_bytes=limit,
        join_timeout_s=timeout_s,
        join_capacity=capacity,
        ports={} if earlier else inputs,
        carry_on_after_s=carry_on_after_s,
        **options,
    )
    return Stage(setup, clock=Clock(1000.0), monotonic=clock or Clock())


def samples(source, seed=0, count=1, dtype=np.float32):
    """Return count windows of one source: [count, L, channels]."""
    values = np.random.default_rng([seed, CHANNELS[source]]).normal(0, 10, (count, LENGTH, CHANNELS[source]))
    return values.astype(dtype)


_tokens = iter(range(1, 10**9))


def part(source, seq=0, *, stream="s", epoch=1, captured=(5.0,), truth=None, tensors=None, topic=None, duplicate=False):
    """Return the delivery of one source's window."""
    tensors = {source: samples(source, seq, len(captured))} if tensors is None else tensors
    payload = wire.encode(wire.Message(stream, seq, epoch, tuple(captured), tensors, truth))
    return Delivery(topic or TOPICS.window(stream, source), payload, (1, next(_tokens)), duplicate=duplicate)


def windows_of(pipeline: Pipeline, stream: str, count: int, seed: int = 0) -> list[Window]:
    """Return made-up windows in the shape the pipeline takes."""
    rng, task = np.random.default_rng(seed), pipeline.task
    shapes = {source: (task.stream.length, pipeline.channels(source)) for source in task.inputs}
    return [
        Window(
            stream,
            seq,
            seq * task.stream.hop,
            {source: rng.normal(0, 6, shape).astype(np.float32) for source, shape in shapes.items()},
            task.label_ids[seq % len(task.label_ids)] if seq % 3 else None,
        )
        for seq in range(count)
    ]


@dataclass
class Node:
    """A stage on a bus of its own, stepped by hand."""

    broker: MemoryBroker
    pipeline: Pipeline
    index: int
    receive_max: int = 1024
    clock: Clock | None = None
    stage: Stage = field(init=False)
    bus: MemoryBus = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start, or start again after `crash`: another process, the same session."""
        self.stage = build_stage(self.pipeline, self.index)
        if self.clock is not None:
            self.stage = Stage(self.stage._setup, clock=self.clock, monotonic=self.clock)
        session = Session(f"stage-{self.index}", expiry_s=3600, receive_max=self.receive_max)
        self.bus = self.broker.connect(session)
        self.bus.subscribe(self.stage.filters)
        self.sender = Sender(self.bus, self.stage.counters, "start the next stage")

    def step(self, keep_going=lambda: True) -> bool:
        """Do one turn of the loop; crash between two messages when `keep_going` says so. Tell whether anything came."""
        deliveries = self.bus.poll(0)
        for delivery in deliveries:
            for outgoing in self.stage.handle(delivery):
                self.sender.send(outgoing)
            if not keep_going():
                self.crash()
                return True
        for outgoing in self.stage.tick():
            self.sender.send(outgoing)
        self.sender.retry(float("inf"))
        return bool(deliveries) or self.bus.unsent > 0

    def crash(self) -> None:
        self.bus.crash()
        self.start()


@dataclass
class Watcher:
    """A sink with a session that outlives it."""

    broker: MemoryBroker
    topics: Topics
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    sink: Sink = field(default_factory=Sink)

    def __post_init__(self) -> None:
        self.bus = self.broker.connect(Session("watch", expiry_s=3600))
        self.bus.subscribe([self.topics.result("+")])

    def step(self) -> None:
        for delivery in self.bus.poll(0):
            self.bus.acknowledge(delivery)
            for result in self.sink.handle(delivery):
                assert (result.stream, result.seq) not in self.results, "a window came twice"
                self.results[result.stream, result.seq] = result


def result_of(outgoing) -> list[Result]:
    """Return the results among what a stage publishes."""
    return [result for one in outgoing if "/result/" in one.topic for result in read_results(one)]
