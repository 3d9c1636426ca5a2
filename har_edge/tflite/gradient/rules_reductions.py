"""Reductions along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient import views
from har_edge.tflite.gradient.masks import inverted
from har_edge.tflite.gradient.rules import Rule, RuleContext


def _kept(context: RuleContext, reduced: int) -> int:
    """Return a reduced tensor with dimensions of 1 for the axes that went."""
    shape = context.input_shape(0)
    axes = context.axes(1, len(shape))
    return context.builder.reshape(reduced, [1 if axis in axes else n for axis, n in enumerate(shape)])


def _sum(context: RuleContext) -> Sequence[int | None]:
    kept = _kept(context, context.gradient())
    return [views.broadcast(context.builder, kept, context.input_shape(0)), None]


def _mean(context: RuleContext) -> Sequence[int | None]:
    count = math.prod(context.input_shape(0)) / math.prod(context.output_shape())
    kept = context.builder.scaled(_kept(context, context.gradient()), 1 / count)
    return [views.broadcast(context.builder, kept, context.input_shape(0)), None]


def _extreme(context: RuleContext) -> Sequence[int | None]:
    """Share the gradient equally among all entries that have the extreme value, as TensorFlow does."""
    builder, x = context.builder, context.inputs[0]
    difference = builder.minus(x, _kept(context, context.outputs[0]))
    taken = inverted(builder, builder.unary("ABS", builder.unary("SIGN", difference)))
    count = builder.sum_over(taken, context.axes(1, len(builder.shape(x))), keep=True)
    return [builder.times(taken, builder.over(_kept(context, context.gradient()), count)), None]


RULES: dict[str, Rule] = {"SUM": _sum, "MEAN": _mean, "REDUCE_MAX": _extreme, "REDUCE_MIN": _extreme}
