"""Find the sizes of dimensions that a file leaves open beside the batch: the converter loses some behind a RESHAPE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient.builder import Shape
from har_edge.tflite.model import Operator
from har_edge.tflite.schema import tflite

_SAME = (
    *("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "ELU", "LEAKY_RELU", "PRELU", "LOGISTIC", "TANH", "HARD_SWISH"),
    *("GELU", "SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "SQUARE", "SQRT", "RSQRT", "EXP", "LOG", "ABS", "NEG"),
    *("SIN", "COS", "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE"),
)


@dataclass(frozen=True, slots=True)
class _Known:
    """The shapes of an operator's inputs, and the values of those that are integers."""

    operator: Operator
    shapes: Sequence[Shape]
    values: Mapping[int, NDArray[Any]]  # by position

    @property
    def options(self) -> Any:
        """The operator's options, an object of the schema."""
        return self.operator.raw.builtinOptions


# The shape of the output; None where it does not follow.
_Infer: TypeAlias = Callable[[_Known], "Sequence[int] | None"]


def infer_shape(operator: Operator, shapes: Sequence[Shape], values: Mapping[int, NDArray[Any]]) -> Shape | None:
    """Return the shape of the first output, None where it does not follow from what is known.

    Args:
        operator: The operator.
        shapes: The shapes of its inputs.
        values: By position, the values of the inputs that are known integers, such as paddings.
    """
    infer = _INFER.get(operator.name)
    found = None if infer is None else infer(_Known(operator, shapes, values))
    return None if found is None else tuple(int(n) for n in found)


def _broadcast(known: _Known) -> Sequence[int]:
    return np.broadcast_shapes(*known.shapes)


def _windows(size: int, window: int, stride: int, same: bool) -> int:
    return -(-size // stride) if same else (size - window) // stride + 1


def _convolution(known: _Known) -> Sequence[int]:
    """Weights are [filters, height, width, channels], of a depthwise one [1, height, width, channels]."""
    options, (batch, height, width, _), weights = known.options, known.shapes[0], known.shapes[1]
    same = options.padding == tflite.Padding.SAME
    rows = _windows(height, (weights[1] - 1) * options.dilationHFactor + 1, options.strideH, same)
    columns = _windows(width, (weights[2] - 1) * options.dilationWFactor + 1, options.strideW, same)
    return (batch, rows, columns, weights[3 if known.operator.name == "DEPTHWISE_CONV_2D" else 0])


def _pool(known: _Known) -> Sequence[int]:
    options, (batch, height, width, channels) = known.options, known.shapes[0]
    same = options.padding == tflite.Padding.SAME
    rows = _windows(height, options.filterHeight, options.strideH, same)
    return (batch, rows, _windows(width, options.filterWidth, options.strideW, same), channels)


def _concatenation(known: _Known) -> Sequence[int]:
    shape = list(known.shapes[0])
    axis = int(known.options.axis) % len(shape)
    shape[axis] = sum(one[axis] for one in known.shapes)
    return shape


def _padded(known: _Known) -> Sequence[int] | None:
    amounts = known.values.get(1)
    if amounts is None:
        return None
    return [n + int(pair.sum()) for n, pair in zip(known.shapes[0], amounts, strict=True)]


def _transposed(known: _Known) -> Sequence[int] | None:
    order = known.values.get(1)
    return None if order is None else [known.shapes[0][int(axis)] for axis in order]


def _tiled(known: _Known) -> Sequence[int] | None:
    times = known.values.get(1)
    return None if times is None else [n * int(k) for n, k in zip(known.shapes[0], times, strict=True)]


def _expanded(known: _Known) -> Sequence[int] | None:
    axis, shape = known.values.get(1), list(known.shapes[0])
    if axis is None:
        return None
    shape.insert(int(axis.reshape(-1)[0]) % (len(shape) + 1), 1)
    return shape


def _reduced(known: _Known) -> Sequence[int] | None:
    given, shape = known.values.get(1), known.shapes[0]
    if given is None:
        return None
    axes, keep = {int(axis) % len(shape) for axis in given.reshape(-1)}, known.options.keepDims
    return [1 if axis in axes else n for axis, n in enumerate(shape) if keep or axis not in axes]


def _given(known: _Known) -> Sequence[int] | None:
    """Return the shape that the first input says, as TRANSPOSE_CONV has it."""
    found = known.values.get(0)
    return None if found is None else [int(n) for n in found]


_INFER: dict[str, _Infer] = {
    **dict.fromkeys(_SAME, _broadcast),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), _convolution),
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D"), _pool),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), _padded),
    **dict.fromkeys(("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN"), _reduced),
    "CONCATENATION": _concatenation,
    "TRANSPOSE": _transposed,
    "TILE": _tiled,
    "EXPAND_DIMS": _expanded,
    "TRANSPOSE_CONV": _given,
}
