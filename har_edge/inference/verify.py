"""Prove that slices, run one after the other, give the bits of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.graph.model import Model
from har_edge.graph.slices import Slice, slice_model, write_slice, write_whole
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.inference.sampling import sample

RUNS = 3
SEED = 0
_OTHER_BATCH = 3


@dataclass(frozen=True, slots=True)
class CutCheck:
    """What came of one way to cut: `difference` says what was not equal, None when every bit was."""

    cuts: tuple[int, ...]
    difference: str | None


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the whole model: what went in and what came out, by the names of the slices."""

    values: dict[str, Array]
    results: dict[str, Array]


def check_cuts(
    model: Model, ways: Sequence[Sequence[int]], *, runs: int = RUNS, threads: int = 1
) -> Iterator[CutCheck]:
    """Compare the whole model with its slices, for each way to cut, and yield each result as it is known.

    Every way runs `runs` random inputs in a row, so that recurrent state counts, and when a dimension is dynamic as
    many again with a batch of 3. Raises ModelError when the runtime cannot run the whole model, and when the whole
    model itself gives different results for the same input (then nothing can be proven).
    """
    expected = _expect(model, runs, threads)
    for cuts in ways:
        yield CutCheck(tuple(cuts), _difference(model, slice_model(model, cuts), expected, threads))


def _expect(model: Model, runs: int, threads: int) -> list[_Run]:
    """Run the model as it stands in its file, twice."""
    try:
        content = write_whole(model)
        whole, again = Interpreter(content, threads=threads), Interpreter(content, threads=threads)
    except ModelError as error:
        raise ModelError(
            f"{model.name}: the runtime cannot run the whole model here, so nothing can be compared: {error}; "
            "cut it without --check"
        ) from error
    names = [model.main.tensors[i].name for i in model.main.inputs]
    outs = [model.main.tensors[i].name for i in model.main.outputs]
    rng = np.random.default_rng(SEED)
    batches = [1] * runs
    if any(-1 in port.shape for port in whole.inputs):
        batches += [_OTHER_BATCH] * runs
    expected = []
    for batch in batches:
        values = sample(whole.inputs, rng, batch=batch)
        try:
            results, repeated = whole.run(values), again.run(values)
        except MessageError as error:
            raise ModelError(
                f"{model.name}: the whole model cannot run random inputs, so nothing can be compared: {error}"
            ) from error
        if any(results[name].tobytes() != repeated[name].tobytes() for name in results):
            raise ModelError(
                f"{model.name} gives another result for the same input each time, so nothing can be compared"
            )
        expected.append(
            _Run(
                dict(zip(names, values.values(), strict=True)),
                dict(zip(outs, (results[port.name] for port in whole.outputs), strict=True)),
            )
        )
    return expected


def _difference(model: Model, slices: Sequence[Slice], expected: Sequence[_Run], threads: int) -> str | None:
    known = [dict(run.values) for run in expected]
    for number, piece in enumerate(slices):
        # One slice at a time, all runs through it: only one set of weights is in memory.
        try:
            interpreter = Interpreter(bytes(write_slice(model, piece)), threads=threads)
            for values in known:
                values.update(interpreter.run({spec.name: values[spec.name] for spec in piece.inputs}))
        except (MessageError, ModelError) as error:
            return f"slice {number}: {error}"
    for run, values in zip(expected, known, strict=True):
        for name, wanted in run.results.items():
            if not _same(wanted, values[name]):
                return f"output {name}: {_describe(wanted, values[name])}"
    return None


def _same(wanted: Array, got: Array) -> bool:
    # By bytes: NaN equals itself here, and -0.0 is not 0.0.
    return wanted.shape == got.shape and wanted.dtype == got.dtype and wanted.tobytes() == got.tobytes()


def _describe(wanted: Array, got: Array) -> str:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return f"{got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
    different = int(np.count_nonzero(wanted != got))
    return f"{different} of {wanted.size} elements differ"
