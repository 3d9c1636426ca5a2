"""Run a model to find the true shapes of its tensors, and which of them carry the batch.

A file says both only in part. Its planned sizes are placeholders where they depend on other sizes. A converter gives -1
to the first dimension of tensors that hold something else: the blocks of a dilated convolution, rows that a dense layer
flattened, the indices where a condition holds. A quantiser inserts tensors without any signature. So this module runs
the model with several windows, one at a time and all in one batch, and observes every tensor that could cross a cut.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Array, Delegate, Interpreter, Port
from har_edge.inference.load_check import default_check
from har_edge.tflite import schema
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.encode import ModelPart, encode
from har_edge.tflite.manifest import ModelState
from har_edge.tflite.model import Model, Tensor, read_model
from har_edge.tflite.ports import check_ports
from har_edge.tflite.state import state_of

_SEED = 0
# Scales of the random windows: sizes that depend on values differ between small and large ones.
_SCALES = (1.0, 10.0, 0.1)
# Bytes of the tensors that one run observes: each keeps its memory until the run ends.
_GROUP_BYTES = 128 * 2**20
_COMPARED = 4096

# Operators whose result has as many elements as its values say.
_VALUE_SHAPED = frozenset(
    {
        *("WHERE", "UNIQUE", "RANGE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", "HASHTABLE_LOOKUP"),
        *("EMBEDDING_LOOKUP_SPARSE", "SKIP_GRAM", "FILL", "BROADCAST_TO", "RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL"),
        *("MULTINOMIAL", "STABLEHLO_COMPOSITE"),
    }
)


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """How close two arrays must be: real values by a part of each and of the largest, quantised values by a number of
    steps.

    At least a `share` of the elements must be that close.
    """

    part: float
    of_largest: float
    steps: int
    share: float


# A window in a batch and alone: kernels for several rows round otherwise, and quantised ones by a step or so.
_ALONE = _Tolerance(part=1e-2, of_largest=1e-2, steps=2, share=0.9)
# A window in one row of a batch and in another: the same kernel rounds it alike, or nearly.
_MOVED = _Tolerance(part=1e-3, of_largest=1e-5, steps=1, share=1.0)


@dataclass(frozen=True, slots=True)
class _Observation:
    """A tensor after one run: its shape, some values of each row (entry of the first dimension), and hashes of all
    values.
    """

    shape: tuple[int, ...]
    rows: Array
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Runs:
    """The observations of each tensor: in each run of one window, and in the run of all of them.

    `batch` is None where the model takes no batch, and `problem` says why. Tensors that are `mixed` have rows that
    depend on other windows, or on the position of their own window.
    """

    alone: dict[int, list[_Observation]]
    batch: dict[int, _Observation] | None
    mixed: frozenset[int]
    problem: str


def open_model(source: Path | bytes, delegate: str | None = None) -> Model:
    """Read a model that is to be cut, and observe its tensors when it runs.

    See `read_model`, `check_ports` and `observe_tensors`. `delegate` names what will compute the model, "xnnpack" (the
    default) or "none". A process of its own runs the model first (see `load_check`).
    """
    model, chosen = check_ports(read_model(source)), Delegate(delegate or Delegate.XNNPACK)
    if _may_vary(model):
        default_check()(model.data, model.name, chosen.value)
    return observe_tensors(model, chosen)


def observe_tensors(model: Model, delegate: Delegate = Delegate.XNNPACK) -> Model:
    """Return the model with the true shapes of its tensors for one window, and with the tensors that carry the batch.

    A dimension whose size depends on values is -1. If the runtime cannot run the model, the shapes of the file stay, no
    tensor with a dynamic first dimension counts as a batch, and `remarks` says so.
    """
    if not _may_vary(model):
        return model
    dynamic = any(_is_dynamic(tensor.signature) for tensor in model.main.tensors)
    try:
        runs = _run(model, delegate)
        # Nothing can be compared where the same window gives another result each time.
        exact = state_of(model) is not ModelState.RESOURCES and not _is_random(model)
        changed = {
            index: _resolve(
                model.main.tensors[index],
                seen,
                None if runs.batch is None or (exact and index in runs.mixed) else runs.batch[index],
                exact=exact,
            )
            for index, seen in runs.alone.items()
        }
    except (MessageError, ModelError) as error:
        changed = {tensor.index: _unknown(tensor) for tensor in model.main.tensors}
        reason = f"this machine cannot run {model.name}, so nobody knows which tensors carry a batch; {error}"
        return _with_tensors(model, changed, reason if dynamic else "")
    if runs.batch is None:
        changed |= {index: _unknown(model.main.tensors[index]) for index in model.main.inputs}
    whole = any(_is_dynamic(model.main.tensors[index].signature) for index in model.main.inputs)
    return _with_tensors(model, changed, runs.problem if whole else "")


def _may_vary(model: Model) -> bool:
    """Return whether a size may differ from the one that the file plans for."""
    graph, flow = model.main, trace_dataflow(model)
    living = [t for t in graph.tensors if not (t.constant or flow.maker.get(t.index, -1) in flow.folded)]
    if any({-1, 0}.intersection(tensor.signature) or (tensor.unranked and tensor.dtype) for tensor in living):
        return True
    moving = {tensor.index for tensor in living if tensor.dtype in ("int32", "int64")}
    return any(
        operator.custom or operator.calls or operator.name in _VALUE_SHAPED or moving.intersection(operator.inputs)
        for operator in graph.operators
        if operator.index not in flow.folded
    )


def _run(model: Model, delegate: Delegate) -> _Runs:
    """Run several windows, alone and together. Raises MessageError or ModelError where one window cannot run."""
    graph = model.main
    fresh, rng = state_of(model) is ModelState.TENSORS, np.random.default_rng(_SEED)
    windows: list[dict[str, Array]] = []
    others: list[dict[str, Array]] = []
    mixed: set[int] = set()
    alone: dict[int, list[_Observation]] = {}
    together: dict[int, _Observation] | None = {}
    problem = ""
    for group in _groups(model):
        part = ModelPart(whole=False, operators=tuple(range(len(graph.operators))), inputs=graph.inputs, outputs=group)
        interpreter = Interpreter(bytes(encode(model, part)), fresh=fresh, delegate=delegate)
        windows = windows or [_window(model, interpreter.inputs, rng, scale) for scale in _SCALES]
        others = others or [_window(model, interpreter.inputs, rng, scale) for scale in _SCALES]
        for window in windows:
            for index, seen in _look(interpreter, group, window):
                alone.setdefault(index, []).append(seen)
        if together is not None:
            try:
                seen_together = dict(_look(interpreter, group, _stack(model, interpreter.inputs, windows)))
                mixed |= _find_mixed(model, interpreter, group, windows, others, seen_together)
                together |= seen_together
            except MessageError as error:
                together, problem = None, f"{model.name} takes one window at a time: {error}"
    return _Runs(alone, together, frozenset(mixed), problem)


def _find_mixed(
    model: Model,
    interpreter: Interpreter,
    group: Sequence[int],
    windows: Sequence[Mapping[str, Array]],
    others: Sequence[Mapping[str, Array]],
    together: Mapping[int, _Observation],
) -> set[int]:
    """Return the tensors whose rows differ from the rows of their windows alone.

    A row must have the same bits whatever stands beside it, and nearly the same values in another position.
    """
    mixed, ports, count = set[int](), interpreter.inputs, len(windows)
    for row in range(count):
        beside = [windows[row] if place == row else others[place] for place in range(count)]
        for index, seen in _look(interpreter, group, _stack(model, ports, beside)):
            wanted = together[index]
            if seen.shape != wanted.shape or seen.digests[row : row + 1] != wanted.digests[row : row + 1]:
                mixed.add(index)
    for index, seen in _look(interpreter, group, _stack(model, ports, [windows[-1], *windows[:-1]])):
        wanted = together[index]
        moved = np.roll(wanted.rows, 1, axis=0)
        if seen.shape != wanted.shape or not _is_near(model.main.tensors[index], moved, seen.rows, _MOVED):
            mixed.add(index)
    return mixed


def _groups(model: Model) -> Iterator[tuple[int, ...]]:
    """Yield the tensors that may cross a cut, or leave the model, as many as may be kept in memory at once."""
    graph, flow = model.main, trace_dataflow(model)
    group, size = list[int](), 0
    for index, maker in flow.maker.items():
        tensor = graph.tensors[index]
        if maker in flow.folded or tensor.dtype is None or tensor.variable or tensor.sparse or index in graph.inputs:
            continue
        if group and size + tensor.bytes > _GROUP_BYTES:
            yield tuple(group)
            group, size = [], 0
        group.append(index)
        size += tensor.bytes
    if group:
        yield tuple(group)


def _window(model: Model, ports: Sequence[Port], rng: np.random.Generator, scale: float) -> dict[str, Array]:
    """Return random inputs for one window; further dynamic dimensions get the size that the file plans for."""
    values = {}
    for index, port in zip(model.main.inputs, ports, strict=True):
        planned = model.main.tensors[index].shape
        shape = tuple(
            (1 if axis == 0 else planned[axis]) if size == -1 else size for axis, size in enumerate(port.shape)
        )
        values[port.name] = _values(port, shape, rng, scale)
    return values


def _values(port: Port, shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> Array:
    """Return random values: the whole range of quantised ports, 0 or 1 for others of integers (see `sample`)."""
    dtype: np.dtype[Any] = port.dtype
    if dtype.kind in "iu":
        full = dtype.itemsize == 1 or port.scale > 0
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if full else (0, 1)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return (rng.standard_normal(shape) * scale).astype(dtype)


def _stack(model: Model, ports: Sequence[Port], windows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the windows as one batch. Raises MessageError where an input takes no batch."""
    values = {}
    for index, port in zip(model.main.inputs, ports, strict=True):
        if not _is_dynamic(port.shape):
            if not _is_read(model, index):
                values[port.name] = windows[0][port.name]
                continue
            raise MessageError(f"input {port.name} is {list(port.shape)}, not [windows, ...]")
        values[port.name] = np.concatenate([window[port.name] for window in windows])
    return values


