"""Small networks of random operators: each step takes tensors that are there and adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from har_edge.tflite.model import Model, read_model
from tests.tflite.gradient.cases import options
from tests.tflite.models import Draft, GraphDraft

_MOST = 240  # elements of one tensor
Shape = tuple[int, ...]


@dataclass
class Network:
    """A graph that grows; all that it computes from is an input, so that differences can move it."""

    rng: np.random.Generator
    draft: Draft = field(default_factory=Draft)
    made: list[tuple[int, Shape]] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    operators: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph: GraphDraft = self.draft.graph()
        self.made.append((self.leaf((2, 4, 4, 2)), (2, 4, 4, 2)))

    def leaf(self, shape: Shape) -> int:
        """Add an input with random values."""
        name = f"in{len(self.values)}"
        self.values[name] = self.rng.uniform(-1.2, 1.2, shape).astype(np.float32)
        return self.graph.input(shape, name)

    def pick(self, shape: Shape | None = None) -> tuple[int, Shape]:
        """Return a tensor, the last ones more often; of this shape where one is asked for."""
        fit = [one for one in self.made if shape in (None, one[1])]
        return fit[max(self.rng.integers(len(fit)), self.rng.integers(len(fit)))]

    def op(self, name: str, inputs: list[int], shape: Shape, kind: Any = None, version: int = 1) -> None:
        """Add an operator that gives one tensor."""
        if not 0 < int(np.prod(shape)) <= _MOST:
            return
        result = self.graph.tensor(shape)
        self.graph.op(name, inputs, [result], kind, version=version)
        self.made.append((result, tuple(shape)))
        self.operators.append(name)

    def ints(self, *values: Any) -> int:
        """Add a constant of integers."""
        return self.graph.const(np.array(values, np.int32))

    def finish(self) -> Model:
        """Return the model; everything that no operator reads is an output, so that all of it counts."""
        read = {int(i) for raw in self.graph.raw.operators for i in raw.inputs}
        self.graph.output(*[tensor for tensor, _ in self.made if tensor not in read])
        return read_model(self.draft.build())


def _unary(name: str, kind: Any = None) -> Callable[[Network], None]:
    def step(net: Network) -> None:
        x, shape = net.pick()
        net.op(name, [x], shape, kind)

    return step


def _binary(name: str, kind: str) -> Callable[[Network], None]:
    """Take two tensors of one shape, or an input that is broadcast."""

    def step(net: Network) -> None:
        x, shape = net.pick()
        if net.rng.random() < 0.5:
            other, _ = net.pick(shape)
        else:
            other = net.leaf(tuple(1 if net.rng.random() < 0.5 else n for n in shape)[net.rng.integers(len(shape)) :])
        pair = [x, other] if net.rng.random() < 0.5 else [other, x]
        net.op(name, pair, shape, options(kind))

    return step


def _reduce(name: str) -> Callable[[Network], None]:
    def step(net: Network) -> None:
        x, shape = net.pick()
        axes = [axis for axis in range(len(shape)) if net.rng.random() < 0.4] or [len(shape) - 1]
        keep = bool(net.rng.random() < 0.7) or len(axes) == len(shape)
        left = tuple(1 if axis in axes else n for axis, n in enumerate(shape) if keep or axis not in axes)
        net.op(name, [x, net.ints(*axes)], left, options("Reducer", keepDims=keep))

    return step


def _pad(net: Network) -> None:
    x, shape = net.pick()
    amounts = net.rng.integers(0, 2, (len(shape), 2))
    net.op("PAD", [x, net.ints(*amounts)], tuple(shape + amounts.sum(1)), options("Pad"))


def _mirror(net: Network) -> None:
    x, shape = net.pick()
    amounts = np.minimum(net.rng.integers(0, 3, (len(shape), 2)), np.array(shape)[:, None] - 1)
    if len(shape) < 5:
        net.op("MIRROR_PAD", [x, net.ints(*amounts)], tuple(shape + amounts.sum(1)), options("MirrorPad", mode=0))


def _strided(net: Network) -> None:
    x, shape = net.pick()
    if len(shape) > 4:
        return
    rows = []
    for n in shape:
        step = int(net.rng.choice([1, 1, 2, -1, -2, 3]))
        first, last = (0, n) if step > 0 else (n - 1, -n - 1)
        inside = int(net.rng.integers(0, max(1, n // 2)))
        rows.append((first + (inside if step > 0 else -inside), last, step))
    left = tuple(len(range(n)[slice(*row)]) for n, row in zip(shape, rows, strict=True))
    net.op("STRIDED_SLICE", [x, *(net.ints(*c) for c in zip(*rows, strict=True))], left, options("StridedSlice"))


def _transpose(net: Network) -> None:
    x, shape = net.pick()
    order = net.rng.permutation(len(shape))
    net.op("TRANSPOSE", [x, net.ints(*order)], tuple(shape[i] for i in order), options("Transpose"))


def _reshape(net: Network) -> None:
    x, shape = net.pick()
    axis = int(net.rng.integers(len(shape)))
    wanted = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]) if axis + 1 < len(shape) else shape
    net.op("RESHAPE", [x, net.ints(*wanted)], wanted, options("Reshape", newShape=np.array(wanted, np.int32)))


def _concat(net: Network) -> None:
    x, shape = net.pick()
    axis = int(net.rng.integers(len(shape)))
    wide = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
    net.op("CONCATENATION", [x, net.pick(shape)[0]], wide, options("Concatenation", axis=axis))


def _dense(net: Network) -> None:
    x, shape = net.pick()
    units = int(net.rng.integers(1, 5))
    inputs = [x, net.leaf((units, shape[-1])), net.leaf((units,))]
    net.op("FULLY_CONNECTED", inputs, (*shape[:-1], units), options("FullyConnected", keepNumDims=True))


def _resize(name: str, kind: str) -> Callable[[Network], None]:
    def step(net: Network) -> None:
        x, shape = net.pick()
        if len(shape) == 4:
            size = net.rng.integers(1, 7, 2)
            half = bool(net.rng.random() < 0.5)
            made = options(kind, alignCorners=not half and bool(net.rng.random() < 0.5), halfPixelCenters=half)
            net.op(name, [x, net.ints(*size)], (shape[0], *map(int, size), shape[3]), made, version=3)

    return step


def _gather(net: Network) -> None:
    x, shape = net.pick()
    axis = int(net.rng.integers(len(shape)))
    indices = net.rng.integers(0, shape[axis], 3)
    net.op("GATHER", [x, net.ints(*indices)], (*shape[:axis], 3, *shape[axis + 1 :]), options("Gather", axis=axis))


SMOOTH: dict[str, Callable[[Network], None]] = {
    **{name: _unary(name) for name in ("TANH", "LOGISTIC", "ELU", "SIN")},
    "NEG": _unary("NEG", options("Neg")),
    "SQUARE": _unary("SQUARE", options("Square")),
    "SOFTMAX": _unary("SOFTMAX", options("Softmax", beta=1.0)),
    **{name: _binary(name, kind) for name, kind in (("ADD", "Add"), ("SUB", "Sub"), ("MUL", "Mul"))},
    "SQUARED_DIFFERENCE": _binary("SQUARED_DIFFERENCE", "SquaredDifference"),
    **{name: _reduce(name) for name in ("MEAN", "SUM")},
    "PAD": _pad,
    "MIRROR_PAD": _mirror,
    "STRIDED_SLICE": _strided,
    "TRANSPOSE": _transpose,
    "RESHAPE": _reshape,
    "CONCATENATION": _concat,
    "FULLY_CONNECTED": _dense,
    "RESIZE_BILINEAR": _resize("RESIZE_BILINEAR", "ResizeBilinear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor"),
    "GATHER": _gather,
}
# These have corners, which a step of a difference may cross.
CORNERED: dict[str, Callable[[Network], None]] = {
    **{name: _unary(name) for name in ("RELU", "RELU6", "RELU_N1_TO_1")},
    "ABS": _unary("ABS", options("Abs")),
    "LEAKY_RELU": _unary("LEAKY_RELU", options("LeakyRelu", alpha=0.2)),
    "HARD_SWISH": _unary("HARD_SWISH", options("HardSwish")),
    "MAXIMUM": _binary("MAXIMUM", "MaximumMinimum"),
    "MINIMUM": _binary("MINIMUM", "MaximumMinimum"),
    "REDUCE_MAX": _reduce("REDUCE_MAX"),
}


def grow(steps: list[str], seed: int) -> Network:
    """Return a network of these operators, with all else drawn from the seed."""
    net = Network(np.random.default_rng(seed))
    for step in steps:
        (SMOOTH | CORNERED)[step](net)
    return net
