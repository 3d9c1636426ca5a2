"""Padding, cropping, spreading and products along one axis, for tensors of any number of dimensions.

Kernels take few dimensions: on tflite-runtime 2.14, PAD and SLICE at most five. An axis of more is looked at as the
middle one of three: [before, axis, after].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.schema import tflite

_KERNEL_RANK = 5


def pad(builder: GraphBuilder, a: int, amounts: Sequence[tuple[int, int]]) -> int:
    """Return a with so many zeros before and after it in each dimension."""
    if len(amounts) <= _KERNEL_RANK:
        return builder.pad(a, amounts)
    for axis, (before, after) in enumerate(amounts):
        shape = builder.shape(a)
        inner = math.prod(shape[axis + 1 :])
        flat = builder.reshape(a, (math.prod(shape[:axis]), shape[axis] * inner))
        flat = builder.pad(flat, [(0, 0), (before * inner, after * inner)])
        a = builder.reshape(flat, (*shape[:axis], shape[axis] + before + after, *shape[axis + 1 :]))
    return a


def crop(builder: GraphBuilder, a: int, begin: Sequence[int], size: Sequence[int]) -> int:
    """Return the block of a that begins there and has this size."""
    if len(size) <= _KERNEL_RANK:
        return builder.slice(a, begin, size)
    for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
        shape = builder.shape(a)
        inner = math.prod(shape[axis + 1 :])
        flat = builder.reshape(a, (math.prod(shape[:axis]), shape[axis] * inner))
        flat = builder.slice(flat, [0, start * inner], [builder.shape(flat)[0], count * inner])
        a = builder.reshape(flat, (*shape[:axis], count, *shape[axis + 1 :]))
    return a


def place(builder: GraphBuilder, a: int, shape: Shape, axis: int, start: int) -> int:
    """Return zeros of this shape with a from `start` along one axis."""
    after = shape[axis] - start - builder.shape(a)[axis]
    return pad(builder, a, [(start, after) if i == axis else (0, 0) for i in range(len(shape))])


def part(builder: GraphBuilder, a: int, axis: int, start: int, count: int) -> int:
    """Return `count` entries of a from `start` along one axis."""
    shape = builder.shape(a)
    begin = [start if i == axis else 0 for i in range(len(shape))]
    return crop(builder, a, begin, [count if i == axis else n for i, n in enumerate(shape)])


def spread(builder: GraphBuilder, a: int, axis: int, step: int) -> int:
    """Return a with step - 1 zeros behind each entry along an axis; a negative step turns the axis round first."""
    shape = builder.shape(a)
    before, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if step < 0:
        a = reverse(builder, a, axis)
        step = -step
    flat = builder.reshape(a, (before * shape[axis], inner))
    flat = builder.pad(flat, [(0, 0), (0, (step - 1) * inner)])
    return builder.reshape(flat, (*shape[:axis], shape[axis] * step, *shape[axis + 1 :]))


def reverse(builder: GraphBuilder, a: int, axis: int) -> int:
    """Return a turned round along an axis; one alone, since tflite-runtime 2.14 silently turns one of several."""
    shape = builder.shape(a)
    flat = builder.reshape(a, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
    turned = builder.add("REVERSE_V2", [flat, builder.ints([1])], builder.shape(flat), tflite.ReverseV2OptionsT())
    return builder.reshape(turned, shape)


def multiply(builder: GraphBuilder, a: int, axis: int, matrix: NDArray[np.float32]) -> int:
    """Return the product of a matrix [n, m] with an axis of m entries of a, which then has n."""
    shape = builder.shape(a)
    rows, columns = matrix.shape
    before, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if inner == 1:
        flat = builder.reshape(a, (before, columns))
        found = builder.matmul(flat, builder.constant(np.ascontiguousarray(matrix.T)))
    else:
        found = builder.matmul(builder.constant(matrix), builder.reshape(a, (before, columns, inner)))
    return builder.reshape(found, (*shape[:axis], rows, *shape[axis + 1 :]))


def broadcast(builder: GraphBuilder, a: int, shape: Shape) -> int:
    """Return a repeated along its dimensions of 1, up to this shape."""
    if builder.shape(a) == shape:
        return a
    return builder.add("BROADCAST_TO", [a, builder.ints(shape)], shape, tflite.BroadcastToOptionsT(), version=2)
