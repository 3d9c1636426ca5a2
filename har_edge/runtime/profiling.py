"""Measure what a model costs on this device: time, memory, messages, link."""

from __future__ import annotations

import contextlib
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from har_edge.config.task import StreamTask, Task
from har_edge.config.wiring import Wiring
from har_edge.errors import BrokerError, CutError, MessageError, ModelError
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
from har_edge.planner.profile import VERSION, LinkCost, MemoryCost, MessageCost, MessageRate, Profile
from har_edge.planner.regression import segment_costs
from har_edge.planner.slice_graph import tensor_bytes
from har_edge.protocol import wire
from har_edge.protocol.topics import Topics
from har_edge.runtime import resident_memory
from har_edge.runtime.stage.loop import StageLoop
from har_edge.runtime.stage.setup import Array, Run, StageSetup
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.stop import Stop
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.manifest import SliceEntry, TensorSpec
from har_edge.tflite.model import Model
from har_edge.tflite.schema import tflite
from har_edge.tflite.slices import slice_model, write_slice, write_whole
from har_edge.tflite.split.arithmetic import count_macs

Watch = Callable[[Iterable[Segment], int], Iterable[Segment]]
_MEMORY_TIMEOUT_S = 300.0
_NAME = "profile"
_LARGE = 256 * 1024
# Messages under way at once, and how often they come round; what is touched between them is more than most caches hold.
_UNDER_WAY, _WARM_UP, _LEAST_ROUNDS, _TOUCHED = 4, 10, 10, 4 * 2**20
_MESSAGES_S, _MESSAGES_TIMEOUT_S = 1.5, 60.0
# A convolution with 9 MiB of weights, its rows, and what is touched between two runs: more than caches hold.
_CHANNELS, _CONVOLUTION_ROWS, _CONVOLUTION_RUNS, _TOUCHED_BETWEEN = 512, (1, 8), 9, 48 * 2**20
_PARTS = (1 / 256, 1 / 32, 1 / 8)  # of the model's operations, between two messages


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


def measure_weight_rate(delegate: str | None = None) -> float | None:
    """Return the bytes of weights that a run brings from memory in a second, None where rows alone cost time.

    Measured with a convolution whose weights have left the caches, as those of one shard do while others run: its
    time for one row and for several gives the time without any row.
    """
    runs = {rows: _run_once(_write_convolution(rows), delegate) for rows in _CONVOLUTION_ROWS}
    memory, seconds = np.zeros(_TOUCHED_BETWEEN, np.uint8), {rows: list[float]() for rows in runs}
    for _ in range(_CONVOLUTION_RUNS):
        for rows, run in runs.items():
            np.add(memory, 1, memory)
            began = time.thread_time()
            run()
            seconds[rows].append(time.thread_time() - began)
    (few, least), (many, most) = ((rows, median(found)) for rows, found in seconds.items())
    without = least - (most - least) / (many - few) * few
    return 9 * _CHANNELS**2 * 4 / without if without > 0 else None


def _write_convolution(rows: int) -> bytes:
    """Write a convolution of 3 x 3 that makes so many rows of 14."""
    builder = GraphBuilder()
    taken = builder.empty((1, rows + 2, 16, _CHANNELS), name="input")
    weights = builder.constant(np.full((_CHANNELS, 3, 3, _CHANNELS), 0.5, np.float32))
    options = tflite.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = tflite.Padding.VALID, 1, 1
    bias = builder.constant(np.zeros(_CHANNELS, np.float32))
    made = builder.add("CONV_2D", [taken, weights, bias], (1, rows, 14, _CHANNELS), options)
    return bytes(builder.encode([taken], [made]))


