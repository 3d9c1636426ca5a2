"""Time the segments of a model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Array, Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.tflite.cuts import list_cuts, slice_refusal, trace_dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.slices import Slice, slice_model, write_slice, write_whole

# Consecutive runs of each segment, and the number of rounds over all segments.
REPEATS, ROUNDS = 5, 3
_WARM_UP = 2
_SEED = 0
# Bytes touched before each run of a model larger than a core's own cache: more than even shared caches hold.
_TOUCHED = 48 * 2**20
# The second-level cache of a small device (Raspberry Pi 3: 512 KiB). A smaller model stays there between two runs.
_CACHE = 512 * 2**10


@dataclass(frozen=True, slots=True)
class Segment:
    """The smallest part that a cut can move: operators [start, stop) between two neighbouring legal cuts.

    `seconds` is the time of one run by itself, the median of a round.
    """

    start: int
    stop: int
    seconds: float


def segment_bounds(model: Model) -> list[int]:
    """Return the legal cuts that can all be made at once, with 0 and the number of operators around them."""
    graph, flow = model.main, trace_dataflow(model)
    n = len(graph.operators)
    bounds = [0]
    for cut in list_cuts(model):
        if cut.refusal is None and slice_refusal(graph, flow, bounds[-1], cut.index) is None:
            bounds.append(cut.index)
    while len(bounds) > 1 and slice_refusal(graph, flow, bounds[-1], n) is not None:
        bounds.pop()
    return [*bounds, n]


def measure_segments(
    model: Model,
    *,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    delegate: Delegate = Delegate.XNNPACK,
) -> Iterator[Segment]:
    """Time every segment on the results of the segments before it, and yield each as soon as it is known.

    Each round yields every segment once; `fastest_times` combines the rounds. The function touches other memory before
    each run, because in a pipeline other programs run in between and push the weights out of the cache, unless the
    whole model fits there. Copies of inputs do not count, since a slice copies only at its ends. Only the inputs of the
    model are random: a crossing tensor may be a shape or an index, for which only true values run.

    Raises ModelError when the runtime cannot run one of the segments.
    """
    bounds = segment_bounds(model)
    pieces = slice_model(model, bounds[1:-1])
    for _ in range(rounds):
        yield from _round(model, pieces, repeats, threads, clock, delegate)


def fastest_times(segments: Iterable[Segment]) -> list[Segment]:
    """Return each segment once, in order, with the least of its times.

    Other programs on the machine make a segment slower and never faster. They may disturb many segments in a row, and
    be gone a round later.
    """
    best: dict[int, Segment] = {}
    for segment in segments:
        best[segment.start] = min(segment, best.get(segment.start, segment), key=lambda one: one.seconds)
    return [best[start] for start in sorted(best)]


def _round(
    model: Model,
    pieces: Sequence[Slice],
    repeats: int,
    threads: int,
    clock: Callable[[], float],
    delegate: Delegate,
) -> Iterator[Segment]:
    values: dict[str, Array] = {}
    for number, piece in enumerate(pieces):
        try:
            interpreter = Interpreter(bytes(write_slice(model, piece)), threads=threads, delegate=delegate)
            own = [port for port in interpreter.inputs if port.name not in values]
            values.update(sample(own, np.random.default_rng(_SEED)))
            seconds, results = _time(interpreter, values, repeats, clock, _touched(model))
        except (MessageError, ModelError) as error:
            raise ModelError(
                f"{model.name}: cannot time operators {piece.start} to {piece.stop - 1} here: {error}; "
                "choose the cuts yourself with --at (see --list)"
            ) from error
        needed = {spec.name for later in pieces[number + 1 :] for spec in later.inputs}
        values = {name: value for name, value in (values | results).items() if name in needed}
        yield Segment(piece.start, piece.stop, seconds)


def time_whole(
    model: Model,
    *,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    delegate: Delegate = Delegate.XNNPACK,
) -> float:
    """Return the seconds of one run of the whole model, timed like the segments.

    Raises ModelError when the runtime cannot run it.
    """
    try:
        interpreter = Interpreter(write_whole(model), threads=threads, delegate=delegate)
        values = sample(interpreter.inputs, np.random.default_rng(_SEED))
        return min(_time(interpreter, values, repeats, clock, _touched(model))[0] for _ in range(rounds))
    except MessageError as error:
        raise ModelError(
            f"{model.name}: cannot time the whole model here: {error}; choose the cuts with --at"
        ) from error


def overhead_s(segments: Sequence[Segment], whole_s: float) -> float:
    """Return the seconds that one run costs whatever it runs.

    Each segment pays it once and the whole model once, so n segments take n - 1 times this longer than the whole. A
    plan with it would balance the number of operators of a small model instead of their work. The result is at most the
    time of the fastest segment: beyond that, the machine was slower meanwhile.
    """
    if len(segments) < 2:
        return 0.0
    seconds = [segment.seconds for segment in segments]
    return min(max(0.0, (sum(seconds) - whole_s) / (len(seconds) - 1)), min(seconds))


def _touched(model: Model) -> int:
    return _TOUCHED if len(model.data) > _CACHE else 0


def _time(
    interpreter: Interpreter, known: dict[str, Array], repeats: int, clock: Callable[[], float], touched: int
) -> tuple[float, dict[str, Array]]:
    """Return the median seconds of one run, and its outputs; `touched` bytes of other memory are touched before each
    run.
    """
    values = {port.name: known[port.name] for port in interpreter.inputs}
    for _ in range(_WARM_UP):
        results = interpreter.run(values)
    times, others = [], np.zeros(touched, np.uint8)
    for _ in range(repeats):
        others += 1
        times.append(interpreter.time(values, clock)[0])
    return median(times), results