def _is_read(model: Model, index: int) -> bool:
    return any(index in operator.inputs for operator in model.main.operators) or index in model.main.outputs


def _look(
    interpreter: Interpreter, group: Sequence[int], values: Mapping[str, Array]
) -> Iterator[tuple[int, _Observation]]:
    results = interpreter.run(values)
    for index, port in zip(group, interpreter.outputs, strict=True):
        value = results.pop(port.name)
        count = value.shape[0] if value.ndim and value.size else 1
        rows = value.reshape(count, -1)
        digests = tuple(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows) if count < 16 else ()
        yield index, _Observation(value.shape, rows[:, :: max(1, rows.shape[1] // _COMPARED)].copy(), digests)


def _resolve(tensor: Tensor, alone: Sequence[_Observation], batch: _Observation | None, *, exact: bool) -> Tensor:
    """Return the tensor with the observed shape."""
    shapes = [seen.shape for seen in alone]
    if len({len(shape) for shape in shapes}) > 1:
        raise ModelError(f"tensor {tensor.name} has {shapes[0]} and {shapes[1]}, another number of dimensions each run")
    claimed = tensor.signature if len(tensor.signature) == len(shapes[0]) else (0,) * len(shapes[0])
    signature = [
        -1 if claim == -1 or len(set(sizes)) > 1 else sizes[0]
        for claim, sizes in zip(claimed, zip(*shapes, strict=True), strict=True)
    ]
    batched = batch is not None and _has_rows(alone, batch) and (not exact or _follows(tensor, alone, batch))
    if batched:
        signature[0] = -1
    return dataclasses.replace(
        tensor,
        shape=tuple(map(max, zip(*shapes, strict=True))),
        signature=tuple(signature),
        unranked=False,
        batched=batched,
    )


def _has_rows(alone: Sequence[_Observation], batch: _Observation) -> bool:
    """Return whether a tensor has one row for one window, and as many rows as a batch has windows."""
    shape = alone[0].shape
    return shape[:1] == (1,) and {seen.shape for seen in alone} == {shape} and batch.shape == (len(alone), *shape[1:])


def _follows(tensor: Tensor, alone: Sequence[_Observation], batch: _Observation) -> bool:
    """Return whether the rows of a batch are those of its windows, in their order."""
    return _is_near(tensor, np.concatenate([seen.rows for seen in alone]), batch.rows, _ALONE)


def _is_near(tensor: Tensor, wanted: Array, got: Array, near: _Tolerance) -> bool:
    if wanted.dtype.kind in "fc":
        largest = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
        close = np.isclose(got, wanted, rtol=near.part, atol=near.of_largest * largest, equal_nan=True)
    elif wanted.dtype.kind == "b":
        close = wanted == got
    else:
        close = np.abs(wanted.astype(np.float64) - got.astype(np.float64)) <= near.steps * (tensor.dtype != "int64")
    return bool(close.mean() >= near.share) if close.size else True


def _is_dynamic(shape: Sequence[int]) -> bool:
    return len(shape) > 0 and shape[0] == -1


def _unknown(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, batched=False)


def _with_tensors(model: Model, changed: Mapping[int, Tensor], remark: str) -> Model:
    tensors = tuple(changed.get(tensor.index, tensor) for tensor in model.main.tensors)
    main = dataclasses.replace(model.main, tensors=tensors)
    remarks = (*model.remarks, *([remark] if remark else []))
    return dataclasses.replace(model, graphs=(main, *model.graphs[1:]), remarks=remarks)


def _is_random(model: Model) -> bool:
    """Return whether an operator draws random numbers."""
    return any(operator.name in schema.RANDOM for graph in model.graphs for operator in graph.operators)
