"""Which rows of its inputs an operator needs for some rows of its result.

Rows are the elements along the first spatial axis with more than one of them: the height of [N, H, W, C], the time of
[N, 1, T, C] and [N, T, C], the height of [N, D, H, W, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from har_edge.errors import CutError
from har_edge.tflite.model import Graph, Model, Operator, Tensor
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.writer import constant_data, raw_inputs


class RowKind(Enum):
    """How the share of an operator is written."""

    PLAIN = "plain"  # the operator as it is
    WINDOW = "window"  # padding as an operator of its own, then the operator without padding
    ALIGNED = "aligned"  # the operator with its padding, on so many rows that it pads as the whole does
    PAD = "pad"  # padding, with less of it
    SIZED = "sized"  # the number of rows stands in a constant of the operator
    TRANSPOSED = "transposed"  # a transposed convolution without padding
    RESHAPE = "reshape"
    SLICE = "slice"


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows [start, stop) of a tensor that an operator takes to make the rows [made_start, made_stop) of its result;
    `before` and `after` are rows of padding.
    """

    start: int
    stop: int
    made_start: int
    made_stop: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class RowRule:
    """How the rows of an operator's result follow from rows of its inputs.

    `axes` has an axis for each input whose rows are split, None for an input that is taken whole. Result row r takes
    `kernel` input rows from r * stride - before on; with `up`, there are so many result rows for an input row.
    `sliced` are the positions of constants with values of their own for each row.
    """

    kind: RowKind
    axis: int
    axes: tuple[int | None, ...]
    size_in: int
    size_out: int
    stride: int = 1
    kernel: int = 1
    before: int = 0
    up: int = 1
    sliced: tuple[int, ...] = ()

    def taken(self, start: int, stop: int) -> RowRange:
        """Return the rows that result rows [start, stop) take."""
        if self.kind is RowKind.TRANSPOSED:
            low = max(0, -(-(start + self.before - self.kernel + 1) // self.stride))
            high = min(self.size_in, (stop - 1 + self.before) // self.stride + 1)
            made = low * self.stride - self.before
            return RowRange(low, high, made, made + (high - low - 1) * self.stride + self.kernel)
        if self.up > 1:
            low = max(0, start // self.up - self.before)
            high = min(self.size_in, -(-stop // self.up) + self.before)
            return RowRange(low, high, low * self.up, high * self.up)
        low, high = start * self.stride - self.before, (stop - 1) * self.stride - self.before + self.kernel
        if self.kind is RowKind.ALIGNED:
            return self._aligned(low, high)
        size = self.size_in
        first, last = min(max(low, 0), size - 1), max(min(high, size), 1)
        if self.kind is RowKind.PAD:  # at least one row is taken, so more may be made than was wanted
            start, stop = min(start, first + self.before), max(stop, last + self.before)
            low, high = start - self.before, stop - self.before
        return RowRange(first, last, start, stop, max(0, first - low), max(0, high - last))

    def _aligned(self, low: int, high: int) -> RowRange:
        """Return rows on which the operator pads as it does on all: TFLite's padding depends on the size modulo the
        stride.
        """
        made = max(0, low) // self.stride
        first = made * self.stride
        last = self.size_in - (self.size_in - min(high, self.size_in)) // self.stride * self.stride
        return RowRange(first, last, made, made + -(-(last - first) // self.stride))


def row_axis(tensor: Tensor) -> int | None:
    """Return the axis of a tensor's rows, None where it has none."""
    shape = tensor.shape
    if len(shape) == 3:
        return 1 if shape[1] > 1 else None
    if len(shape) in (4, 5):
        return next((axis for axis in range(len(shape) - 3, len(shape) - 1) if shape[axis] > 1), None)
    return None


def find_rule(model: Model, operator: Operator, axis: int) -> RowRule | str:
    """Return how result rows along `axis` follow from rows of the inputs, or why they do not."""
    graph = model.main
    if operator.custom or not operator.outputs or axis >= len(graph.tensors[operator.outputs[0]].shape):
        return "no rule says which rows it needs"
    find = _RULES.get(operator.name)
    if find is None:
        return (
            "each row of its result needs all rows" if operator.name in _MIXING else "no rule says which rows it needs"
        )
    try:
        return find(model, operator, axis)
    except (CutError, AttributeError, IndexError, TypeError, ValueError) as error:
        return f"its inputs or options are not those that it has: {error}"


def _result(graph: Graph, operator: Operator) -> Tensor:
    return graph.tensors[operator.outputs[0]]


def _broadcast(model: Model, operator: Operator, axis: int) -> RowRule | str:
    """Each row takes the same row of every input; one with a single row goes with all."""
    graph, size = model.main, _result(model.main, operator).shape[axis]
    rank = len(_result(graph, operator).shape)
    axes, sliced = list[int | None](), list[int]()
    for position, index in enumerate(raw_inputs(operator)):
        own = axis - rank + len(graph.tensors[index].shape) if index >= 0 else -1
        if own < 0 or graph.tensors[index].shape[own] == 1:
            axes.append(None)
        elif graph.tensors[index].shape[own] != size:
            return f"input {graph.tensors[index].name} has other rows than its result"
        else:
            axes.append(own)
            if graph.tensors[index].constant:
                sliced.append(position)
    return RowRule(RowKind.PLAIN, axis, tuple(axes), size, size, sliced=tuple(sliced))


def _same(model: Model, operator: Operator, axis: int) -> RowRule | str:
    """Each row takes the same row of the first input, the other inputs whole."""
    return _first(model, operator, axis, RowKind.PLAIN)


def _first(model: Model, operator: Operator, axis: int, kind: RowKind, position: int = 0, **rest: Any) -> RowRule | str:
    inputs = raw_inputs(operator)
    own = rest.pop("own", axis)
    size_in = model.main.tensors[inputs[position]].shape[own]
    size_out = _result(model.main, operator).shape[axis]
    if kind is RowKind.PLAIN and size_in != size_out:
        return f"its input has {size_in} rows, its result {size_out}"
    axes = tuple(own if at == position else None for at in range(len(inputs)))
    return RowRule(kind, axis, axes, size_in, size_out, **rest)


def _window(model: Model, operator: Operator, axis: int) -> RowRule | str:
    graph, options = model.main, operator.raw.builtinOptions
    rank = len(_result(graph, operator).shape)
    letter = {rank - 4: "D", rank - 3: "H", rank - 2: "W"}.get(axis, "")
    if axis < 1 or not letter:
        return "it has no rows along this axis"
    word = {"D": "Depth", "H": "Height", "W": "Width"}[letter]
    stride, spread = int(getattr(options, f"stride{letter}")), 1
    if operator.name.endswith("POOL_2D"):
        kernel = int(getattr(options, f"filter{word}"))
    else:
        weights = graph.tensors[operator.inputs[1]]
        # 2-D weights are [filters, height, width, channels], 3-D ones [depth, height, width, channels, filters].
        kernel = weights.shape[axis - 1 if operator.name == "CONV_3D" else axis]
        spread = int(getattr(options, f"dilation{letter}Factor"))
    kernel = (kernel - 1) * spread + 1
    taken = graph.tensors[operator.inputs[0]].shape
    before, _ = same_padding(taken[axis], kernel, stride)
    same = options.padding == tflite.Padding.SAME
    kind = RowKind.WINDOW
    if same and operator.name in ("AVERAGE_POOL_2D", "L2_POOL_2D"):
        kind = RowKind.ALIGNED  # the mean is that of the real values, so padding cannot be written as values
    return _first(model, operator, axis, kind, stride=stride, kernel=kernel, before=before if same else 0)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how much SAME padding TFLite adds before and after `size` elements."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _pad(model: Model, operator: Operator, axis: int) -> RowRule | str:
    padding = constant_data(model, model.main.tensors[operator.inputs[1]])
    return _first(model, operator, axis, RowKind.PAD, before=int(padding[axis][0]))


def _mirror(model: Model, operator: Operator, axis: int) -> RowRule | str:
    padding = constant_data(model, model.main.tensors[operator.inputs[1]])
    return "it mirrors rows" if padding[axis].any() else _same(model, operator, axis)


def _resize(model: Model, operator: Operator, axis: int) -> RowRule | str:
    options, graph = operator.raw.builtinOptions, model.main
    size_in, size_out = graph.tensors[operator.inputs[0]].shape[axis], _result(graph, operator).shape[axis]
    up = size_out // size_in
    linear = operator.name == "RESIZE_BILINEAR"
    if axis not in (1, 2) or up * size_in != size_out or options.alignCorners:
        return f"it makes {size_out} rows of {size_in}; expected a whole multiple without aligned corners"
    if linear and up & (up - 1):
        return f"it makes {up} rows of one; expected a power of two, for which positions are exact"
    constant_data(model, graph.tensors[operator.inputs[1]])
    # A factor of 1 keeps rows as they are, and up > 1 is what makes `taken` count input rows.
    if up == 1:
        return _first(model, operator, axis, RowKind.SIZED)
    return _first(model, operator, axis, RowKind.SIZED, up=up, before=int(linear))


def _to_depth(model: Model, operator: Operator, axis: int) -> RowRule | str:
    block = int(operator.raw.builtinOptions.blockSize)
    return (
        _first(model, operator, axis, RowKind.WINDOW, stride=block, kernel=block)
        if axis in (1, 2)
        else "it has no rows along this axis"
    )


def _to_space(model: Model, operator: Operator, axis: int) -> RowRule | str:
    block = int(operator.raw.builtinOptions.blockSize)
    return (
        _first(model, operator, axis, RowKind.WINDOW, up=block) if axis in (1, 2) else "it has no rows along this axis"
    )


def _transposed(model: Model, operator: Operator, axis: int) -> RowRule | str:
    graph, options = model.main, operator.raw.builtinOptions
    if axis not in (1, 2):
        return "it has no rows along this axis"
    constant_data(model, graph.tensors[operator.inputs[0]])
    weights, taken = graph.tensors[operator.inputs[1]].shape, graph.tensors[operator.inputs[2]].shape
    size = _result(graph, operator).shape
    strides = {1: int(options.strideH), 2: int(options.strideW)}
    for at, stride in strides.items():
        if weights[at] < stride:
            return f"its kernel of {weights[at]} leaves gaps at stride {stride}"
        if size[at] > (taken[at] - 1) * stride + weights[at]:
            return "it makes rows that no input reaches"
    before, _ = same_padding(size[axis], weights[axis], strides[axis])
    if options.padding != tflite.Padding.SAME:
        before = 0
    return _first(
        model, operator, axis, RowKind.TRANSPOSED, 2, stride=strides[axis], kernel=weights[axis], before=before
    )


def _concatenation(model: Model, operator: Operator, axis: int) -> RowRule | str:
    if int(operator.raw.builtinOptions.axis) % len(_result(model.main, operator).shape) == axis:
        return "it puts rows behind each other"
    return _broadcast(model, operator, axis)


def _last_axis(model: Model, operator: Operator, axis: int) -> RowRule | str:
    if axis == len(_result(model.main, operator).shape) - 1:
        return "each element of its result needs all of them"
    return _same(model, operator, axis)


def _dense(model: Model, operator: Operator, axis: int) -> RowRule | str:
    options, result = operator.raw.builtinOptions, _result(model.main, operator)
    if not options.keepNumDims or axis >= len(result.shape) - 1:
        return "each unit needs all values"
    return _same(model, operator, axis)


def _reduce(model: Model, operator: Operator, axis: int) -> RowRule | str:
    taken = model.main.tensors[operator.inputs[0]]
    reduced = {int(i) % len(taken.shape) for i in constant_data(model, model.main.tensors[operator.inputs[1]]).flat}
    kept = [i for i in range(len(taken.shape)) if operator.raw.builtinOptions.keepDims or i not in reduced]
    if axis >= len(kept) or kept[axis] in reduced:
        return "each row of its result needs all rows"
    return _first(model, operator, axis, RowKind.PLAIN, own=kept[axis])


def _largest(model: Model, operator: Operator, axis: int) -> RowRule | str:
    rank = len(model.main.tensors[operator.inputs[0]].shape)
    over = int(constant_data(model, model.main.tensors[operator.inputs[1]]).reshape(-1)[0]) % rank
    own = axis if axis < over else axis + 1
    return _first(model, operator, axis, RowKind.PLAIN, own=own)


def _transpose(model: Model, operator: Operator, axis: int) -> RowRule | str:
    order = constant_data(model, model.main.tensors[operator.inputs[1]])
    return _first(model, operator, axis, RowKind.PLAIN, own=int(order[axis]))


def _reshape(model: Model, operator: Operator, axis: int) -> RowRule | str:
    taken, made = model.main.tensors[operator.inputs[0]].shape, _result(model.main, operator).shape
    for own, size in enumerate(taken):
        if size == made[axis] and math.prod(taken[:own]) == math.prod(made[:axis]):
            return _first(model, operator, axis, RowKind.RESHAPE, own=own)
    return f"it mixes rows: {list(taken)} becomes {list(made)}"


def _slice(model: Model, operator: Operator, axis: int) -> RowRule | str:
    graph = model.main
    if graph.tensors[operator.inputs[0]].shape[axis] != _result(graph, operator).shape[axis]:
        return "it takes some of the rows"
    rank = len(_result(graph, operator).shape)
    if rank != len(graph.tensors[operator.inputs[0]].shape):
        return "it drops dimensions"
    options, steps = operator.raw.builtinOptions, [constant_data(model, graph.tensors[i]) for i in operator.inputs[1:]]
    if operator.name == "STRIDED_SLICE" and (
        options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask or steps[2][axis] != 1
    ):
        return "it takes rows in another order, or changes dimensions"
    return _first(model, operator, axis, RowKind.SLICE)


def _split(model: Model, operator: Operator, axis: int) -> RowRule | str:
    at = operator.inputs[0] if operator.name == "SPLIT" else operator.inputs[2]
    taken = raw_inputs(operator)[1 if operator.name == "SPLIT" else 0]
    along = int(np.asarray(constant_data(model, model.main.tensors[at])).reshape(-1)[0])
    if along % len(model.main.tensors[taken].shape) == axis:
        return "it deals out rows"
    return _first(model, operator, axis, RowKind.PLAIN, int(operator.name == "SPLIT"))


_MIXING = frozenset({"BATCH_MATMUL", "CUMSUM", "REVERSE_V2"})
_RULES: dict[str, Callable[[Model, Operator, int], RowRule | str]] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D"), _window),
    **dict.fromkeys(("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"), _window),
    **dict.fromkeys(
        ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "PRELU"), _broadcast
    ),
    **dict.fromkeys(("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LEAKY_RELU", "ELU", "TANH", "LOGISTIC"), _same),
    **dict.fromkeys(("HARD_SWISH", "GELU", "ABS", "NEG", "SQUARE", "SQRT", "RSQRT", "EXP", "LOG", "ROUND"), _same),
    **dict.fromkeys(("FLOOR", "CEIL", "SIN", "COS", "QUANTIZE", "DEQUANTIZE", "CAST"), _same),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION"), _last_axis),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), _reduce),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), _largest),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _resize),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE"), _slice),
    **dict.fromkeys(("SPLIT", "SPLIT_V"), _split),
    "MIRROR_PAD": _mirror,
    "SPACE_TO_DEPTH": _to_depth,
    "DEPTH_TO_SPACE": _to_space,
    "TRANSPOSE_CONV": _transposed,
    "CONCATENATION": _concatenation,
    "FULLY_CONNECTED": _dense,
    "TRANSPOSE": _transpose,
}
