"""Measure what a model costs on this device: time, memory, messages, link."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from har_edge.config.task import StreamTask, Task
from har_edge.config.wiring import Wiring
from har_edge.errors import BrokerError, MessageError, ModelError
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.load_check import default_check
from har_edge.inference.sampling import sample
from har_edge.inference.segment_timing import (
    REPEATS,
    ROUNDS,
    Segment,
    fastest_times,
    measure_segments,
    overhead_s,
    segment_bounds,
    time_whole,
)
from har_edge.mqtt.bus import Bus, OnOutcome, PublishOutcome
from har_edge.mqtt.measure.link_benchmark import SMALL, benchmark_link
from har_edge.planner.profile import VERSION, LinkCost, MemoryCost, MessageCost, Profile
from har_edge.planner.regression import segment_costs
from har_edge.planner.slice_graph import tensor_bytes
from har_edge.protocol import wire
from har_edge.protocol.topics import Topics
from har_edge.runtime import resident_memory
from har_edge.runtime.stage.loop import StageLoop
from har_edge.runtime.stage.setup import Array, Run, StageSetup
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.stop import Stop
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from har_edge.tflite.model import Model
from har_edge.tflite.slices import slice_model, write_slice, write_whole

Watch = Callable[[Iterable[Segment], int], Iterable[Segment]]
_MEMORY_TIMEOUT_S = 300.0
_NAME = "profile"
_LARGE = 256 * 1024
# Messages under way at once, and how often they come round; what is touched between them is more than most caches hold.
_UNDER_WAY, _WARM_UP, _LEAST_ROUNDS, _TOUCHED = 4, 10, 10, 4 * 2**20
_MESSAGES_S, _MESSAGES_TIMEOUT_S = 1.5, 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Segments that were timed, by their first operator; the whole; what each run costs; and what went wrong."""

    bounds: tuple[int, ...]
    seconds: dict[int, float]
    whole_s: float | None
    overhead_s: float
    remarks: tuple[str, ...]


def time_model(
    model: Model,
    *,
    threads: int = 1,
    repeats: int = REPEATS,
    others: Sequence[Profile] = (),
    watch: Watch = lambda segments, total: segments,
    clock: Callable[[], float] = time.perf_counter,
    delegate: str | None = None,
) -> Timing:
    """Time every segment that the runtime can run by itself, and the whole. `watch` sees the segments of each round.

    `others` are profiles of other models on this device; they say what a run costs where this model does not.
    """
    chosen = Delegate(delegate or Delegate.XNNPACK)
    default_check()(model.data, model.name, chosen.value)
    bounds = segment_bounds(model)
    measured: list[Segment] = []
    remarks: list[str] = []
    whole: float | None = None
    try:
        passing = measure_segments(model, repeats=repeats, threads=threads, clock=clock, delegate=chosen)
        for segment in watch(passing, ROUNDS * (len(bounds) - 1)):
            measured.append(segment)
    except ModelError as error:
        remarks.append(f"estimated from operation counts from there on: {error}")
    try:
        whole = time_whole(model, repeats=repeats, threads=threads, clock=clock, delegate=chosen)
    except ModelError as error:
        remarks.append(str(error))
    measured = fastest_times(measured)
    if len(measured) == len(bounds) - 1 and whole is not None:
        each = overhead_s(measured, whole)
    else:
        each = typical_overhead([segment.seconds for segment in measured], others)
    return Timing(tuple(bounds), {s.start: s.seconds for s in measured}, whole, each, tuple(remarks))


def typical_overhead(seconds: Sequence[float], others: Sequence[Profile]) -> float:
    """Return what a run costs whatever it runs: as in other profiles, else the quickest segment as an upper bound."""
    return median(profile.overhead_s for profile in others) if others else min(seconds, default=0.0)


