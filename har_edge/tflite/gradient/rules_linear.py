"""Matrix products: FULLY_CONNECTED and BATCH_MATMUL."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.gradient.rules_conv import add_bias, bias_of, channel_sums


def _fully_connected_forward(context: RuleContext) -> Sequence[int] | None:
    """Write a BATCH_MATMUL, which XNNPACK takes with weights that are inputs."""
    if context.is_constant(1):
        return None
    builder, (x, weights) = context.builder, context.inputs[:2]
    depth = builder.shape(weights)[1]
    rows = math.prod(context.input_shape(0)) // depth
    product = builder.matmul(builder.reshape(x, (rows, depth)), weights, adj_b=True)
    y = add_bias(builder, product, bias_of(context), int(context.options.fusedActivationFunction))
    return [builder.reshape(y, context.output_shape())]


def _fully_connected(context: RuleContext) -> Sequence[int | None]:
    """y = x W^T + b: dx = dy W, dW = dy^T x, db = sum of dy over the rows."""
    builder, (x, weights) = context.builder, context.inputs[:2]
    units, depth = builder.shape(weights)
    rows = math.prod(context.input_shape(0)) // depth
    dy = builder.reshape(context.gradient(), (rows, units))
    given: list[int | None] = [None] * len(context.inputs)
    if context.needs[0]:
        given[0] = builder.reshape(builder.matmul(dy, weights), builder.shape(x))
    if context.needs[1]:
        given[1] = builder.matmul(dy, builder.reshape(x, (rows, depth)), adj_a=True)
    if context.has_input(2) and context.needs[2]:
        given[2] = channel_sums(builder, dy, context.input_shape(2))
    return given


def _matmul(context: RuleContext) -> Sequence[int | None]:
    """y = a b: da = dy b^T, db = a^T dy, each transposed where the operator transposes; batches are added up."""
    builder, (a, b), dy = context.builder, context.inputs, context.gradient()
    adj_a, adj_b = bool(context.options.adjX), bool(context.options.adjY)
    da = db = None
    if context.needs[0]:
        da = builder.matmul(b, dy, adj_a=adj_b, adj_b=True) if adj_a else builder.matmul(dy, b, adj_b=not adj_b)
        da = builder.unbroadcast(da, builder.shape(a))
    if context.needs[1]:
        db = builder.matmul(dy, a, adj_a=True, adj_b=adj_a) if adj_b else builder.matmul(a, dy, adj_a=not adj_a)
        db = builder.unbroadcast(db, builder.shape(b))
    return [da, db]


RULES: dict[str, Rule] = {"FULLY_CONNECTED": _fully_connected, "BATCH_MATMUL": _matmul}
FORWARDS: dict[str, Forward] = {"FULLY_CONNECTED": _fully_connected_forward}