def measure_messages(
    bus: Bus,
    device: str,
    broker: str,
    *,
    work: Callable[[], object] | None = None,
    shorter: Sequence[Callable[[], object]] = (),
) -> tuple[MessageCost, LinkCost]:
    """Return what a message costs a stage on its way in or out, and the link to the broker.

    A stage is run on the bus as it is anywhere, on messages to itself, with `work` (by default touching memory) in the
    place of its model: what handles the next message is out of the processor's caches then, which costs several times
    more than in a plain loop. It is measured as well with each `shorter` work in the place of the model. Raises
    BrokerError when messages do not come back.
    """
    topics = Topics("har", f"profile-{device}")
    echo = benchmark_link(bus, topics.activation(0, 0, _NAME))
    work = work or partial(np.add, memory := np.zeros(_TOUCHED, np.uint8), 1, memory)
    whole = _message_rate(bus, topics, 1, work)
    parts = [_message_rate(bus, topics, 3 + 2 * number, one) for number, one in enumerate(shorter)]
    return MessageCost(
        whole.seconds, whole.seconds_per_byte, broker, tuple(_rising(parts, whole)) if parts else msgspec.UNSET
    ), LinkCost(echo.round_trip_s, echo.bytes_per_s)


def _message_rate(bus: Bus, topics: Topics, epoch: int, work: Callable[[], object]) -> MessageRate:
    """Return what messages cost with some work between them, from small and large ones."""
    (small, work_s), (large, _) = (
        _message_s(bus, topics, epoch + k, size, work) for k, size in enumerate((SMALL, _LARGE))
    )
    byte_s = max(0.0, (large - small) / (_LARGE - SMALL))
    return MessageRate(work_s, max(0.0, small - byte_s * SMALL), byte_s)


def _rising(parts: Sequence[MessageRate], whole: MessageRate) -> Iterable[MessageRate]:
    """Yield rates whose messages cost no more than with more work between them, which only noise contradicts."""
    found, most = list[MessageRate](), whole
    for rate in sorted(parts, key=lambda one: one.work_s, reverse=True):
        if rate.work_s < most.work_s:
            each, byte = min(rate.seconds, most.seconds), min(rate.seconds_per_byte, most.seconds_per_byte)
            most = MessageRate(rate.work_s, each, byte)
            found.append(most)
    return reversed(found)


def find_work(model: Model, delegate: str | None = None) -> Callable[[], object] | None:
    """Return what runs a model once on made-up inputs; None where the runtime cannot run it."""
    try:
        default_check()(model.data, model.name, Delegate(delegate or Delegate.XNNPACK).value)
        return _run_once(write_whole(model), delegate)
    except (MessageError, ModelError):
        return None


def find_shorter_work(model: Model, delegate: str | None = None) -> list[Callable[[], object]]:
    """Return works to measure messages with: none at all, and parts of the model, such as shards of layers have."""
    found: list[Callable[[], object]] = [lambda: None]
    for start, stop in _find_parts(model):
        piece = slice_model(model, [cut for cut in (start, stop) if 0 < cut < len(model.main.operators)])[start > 0]
        with contextlib.suppress(CutError, MessageError, ModelError):  # the runtime cannot run each part by itself
            found.append(_run_once(write_slice(model, piece), delegate))
    return found


def _find_parts(model: Model) -> list[tuple[int, int]]:
    """Return segments, and first operators, whose operations are nearest to each of _PARTS of the model's."""
    bounds, total = segment_bounds(model), count_macs(model.main, range(len(model.main.operators)))
    ranges = {*pairwise(bounds), *((0, bound) for bound in bounds[1:-1])} - {(0, bounds[-1])}
    shares = {each: macs / total for each in sorted(ranges) if (macs := count_macs(model.main, range(*each)))}
    chosen = [min(shares, key=lambda each: abs(math.log(shares[each] / part))) for part in _PARTS if shares]
    return list(dict.fromkeys(chosen))


def _run_once(content: bytes | memoryview, delegate: str | None) -> Callable[[], object]:
    interpreter = Interpreter(bytes(content), delegate=Delegate(delegate or Delegate.XNNPACK))
    values = sample(interpreter.inputs, np.random.default_rng(0))
    interpreter.run(values)
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


def _message_s(bus: Bus, topics: Topics, epoch: int, size: int, work: Callable[[], object]) -> tuple[float, float]:
    """Return the processor seconds of a stage for one message of so many bytes, in or out, and those of `work`.

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
    work_s = (spent - worked) / (rounds - begun)
    ring.turning = False
    turn(_UNDER_WAY)
    return seconds, work_s


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