def make_profile(
    model: Model,
    device: str,
    timing: Timing,
    *,
    threads: int = 1,
    others: Sequence[Profile] = (),
    delegate: str | None = None,
) -> Profile:
    """Return the profile that a timing gives; what was not timed is estimated. Raises ModelError when nothing was.

    `others` and the timing were computed by `delegate`.
    """
    segments, fit = segment_costs(model, timing.bounds, timing.seconds, timing.overhead_s, others)
    return Profile(
        version=VERSION,
        device=device,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        model=model.name,
        model_sha256=model.sha256,
        threads=threads,
        segments=segments,
        overhead_s=timing.overhead_s,
        whole_s=timing.whole_s,
        fit=fit,
        delegate="none" if delegate == "none" else msgspec.UNSET,
    )


def measure_memory(model: Model, bounds: Sequence[int], delegate: str | None = None) -> MemoryCost | None:
    """Return what a stage process takes, and what the model adds; None where this cannot be measured.

    It needs Linux and a model that the runtime can run. XNNPACK packs the weights anew, so `delegate` matters.
    """
    if not resident_memory.STATUS.is_file():
        return None
    pieces = slice_model(model, bounds[1:-1])
    small = min((write_slice(model, piece) for piece in pieces), key=len)
    with tempfile.TemporaryDirectory(prefix="har-edge-profile-") as folder:
        paths = [Path(folder) / name for name in ("small.tflite", "whole.tflite")]
        for path, content in zip(paths, (bytes(small), write_whole(model)), strict=True):
            path.write_bytes(content)
        command = [sys.executable, "-m", "har_edge.runtime.resident_memory", *map(str, paths), delegate or "xnnpack"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MEMORY_TIMEOUT_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    base, growth, peak = map(int, done.stdout.split()[-3:])
    size = int(tensor_bytes(model, bounds)[0, len(bounds) - 1])
    return MemoryCost(base, max(0, growth), max(peak, base), size)


def measure_messages(
    bus: Bus, device: str, broker: str, *, work: Callable[[], object] | None = None
) -> tuple[MessageCost, LinkCost]:
    """Return what a message costs a stage on its way in or out, and the link to the broker.

    A stage is run on the bus as it is anywhere, on messages to itself, with `work` (by default touching memory) in the
    place of its model: what handles the next message is out of the processor's caches then, which costs several times
    more than in a plain loop. Raises BrokerError when messages do not come back.
    """
    topics = Topics("har", f"profile-{device}")
    echo = benchmark_link(bus, topics.activation(0, 0, _NAME))
    work = work or partial(np.add, memory := np.zeros(_TOUCHED, np.uint8), 1, memory)
    small, large = (_message_s(bus, topics, epoch, size, work) for epoch, size in enumerate((SMALL, _LARGE), 1))
    byte_s = max(0.0, (large - small) / (_LARGE - SMALL))
    message = MessageCost(max(0.0, small - byte_s * SMALL), byte_s, broker)
    return message, LinkCost(echo.round_trip_s, echo.bytes_per_s)


def find_work(model: Model, delegate: str | None = None) -> Callable[[], object] | None:
    """Return what runs a model once on made-up inputs; None where the runtime cannot run it."""
    chosen = Delegate(delegate or Delegate.XNNPACK)
    try:
        default_check()(model.data, model.name, chosen.value)
        interpreter = Interpreter(write_whole(model), delegate=chosen)
        values = sample(interpreter.inputs, np.random.default_rng(0))
        interpreter.run(values)
    except (MessageError, ModelError):
        return None
    return partial(interpreter.run, values)


class _Ring:
    """A bus on which messages go round until `turning` is false: what is published from then on is gone."""

    def __init__(self, bus: Bus) -> None:
        self.turning = True
        self.traffic, self.connected = bus.traffic, True
        self.subscribe, self.unsubscribe, self.acknowledge = bus.subscribe, bus.unsubscribe, bus.acknowledge
        self.poll, self.close = bus.poll, bus.close
        self._bus = bus

    @property
    def unsent(self) -> int:
        return self._bus.unsent

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        if self.turning:
            self._bus.publish(topic, payload, retain=retain, on_outcome=on_outcome)
        elif on_outcome is not None:
            on_outcome(PublishOutcome.ACKED)


def _message_s(bus: Bus, topics: Topics, epoch: int, size: int, work: Callable[[], object]) -> float:
    """Return the processor seconds of a stage for one message of so many bytes, in or out, without those of `work`.

    Its output is its input, so that a few messages go round and round; copied in and out, as a runtime does.
    """
    spent, rounds, held = 0.0, 0, np.zeros((1, size), np.int8)

    def run(values: Mapping[str, Array]) -> Mapping[str, Array]:
        nonlocal spent, rounds
        np.copyto(held, values[_NAME])
        before = time.thread_time()
        work()
        spent, rounds = spent + time.thread_time() - before, rounds + 1
        return {_NAME: held.copy()}

    ring = _Ring(bus)
    loop = StageLoop(ring, _round_stage(topics, epoch, size, run), Stop())
    for number in range(_UNDER_WAY):
        message = wire.Message(_NAME, number, epoch, (0.0,), {_NAME: np.zeros((1, size), np.int8)})
        bus.publish(topics.activation(epoch, 0, _NAME), wire.encode(message))

    def turn(count: int) -> None:
        until, deadline = rounds + count, time.monotonic() + _MESSAGES_TIMEOUT_S
        while rounds < until:
            loop.turn()
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"messages of {size} bytes came back {rounds} times within {_MESSAGES_TIMEOUT_S:.0f} s; look at "
                    "the link and the broker"
                )

    turn(_WARM_UP)
    before, worked, begun, until = time.thread_time(), spent, rounds, time.monotonic() + _MESSAGES_S
    while time.monotonic() < until or rounds < begun + _LEAST_ROUNDS:
        turn(1)
    seconds = (time.thread_time() - before - (spent - worked)) / (rounds - begun) / 2
    ring.turning = False
    turn(_UNDER_WAY)
    return seconds


