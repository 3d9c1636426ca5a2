"""A model with an open batch, planned for one sample, gives the gradients of the same model that is for that batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.training_graph import write_backward_graph
from har_edge.tflite.model import Model, read_model
from tests.tflite.gradient.cases import draw, options
from tests.tflite.gradient.check import assert_close, differentiate, upstream
from tests.tflite.models import INT32, Draft, GraphDraft

BATCH = 3
# What makes the output of x [samples, ...]; `n` samples are planned. Each row: input, output of a sample, operators.
Build = Callable[[GraphDraft, int, int, Callable[..., int]], int]


def _scalar(value: int) -> np.ndarray:
    return np.array(value, np.int32)


def _ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def _open(build: Build, shape: tuple[int, ...], planned: int, *, is_open: bool) -> Model:
    draft = Draft()
    graph = draft.graph()

    def tensor(*dimensions: int, **named: Any) -> int:
        """Add a tensor; dimensions below 0 hold the samples, so many rows for each."""
        sizes = [-d * planned if d < 0 else d for d in dimensions]
        signature = [-1 if d < 0 else d for d in dimensions] if is_open else None
        return graph.tensor(sizes, signature=signature, **named)

    x = graph.input([planned, *shape], "x", signature=[-1, *shape] if is_open else None)
    graph.output(build(graph, x, planned, tensor))
    return read_model(draft.build())


def _then(name: str, made: tuple[int, ...], *constants: Any, kind: Any = None, first: bool = True) -> Build:
    """Return one operator of x and constants; a callable constant gets the planned samples."""

    def build(graph: GraphDraft, x: int, n: int, tensor: Callable[..., int]) -> int:
        others = [graph.const(one(n) if callable(one) else one) for one in constants]
        y = tensor(*made, name="y")
        graph.op(name, [x, *others] if first else [*others, x], [y], kind, version=2 if name == "BROADCAST_TO" else 1)
        return y

    return build


_STRIDED = options("StridedSlice", beginMask=1, endMask=1)
APART: dict[str, tuple[tuple[int, ...], Build]] = {
    "slice of all samples": ((5,), _then("SLICE", (-1, 3), _ints(0, 1), lambda n: _ints(n, 3), kind=options("Slice"))),
    "slice with -1": ((5,), _then("SLICE", (-1, 3), _ints(0, 1), _ints(-1, 3), kind=options("Slice"))),
    "strided with masks": (
        (6,),
        _then("STRIDED_SLICE", (-1, 3), _ints(0, 1), _ints(0, 6), _ints(1, 2), kind=_STRIDED),
    ),
    "strided to the planned end": (
        (6,),
        _then("STRIDED_SLICE", (-1, 3), _ints(0, 1), lambda n: _ints(n, 6), _ints(1, 2), kind=options("StridedSlice")),
    ),
    "new axis in front": (
        (4,),
        _then(
            "STRIDED_SLICE",
            (1, -1, 4),
            *[_ints(0, 0, 0)] * 2,
            _ints(1, 1, 1),
            kind=options("StridedSlice", newAxisMask=1, beginMask=7, endMask=7),
        ),
    ),
    "expand in front": ((4,), _then("EXPAND_DIMS", (1, -1, 4), _scalar(0), kind=options("ExpandDims"))),
    "expand behind": ((4,), _then("EXPAND_DIMS", (-1, 1, 4), _scalar(1), kind=options("ExpandDims"))),
    "squeeze": ((1, 4), _then("SQUEEZE", (-1, 4), kind=options("Squeeze", squeezeDims=[1]))),
    "transpose": ((2, 4), _then("TRANSPOSE", (4, -1, 2), _ints(2, 0, 1), kind=options("Transpose"))),
    "mean": ((4, 2), _then("MEAN", (-1, 2), _ints(1), kind=options("Reducer"))),
    "pack": ((4,), _then("PACK", (1, -1, 4), kind=options("Pack", axis=0, valuesCount=1))),
    "broadcast": ((1, 4), _then("BROADCAST_TO", (-1, 3, 4), lambda n: _ints(n, 3, 4), kind=options("BroadcastTo"))),
    "gather": ((4, 2), _then("GATHER", (-1, 3, 2), _ints(2, 0, 0), kind=options("Gather", axis=1))),
    "pad": ((4,), _then("PAD", (-1, 7), _ints([0, 0], [1, 2]), kind=options("Pad"))),
    "blocks": (
        (4, 4, 2),
        _then("SPACE_TO_BATCH_ND", (-4, 2, 2, 2), _ints(2, 2), _ints([0, 0], [0, 0]), kind=options("SpaceToBatchND")),
    ),
    "softmax": ((4,), _then("SOFTMAX", (-1, 4), kind=options("Softmax", beta=1.0))),
}


def _repeated_rows(graph: GraphDraft, x: int, n: int, tensor: Callable[..., int]) -> int:
    """Double each row of x [samples, 2, 3] as Keras does it: the shape that it asks for is computed from another one,
    and the converter loses one of its dimensions.
    """
    wide, twice, shape = tensor(-1, 2, 1, 3), tensor(-1, 2, 2, 3), graph.tensor([3], type=INT32)
    graph.op("EXPAND_DIMS", [x, graph.const(_scalar(2))], [wide], options("ExpandDims"))
    graph.op("TILE", [wide, graph.const(_ints(1, 1, 2, 1))], [twice], options("Tile"))
    graph.op("SHAPE", [x], [shape], options("Shape", outType=INT32))
    batch, wanted = graph.tensor([1], type=INT32), graph.tensor([3], type=INT32)
    pieces = [graph.const(_ints(one)) for one in (0, 1, 1)]
    graph.op("STRIDED_SLICE", [shape, *pieces], [batch], options("StridedSlice"))
    graph.op("CONCATENATION", [batch, graph.const(_ints(-1, 3))], [wanted], options("Concatenation", axis=0))
    double = graph.tensor([n, 4, 3] if n > 1 else [1, 1, 3], signature=None if n > 1 else [-1, -1, 3])
    graph.op("RESHAPE", [twice, wanted], [double], options("Reshape"))
    y = graph.tensor([n, 4, 3] if n > 1 else [1, 1, 3], "y", signature=None if n > 1 else [-1, -1, 3])
    graph.op("TANH", [double], [y])
    return y


APART["reshape of fixed sizes"] = (
    (6,),
    _then("RESHAPE", (-1, 2, 3), lambda n: _ints(n, 2, 3), kind=options("Reshape")),
)
APART["reshape to a row of each"] = ((2, 3), _then("RESHAPE", (-1, 6), _ints(-1, 6), kind=options("Reshape")))
APART["reshape to several rows of each"] = ((2, 3), _then("RESHAPE", (-2, 3), _ints(-1, 3), kind=options("Reshape")))
APART["reshape behind a dimension of 1"] = (
    (2, 3),
    _then("RESHAPE", (1, -1, 6), _ints(1, -1, 6), kind=options("Reshape")),
)
APART["rows repeated by Keras"] = ((2, 3), _repeated_rows)


@pytest.mark.parametrize("name", APART)
def test_open_batch_gives_the_gradients_of_the_fixed_one(name: str) -> None:
    shape, build = APART[name]
    fixed = _open(build, shape, BATCH, is_open=False)
    values = {"x": draw((BATCH, *shape), np.random.default_rng(0), 0, "small")}
    dy = upstream(fixed, 0)
    wanted = differentiate(fixed, values, dy, batch=BATCH)
    assert wanted["x"].any()
    found = differentiate(_open(build, shape, 1, is_open=True), values, dy, batch=BATCH)
    assert_close(found, wanted, 0.0)


def test_fixed_batch_of_one_is_replaced_although_a_reshape_leaves_another_size_open() -> None:
    build = _then("RESHAPE", (-1, 6), lambda n: _ints(n, -1), kind=options("Reshape"))
    values = {"x": draw((BATCH, 2, 3), np.random.default_rng(0))}
    dy = {"y": draw((BATCH, 6), np.random.default_rng(1))}
    found = differentiate(_open(build, (2, 3), 1, is_open=False), values, dy, batch=BATCH)
    np.testing.assert_array_equal(found["x"], dy["y"].reshape(BATCH, 2, 3))


def test_input_with_two_open_dimensions_is_refused() -> None:
    draft = Draft()
    graph = draft.graph()
    x = graph.input([1, 1], "x", signature=[-1, -1])
    graph.output(graph.mul(x, x))
    with pytest.raises(GradientError, match=r"input x has shape \[-1, -1\].*no other open one"):
        write_backward_graph(read_model(draft.build()), batch=2, start=0, stop=1, trainable=(), input_gradients=True)


MIXED: dict[str, tuple[tuple[int, ...], Build]] = {
    "mean of samples": ((4,), _then("MEAN", (4,), _ints(0), kind=options("Reducer"))),
    "squeeze of whatever is one": ((1, 4), _then("SQUEEZE", (-1, 4), kind=options("Squeeze", squeezeDims=[]))),
    "reshape": ((6,), _then("RESHAPE", (2, -3), _ints(2, -1), kind=options("Reshape"))),
    "cumulative sum": ((4,), _then("CUMSUM", (-1, 4), _scalar(0), kind=options("Cumsum"))),
    "reverse": ((4,), _then("REVERSE_V2", (-1, 4), _ints(0), kind=options("ReverseV2"))),
    "tile": ((4,), _then("TILE", (-2, 4), _ints(2, 1), kind=options("Tile"))),
    "unpack": ((4,), _then("UNPACK", (4,), kind=options("Unpack", axis=0, num=1))),
    "pad": ((4,), _then("PAD", (-3, 4), _ints([1, 1], [0, 0]), kind=options("Pad"))),
    "gather": ((4,), _then("GATHER", (2, 4), _ints(0, 0), kind=options("Gather", axis=0))),
    "first sample": (
        (4,),
        _then("STRIDED_SLICE", (4,), _ints(0), _ints(1), _ints(1), kind=options("StridedSlice", shrinkAxisMask=1)),
    ),
    "split": ((4,), _then("SPLIT", (-1, 4), _scalar(0), kind=options("Split", numSplits=1), first=False)),
}


@pytest.mark.parametrize("name", MIXED)
def test_operators_that_mix_samples_are_refused(name: str) -> None:
    shape, build = MIXED[name]
    model = _open(build, shape, 1, is_open=True)
    operator = model.main.operators[0].name
    with pytest.raises(GradientError, match=rf"operator 0 \({operator}\) .*samples.*open batch"):
        write_backward_graph(model, batch=BATCH, start=0, stop=1, trainable=(), input_gradients=True)
