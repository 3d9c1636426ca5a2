"""Split blocks of a model, run the shards, and compare them with the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import SplitAgreement, compare, run_split
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.block import BlockSplit
from har_edge.tflite.split.methods import split_block
from har_edge.tflite.split.plan import Block, SplitMethod


def model_of(content: bytes) -> Model:
    return read_model(content)


def split(
    model: Model, method: SplitMethod, bounds: Sequence[int], start: int = 0, stop: int | None = None
) -> BlockSplit:
    """Return the split of operators [start, stop), by default of all from start on."""
    stop = len(model.main.operators) if stop is None else stop
    return split_block(model, trace_dataflow(model), Block(start, stop, method, tuple(bounds)))


def agreement(
    model: Model, method: SplitMethod, bounds: Sequence[int], start: int = 0, stop: int | None = None, runs: int = 3
) -> SplitAgreement:
    """Return how the shards agree with the whole block on random inputs."""
    shared = split(model, method, bounds, start, stop)
    whole = split(model, SplitMethod.WHOLE, (0, 1), shared.block.start, shared.block.stop)
    (step,) = whole.steps(0)
    interpreter, rng = Interpreter(bytes(step.write())), np.random.default_rng(1)
    found = []
    for _ in range(runs):
        values = sample(interpreter.inputs, rng)
        wanted = interpreter.run(values)
        found.append(compare([(spec, wanted[spec.name]) for spec in step.outputs], run_split(shared, values)))
    return SplitAgreement(all(one.equal for one in found), max(one.error for one in found))


def even(extent: int, shards: int) -> tuple[int, ...]:
    return tuple(extent * k // shards for k in range(shards + 1))


def uneven(extent: int, shards: int) -> tuple[int, ...]:
    """Shares in the proportions 1, 2, 3, ..."""
    total = shards * (shards + 1) // 2
    return tuple(extent * (k * (k + 1) // 2) // total for k in range(shards + 1))