def _round_stage(topics: Topics, epoch: int, size: int, run: Run) -> Stage:
    """Return a stage that takes what it sends."""
    tensors = (TensorSpec(_NAME, (1, size), "int8"),)
    setup = StageSetup(
        topics=topics,
        epoch=epoch,
        task=Task(StreamTask(_NAME, 1.0, 1, 1), {}, "", [], []),
        wiring=Wiring(0, SliceEntry("", "", 0, 1, tensors, tensors), {}, {0: (_NAME,)}, (_NAME,), False, (0,)),
        run=run,
        result_port=None,
        feeds={},
        max_payload_bytes=2 * _LARGE,
        join_timeout_s=_MESSAGES_TIMEOUT_S,
        join_capacity=_UNDER_WAY,
        remembers=False,  # the same windows come round and round
    )
    return Stage(setup, clock=time.time, monotonic=time.monotonic)


def estimate(model: Model, device: str, others: Sequence[Profile], delegate: str | None = None) -> Profile:
    """Return a profile of a model that was never run here, estimated from others; memory and messages are theirs.

    The memory is that of the largest of the other models, since the bytes for each byte of tensors change little.
    Raises ModelError when they measured nothing.
    """
    timing = Timing(tuple(segment_bounds(model)), {}, None, typical_overhead([], others), ())
    profile = make_profile(model, device, timing, others=others, delegate=delegate)
    weighed = [other for other in others if other.memory is not None]
    largest = max(weighed, key=lambda other: other.memory.tensor_bytes if other.memory else 0, default=None)
    heard = [other for other in others if other.message is not None]
    return msgspec.structs.replace(
        profile,
        memory=largest.memory if largest else None,
        message=heard[-1].message if heard else None,
        link=heard[-1].link if heard else None,
    )
