"""Time the parts of a model on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.graph.cuts import list_cuts, slice_refusal, trace
from har_edge.graph.model import Model
from har_edge.graph.slices import Slice, slice_model, write_slice
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample

REPEATS = 15
_WARM_UP = 2
_SEED = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """The smallest part that can be moved: operators [start, stop) between two neighbouring legal cuts.

    `crossing_bytes` cross the cut before it (0 for the first); `seconds` is the median time of one run.
    """

    start: int
    stop: int
    crossing_bytes: int
    seconds: float


def segment_bounds(model: Model) -> list[int]:
    """Return the legal cuts that can all be made at once, with 0 and the number of operators around them."""
    graph, flow = model.main, trace(model)
    n = len(graph.operators)
    bounds = [0]
    for cut in list_cuts(model):
        if cut.refusal is None and slice_refusal(graph, flow, bounds[-1], cut.index) is None:
            bounds.append(cut.index)
    while len(bounds) > 1 and slice_refusal(graph, flow, bounds[-1], n) is not None:
        bounds.pop()
    return [*bounds, n]


def measure_segments(model: Model, *, repeats: int = REPEATS, threads: int = 1) -> Iterator[Segment]:
    """Time every segment and yield each as it is known.

    Raises ModelError when the runtime cannot run one of them.
    """
    bounds = segment_bounds(model)
    crossing = {cut.index: cut.bytes for cut in list_cuts(model)}
    for piece in slice_model(model, bounds[1:-1]):
        seconds = time_slice(model, piece, repeats=repeats, threads=threads)
        yield Segment(piece.start, piece.stop, crossing.get(piece.start, 0), seconds)


def time_slice(
    model: Model,
    piece: Slice,
    *,
    repeats: int = REPEATS,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the median seconds of one run of a slice, with random inputs.

    Raises ModelError when the runtime cannot run it.
    """
    where = f"operators {piece.start} to {piece.stop - 1}"
    try:
        interpreter = Interpreter(bytes(write_slice(model, piece)), threads=threads)
        values = sample(interpreter.inputs, np.random.default_rng(_SEED))
        for _ in range(_WARM_UP):
            interpreter.run(values)
        times = []
        for _ in range(repeats):
            started = clock()
            interpreter.run(values)
            times.append(clock() - started)
    except (MessageError, ModelError) as error:
        raise ModelError(
            f"{model.name}: cannot time {where} here: {error}; choose the cuts yourself with --at (see --list)"
        ) from error
    return median(times)
