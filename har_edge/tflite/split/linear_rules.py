"""Shares of the operators with weights: which weights, and which part of the input, a range of the output takes."""

from __future__ import annotations

from itertools import pairwise

from har_edge.errors import CutError
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.shares import OperatorShare, OperatorView, Rule, TakenInput


def share_dense(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """FULLY_CONNECTED: weights [units, values], bias [units]."""
    check_weights(view)
    shape = view.output.shape
    if wanted.axis == len(shape) - 1:
        units = wanted.on(0)
        return (OperatorShare((view.whole(0), view.part(1, units), *view.optional(2, units)), wanted),)
    if len(view.shape(0)) != len(shape) or view.shape(0)[-1] != view.shape(1)[-1]:
        raise CutError("makes one vector of several dimensions, so that only its units can be shared")
    rest = tuple(TakenInput(i) for i in view.inputs[1:])
    return (OperatorShare((view.part(0, wanted), *rest), wanted),)


def share_convolution(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """CONV_2D: weights [filters, height, width, channels of a group], bias [filters]."""
    if wanted.axis != 3:
        return _share_batch(view, wanted)
    filters, per_group = view.shape(1)[0], view.shape(1)[3]
    groups = view.shape(0)[3] // max(1, per_group)
    if groups <= 1:
        return (_filters(view, wanted, view.whole(0), filters),)
    size = filters // groups
    shares = []
    for part in _at_groups(wanted, size):
        first, last = part.start // size, -(-part.stop // size)
        channels = AxisRange(3, first * per_group, last * per_group)
        shares.append(_filters(view, part, view.part(0, channels), size))
    return tuple(shares)


def _at_groups(wanted: AxisRange, size: int) -> list[AxisRange]:
    """Cut a range so that each part has whole groups only, or lies within one."""
    low, high = -(-wanted.start // size) * size, wanted.stop // size * size
    if low > high:  # within one group
        return [wanted]
    places = sorted({wanted.start, low, high, wanted.stop})
    return [AxisRange(wanted.axis, start, stop) for start, stop in pairwise(places)]


def _filters(view: OperatorView, wanted: AxisRange, taken: TakenInput, size: int) -> OperatorShare:
    """Return the share of filters of which `size` have the same input channels."""
    gives = _at_least_two(wanted, size) if view.shape(1)[3] == 1 else wanted
    filters = gives.on(0)
    return OperatorShare((taken, view.part(1, filters), *view.optional(2, filters)), gives, keeps=wanted)


def _at_least_two(wanted: AxisRange, size: int) -> AxisRange:
    """Return a range of two for one of a single filter, among the `size` filters of its input channel.

    XNNPACK has another kernel for one filter of one channel than for several, with other bits.
    """
    if wanted.size > 1 or size < 2:
        return wanted
    start = min(wanted.start, (wanted.start // size + 1) * size - 2)
    return AxisRange(wanted.axis, start, start + 2)


def share_depthwise(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """DEPTHWISE_CONV_2D: weights [1, height, width, channels * multiplier]; channel c makes outputs c * multiplier on.

    A share of several channels that begins or ends between the outputs of one computes all of that channel.
    """
    if wanted.axis != 3:
        return _share_batch(view, wanted)
    multiplier = view.shape(1)[3] // max(1, view.shape(0)[3])
    channels = AxisRange(3, wanted.start // multiplier, -(-wanted.stop // multiplier))
    gives = AxisRange(3, channels.start * multiplier, channels.stop * multiplier)
    if channels.size == 1:
        gives = _at_least_two(wanted, multiplier)
        multiplier = gives.size
    inputs = (view.part(0, channels), view.part(1, gives), *view.optional(2, gives.on(0)))
    return (OperatorShare(inputs, gives, {"depthMultiplier": multiplier}, wanted),)


def share_transposed(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """TRANSPOSE_CONV: the output's shape, weights [filters, height, width, channels], values, maybe a bias."""
    if wanted.axis != 3:
        raise CutError("can be shared by output channels only")
    filters = wanted.on(0)
    shape = view.changed(0, list(wanted.resized(view.numbers(0))))
    return (OperatorShare((shape, view.part(1, filters), view.whole(2), *view.optional(3, filters)), wanted),)


def share_convolution_3d(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """CONV_3D: weights [depth, height, width, channels, filters], bias [filters]."""
    if wanted.axis != 4:
        return _share_batch(view, wanted)
    if view.shape(1)[3] != view.shape(0)[4]:
        raise CutError("has groups, which no runtime computes in three dimensions")
    return (OperatorShare((view.whole(0), view.part(1, wanted), *view.optional(2, wanted.on(0))), wanted),)


def share_transposed_3d(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """CONV_3D_TRANSPOSE: the output's shape, weights [depth, height, width, filters, channels], values, a bias."""
    if wanted.axis != 4:
        raise CutError("can be shared by output channels only")
    shape = view.changed(0, list(wanted.resized(view.numbers(0))))
    weights = view.part(1, wanted.on(3))
    return (OperatorShare((shape, weights, view.whole(2), *view.optional(3, wanted.on(0))), wanted),)


def share_product(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    """BATCH_MATMUL: [..., rows, inner] by [..., inner, columns], each maybe transposed; batches broadcast."""
    rank = len(view.output.shape)
    first, second = view.whole(0), view.whole(1)
    own = (len(view.shape(0)), len(view.shape(1)))
    if wanted.axis == rank - 2:
        first = view.part(0, wanted.on(own[0] - (1 if view.options.adjX else 2)))
    elif wanted.axis == rank - 1:
        second = view.part(1, wanted.on(own[1] - (2 if view.options.adjY else 1)))
    else:
        first, second = (_batches(view, position, wanted, rank) for position in (0, 1))
    return (OperatorShare((first, second), wanted),)


def _batches(view: OperatorView, position: int, wanted: AxisRange, rank: int) -> TakenInput:
    shape = view.shape(position)
    axis = wanted.axis - (rank - len(shape))
    return view.part(position, wanted.on(axis)) if axis >= 0 and shape[axis] > 1 else view.whole(position)


def _share_batch(view: OperatorView, wanted: AxisRange) -> tuple[OperatorShare, ...]:
    if wanted.axis != 0:
        raise CutError("needs rows of its neighbours for a share of rows; take the method rows for that")
    rest = tuple(TakenInput(i) for i in view.inputs[1:])
    return (OperatorShare((view.part(0, wanted), *rest), wanted),)


def check_weights(view: OperatorView) -> None:
    """Raise CutError for weights that cannot be cut."""
    if getattr(view.options, "weightsFormat", 0):
        raise CutError("has shuffled weights, which cannot be cut; convert the model without them")


LINEAR_RULES: dict[str, Rule] = {
    "FULLY_CONNECTED": share_dense,
    "CONV_2D": share_convolution,
    "DEPTHWISE_CONV_2D": share_depthwise,
    "TRANSPOSE_CONV": share_transposed,
    "CONV_3D": share_convolution_3d,
    "CONV_3D_TRANSPOSE": share_transposed_3d,
    "BATCH_MATMUL": share_product,
}
