"""Shares of the operators without weights, which go along with the ones before or after them."""

from __future__ import annotations

from har_edge.errors import CutError
from har_edge.tflite.split.ranges import AxisRange, reshaped
from har_edge.tflite.split.shares import OperatorShare, OperatorView, Rule, TakenInput


def share_elements(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """Element-wise operators, whose inputs are spread over the output's shape."""
    rank = len(view.output.shape)
    taken = []
    for position, index in enumerate(view.inputs):
        shape = view.shape(position) if index >= 0 else ()
        axis = wanted.axis - (rank - len(shape))
        alike = axis >= 0 and shape[axis] == view.output.shape[wanted.axis]
        taken.append(view.part(position, wanted.on(axis)) if alike else TakenInput(index))
    return (OperatorShare(tuple(taken), wanted),)


def share_channels(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """Operators that treat each channel and each sample by itself: pooling, resizing."""
    if wanted.axis not in (0, len(view.output.shape) - 1):
        raise CutError("needs rows of its neighbours for a share of rows; take the method rows for that")
    return _first_input(view, wanted, wanted)


def share_all_but_last(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """Operators that need all of the last axis, such as SOFTMAX."""
    if wanted.axis == len(view.output.shape) - 1:
        raise CutError("needs all elements of the last axis for each of its results")
    return _first_input(view, wanted, wanted)


def share_reduction(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """MEAN and others, by an axis that stays."""
    rank = len(view.shape(0))
    gone = sorted({axis % rank for axis in view.numbers(1)})
    kept = list(range(rank)) if view.options.keepDims else [axis for axis in range(rank) if axis not in gone]
    axis = kept[wanted.axis]
    if axis in gone:
        raise CutError(f"needs all elements of axis {axis} for each of its results")
    return _first_input(view, wanted, wanted.on(axis))


def share_padding(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """PAD and others, by an axis that they do not change."""
    before, after = view.numbers(1)[2 * wanted.axis : 2 * wanted.axis + 2]
    if before or after:
        raise CutError(f"pads axis {wanted.axis}, by which it cannot be shared")
    return _first_input(view, wanted, wanted)


def share_concatenation(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """CONCATENATION; by its own axis, a share takes what lies in it."""
    rank = len(view.output.shape)
    if view.options.axis % rank != wanted.axis:
        taken = tuple(view.part(position, wanted) for position in range(len(view.inputs)))
        return (OperatorShare(taken, wanted),)
    found, at = [], 0
    for position in range(len(view.inputs)):
        size = view.shape(position)[wanted.axis]
        start, stop = max(wanted.start, at) - at, min(wanted.stop, at + size) - at
        if start < stop:
            found.append(view.part(position, AxisRange(wanted.axis, start, stop)))
        at += size
    return (OperatorShare(tuple(found), wanted),)


def share_reshape(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """RESHAPE, where a share of the output is a range of the input."""
    part = reshaped(view.shape(0), view.output.shape, wanted)
    if not view.has(1):
        shape = [int(n) for n in view.options.newShape]
        shape[wanted.axis] = wanted.size
        return (OperatorShare((view.part(0, part),), wanted, {"newShape": shape}),)
    shape = view.numbers(1)
    shape[wanted.axis] = wanted.size
    options = {"newShape": shape} if view.options is not None and view.options.newShape is not None else {}
    return (OperatorShare((view.part(0, part), view.changed(1, shape)), wanted, options),)


def share_same_elements(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """SQUEEZE and EXPAND_DIMS: axes of one element come or go."""
    return _first_input(view, wanted, reshaped(view.shape(0), view.output.shape, wanted))


def share_transposition(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """TRANSPOSE: the range stands on another axis before."""
    return _first_input(view, wanted, wanted.on(view.numbers(1)[wanted.axis]))


def share_neighbours(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """LOCAL_RESPONSE_NORMALIZATION: each channel needs some on both sides, of which the share computes the results,
    too.
    """
    last = len(view.output.shape) - 1
    if wanted.axis != last:
        return _first_input(view, wanted, wanted)
    radius = int(view.options.radius)
    halo = AxisRange(last, max(0, wanted.start - radius), min(view.output.shape[last], wanted.stop + radius))
    return _first_input(view, halo, halo, wanted)


def share_slice(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """SLICE with constant places: the begin of the share moves into the range of the input."""
    begins, sizes = view.numbers(1), view.numbers(2)
    part = AxisRange(wanted.axis, begins[wanted.axis] + wanted.start, begins[wanted.axis] + wanted.stop)
    begins[wanted.axis], sizes[wanted.axis] = 0, wanted.size
    return (OperatorShare((view.part(0, part), view.changed(1, begins), view.changed(2, sizes)), wanted),)


def share_strided_slice(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """STRIDED_SLICE with constant places, without steps along the axis of the share."""
    options, shape = view.options, view.shape(0)
    begins, ends, strides = (view.numbers(position) for position in (1, 2, 3))
    if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask or len(begins) != len(shape):
        raise CutError("adds or drops axes, so that a share of it is not known")
    bit, axis = 1 << wanted.axis, wanted.axis
    begin = 0 if options.beginMask & bit else begins[axis]
    begin += shape[axis] if begin < 0 else 0
    if strides[axis] != 1 or options.offset:
        raise CutError(f"takes each {strides[axis]}th element of axis {axis}, by which it cannot be shared")
    begins[axis], ends[axis] = 0, wanted.size
    part = AxisRange(axis, begin + wanted.start, begin + wanted.stop)
    taken = (view.part(0, part), view.changed(1, begins), view.changed(2, ends), view.whole(3))
    masks = {"beginMask": options.beginMask & ~bit, "endMask": options.endMask & ~bit}
    return (OperatorShare(taken, wanted, masks),)


def _first_input(
    view: OperatorView, gives: AxisRange, part: AxisRange, keeps: AxisRange | None = None
) -> tuple[OperatorShare, ...]:
    """Return the share that takes a range of the first input, and all of the others."""
    rest = tuple(TakenInput(index) for index in view.inputs[1:])
    return (OperatorShare((view.part(0, part), *rest), gives, keeps=keeps),)


ELEMENTWISE = frozenset(
    {
        *("ADD", "SUB", "MUL", "DIV", "ADD_N", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV"),
        *("FLOOR_MOD", "PRELU", "SELECT_V2", "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER"),
        *("GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"),
        *("LEAKY_RELU", "ELU", "GELU", "TANH", "LOGISTIC", "HARD_SWISH", "ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT"),
        *("SQUARE", "ROUND", "FLOOR", "CEIL", "SIN", "COS", "SIGN", "QUANTIZE", "DEQUANTIZE", "CAST"),
    }
)
CARRIED_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, share_elements),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"), share_channels),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), share_channels),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION"), share_all_but_last),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), share_reduction),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), share_padding),
    **dict.fromkeys(("SQUEEZE", "EXPAND_DIMS"), share_same_elements),
    "CONCATENATION": share_concatenation,
    "RESHAPE": share_reshape,
    "TRANSPOSE": share_transposition,
    "LOCAL_RESPONSE_NORMALIZATION": share_neighbours,
    "SLICE": share_slice,
    "STRIDED_SLICE": share_strided_slice,
}
