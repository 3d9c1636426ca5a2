"""Operators that are products with a constant matrix along an axis: resizes, mirrored padding, gathering.

The rule for y = M x along an axis is dx = M^T dy along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient import views
from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.schema import tflite

_MAX_ELEMENTS = 1 << 22  # of one matrix, 16 MB in the file
_Matrix: TypeAlias = NDArray[np.float32]
# The matrix [new, old] of a resize along one axis, with align_corners and half_pixel_centers.
_Weights: TypeAlias = Callable[[int, int, bool, bool], _Matrix]


def _transposed_product(context: RuleContext, dy: int, axis: int, matrix: _Matrix) -> int:
    if matrix.size > _MAX_ELEMENTS:
        raise context.refusal(
            f"its dimension {axis} takes a matrix of {' x '.join(map(str, matrix.shape))}; expected at most "
            f"{_MAX_ELEMENTS} elements"
        )
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix), dtype=np.float32)):
        return dy
    return views.multiply(context.builder, dy, axis, np.ascontiguousarray(matrix.T))


def _selection(indices: Sequence[int] | NDArray[np.int64], count: int) -> _Matrix:
    """Return the matrix that takes these entries of `count`."""
    matrix = np.zeros((len(indices), count), np.float32)
    matrix[np.arange(len(indices)), indices] = 1
    return matrix


def _resize_nearest(context: RuleContext) -> Sequence[int | None]:
    return _resized(context, _nearest)


def _resize_bilinear(context: RuleContext) -> Sequence[int | None]:
    return _resized(context, _bilinear)


def _resized(context: RuleContext, make: _Weights) -> Sequence[int | None]:
    options, dx = context.options, context.gradient()
    for axis in (1, 2):
        sizes = context.input_shape(0)[axis], context.output_shape()[axis]
        matrix = make(*sizes, bool(options.alignCorners), bool(options.halfPixelCenters))
        dx = _transposed_product(context, dx, axis, matrix)
    return [dx, None]


def _scale(old: int, new: int, align: bool) -> NDArray[np.float32]:
    """Return the steps in the old size for one in the new, rounded to float32 as in the kernels."""
    return np.array((old - 1) / (new - 1) if align and new > 1 else old / new, np.float32)


def _nearest(old: int, new: int, align: bool, half: bool) -> _Matrix:
    """Return the matrix of TFLite's GetNearestNeighbor (kernels/internal/reference/resize_nearest_neighbor.h)."""
    offset = np.float32(0.5 if half else 0)
    places = (np.arange(new, dtype=np.float32) + offset) * _scale(old, new, align)
    whole = np.floor(places.astype(np.float64) + (0.5 if align else 0.0)).astype(np.int64)
    return _selection(np.clip(whole, 0, old - 1), old)


def _bilinear(old: int, new: int, align: bool, half: bool) -> _Matrix:
    """Return the matrix of TFLite's ComputeInterpolationValues (kernels/internal/reference/resize_bilinear.h)."""
    scale, half_pixel = _scale(old, new, align), np.float32(0.5)
    places = np.arange(new, dtype=np.float32)
    places = (places + half_pixel) * scale - half_pixel if half else places * scale
    lower = np.maximum(np.floor(places), 0).astype(np.int64)
    upper = np.minimum(np.ceil(places), old - 1).astype(np.int64)
    share = (places - lower).astype(np.float32)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), lower), 1 - share)
    np.add.at(matrix, (np.arange(new), upper), share)
    return matrix


def _mirror_pad(context: RuleContext) -> Sequence[int | None]:
    reflects, dx = context.options.mode == tflite.MirrorPadMode.REFLECT, context.gradient()
    for axis, (before, after) in enumerate(context.constant(1).astype(np.int64)):
        count = context.input_shape(0)[axis]
        amounts = (int(before), int(after))
        whole = np.arange(count)
        indices = np.pad(whole, amounts, "reflect") if reflects else np.pad(whole, amounts, "symmetric")
        dx = _transposed_product(context, dx, axis, _selection(indices, count))
    return [dx, None]


def _gather(context: RuleContext) -> Sequence[int | None]:
    options, shape = context.options, context.input_shape(0)
    if options.batchDims:
        raise context.refusal(f"it gathers in {options.batchDims} batch dimensions; expected none")
    axis = int(options.axis) % len(shape)
    indices = context.constant(1).reshape(-1).astype(np.int64)
    dy = context.builder.reshape(context.gradient(), (*shape[:axis], len(indices), *shape[axis + 1 :]))
    return [_transposed_product(context, dy, axis, _selection(indices, shape[axis])), None]


RULES: dict[str, Rule] = {
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "RESIZE_BILINEAR": _resize_bilinear,
    "MIRROR_PAD": _mirror_pad,
    "GATHER": _gather,
}
