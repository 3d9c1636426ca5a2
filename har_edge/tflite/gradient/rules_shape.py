"""Operators that move values: reshapes, transposes, joins, splits, blocks, repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from har_edge.tflite.gradient import views
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.schema import tflite


def _reshape(context: RuleContext) -> Sequence[int | None]:
    """Give the gradient in the input's shape; the other inputs say how the operator reshapes."""
    dx = context.builder.reshape(context.gradient(), context.input_shape(0))
    return [dx, *[None] * (len(context.inputs) - 1)]


def _reshape_forward(context: RuleContext) -> Sequence[int]:
    """Write the shape for the batch of this file, whatever the model computes it from."""
    return [context.builder.identity(context.inputs[0], context.output_shape())]


def _transpose(context: RuleContext) -> Sequence[int | None]:
    order = context.axes(1, len(context.input_shape(0)))
    return [context.builder.transpose(context.gradient(), [order.index(axis) for axis in range(len(order))]), None]


def _concatenation(context: RuleContext) -> Sequence[int | None]:
    builder, dy = context.builder, context.gradient()
    axis = int(context.options.axis) % len(context.output_shape())
    found: list[int | None] = []
    start = 0
    for position, needed in enumerate(context.needs):
        count = context.input_shape(position)[axis]
        found.append(views.part(builder, dy, axis, start, count) if needed else None)
        start += count
    return found


def _pack(context: RuleContext) -> Sequence[int | None]:
    builder, dy = context.builder, context.gradient()
    axis = int(context.options.axis) % len(context.output_shape())
    return [
        builder.reshape(views.part(builder, dy, axis, position, 1), context.input_shape(position)) if needed else None
        for position, needed in enumerate(context.needs)
    ]


def _joined(context: RuleContext, parts: Sequence[int | None], axis: int, source: int) -> int:
    """Return the gradient of an input that was taken apart along an axis; parts without a gradient give zeros."""
    builder, shape = context.builder, context.input_shape(source)
    present = [one for one in parts if one is not None]
    if len(present) == len(parts):
        return builder.concat(present, axis)
    total, start = None, 0
    sizes = _sizes(context, axis, len(parts), shape)
    for one, size in zip(parts, sizes, strict=True):
        if one is not None:
            placed = views.place(builder, one, shape, axis, start)
            total = placed if total is None else builder.plus(total, placed)
        start += size
    return context.builder.constant(np.zeros(shape, np.float32)) if total is None else total


def _sizes(context: RuleContext, axis: int, count: int, shape: tuple[int, ...]) -> list[int]:
    if context.operator.name == "UNPACK":
        return [1] * count
    return [context.output_shape(position)[axis] for position in range(count)]


def _split(context: RuleContext) -> Sequence[int | None]:
    (axis,) = context.axes(0, len(context.input_shape(1)))
    return [None, _joined(context, context.dy, axis, 1)]


def _split_v(context: RuleContext) -> Sequence[int | None]:
    (axis,) = context.axes(2, len(context.input_shape(0)))
    return [_joined(context, context.dy, axis, 0), None, None]


def _unpack(context: RuleContext) -> Sequence[int | None]:
    shape = context.input_shape(0)
    axis = int(context.options.axis) % len(shape)
    thin = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [None if dy is None else context.builder.reshape(dy, thin) for dy in context.dy]
    return [_joined(context, parts, axis, 0)]


def _space_to_depth(context: RuleContext) -> Sequence[int | None]:
    options = tflite.DepthToSpaceOptionsT()
    options.blockSize = context.options.blockSize
    return [context.builder.add("DEPTH_TO_SPACE", [context.gradient()], context.input_shape(0), options)]


def _depth_to_space(context: RuleContext) -> Sequence[int | None]:
    options = tflite.SpaceToDepthOptionsT()
    options.blockSize = context.options.blockSize
    return [context.builder.add("SPACE_TO_DEPTH", [context.gradient()], context.input_shape(0), options)]


def _space_to_batch(context: RuleContext) -> Sequence[int | None]:
    """The gradient of padding and taking blocks apart: join the blocks, and crop."""
    inputs = [context.gradient(), *_constants(context)]
    options = tflite.BatchToSpaceNDOptionsT()
    return [context.builder.add("BATCH_TO_SPACE_ND", inputs, context.input_shape(0), options), None, None]


def _batch_to_space(context: RuleContext) -> Sequence[int | None]:
    inputs = [context.gradient(), *_constants(context)]
    options = tflite.SpaceToBatchNDOptionsT()
    return [context.builder.add("SPACE_TO_BATCH_ND", inputs, context.input_shape(0), options), None, None]


def _constants(context: RuleContext) -> list[int]:
    return [context.builder.constant(np.array(context.constant(position))) for position in (1, 2)]


def _tile(context: RuleContext) -> Sequence[int | None]:
    builder, dy, shape = context.builder, context.gradient(), context.input_shape(0)
    for axis, times in enumerate(int(n) for n in context.constant(1).reshape(-1)):
        if times > 1:
            held = builder.shape(dy)
            flat = builder.reshape(dy, (math.prod(held[:axis]), times, math.prod(held[axis:]) // times))
            dy = builder.reshape(builder.sum_over(flat, [1]), (*held[:axis], shape[axis], *held[axis + 1 :]))
    return [dy, None]


def _broadcast_to(context: RuleContext) -> Sequence[int | None]:
    return [context.builder.unbroadcast(context.gradient(), context.input_shape(0)), None]


def _broadcast_forward(context: RuleContext) -> Sequence[int]:
    """Write the shape for the batch of this file."""
    builder, shape = context.builder, context.output_shape()
    inputs = [context.inputs[0], builder.ints(shape)]
    dtype = builder.dtype(context.inputs[0])
    return [builder.add("BROADCAST_TO", inputs, shape, tflite.BroadcastToOptionsT(), dtype=dtype, version=2)]


def _reverse(context: RuleContext) -> Sequence[int | None]:
    dx = context.gradient()
    for axis in context.axes(1, len(context.input_shape(0))):
        dx = views.reverse(context.builder, dx, axis)
    return [dx, None]


def _select(context: RuleContext) -> Sequence[int | None]:
    builder, dy = context.builder, context.gradient()
    first = builder.times(dy, builder.cast(context.inputs[0], "float32"))
    return [
        None,
        builder.unbroadcast(first, context.input_shape(1)) if context.needs[1] else None,
        builder.unbroadcast(builder.minus(dy, first), context.input_shape(2)) if context.needs[2] else None,
    ]


def _cumsum(context: RuleContext) -> Sequence[int | None]:
    """Add up the gradient from the other end."""
    options = tflite.CumsumOptionsT()
    options.exclusive, options.reverse = context.options.exclusive, not context.options.reverse
    axis = _scalar(context.builder, *context.axes(1, len(context.input_shape(0))))
    return [context.builder.add("CUMSUM", [context.gradient(), axis], context.input_shape(0), options), None]


def _scalar(builder: GraphBuilder, value: int) -> int:
    return builder.constant(np.array(value, np.int32))


RULES: dict[str, Rule] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SPACE_TO_DEPTH": _space_to_depth,
    "DEPTH_TO_SPACE": _depth_to_space,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast_to,
    "REVERSE_V2": _reverse,
    "SELECT_V2": _select,
    "CUMSUM": _cumsum,
}
FORWARDS: dict[str, Forward] = {"RESHAPE": _reshape_forward, "BROADCAST_TO": _broadcast_forward}
