"""CONV_3D, as matrix products of the taps of its window."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.gradient.rules_conv import (
    FEW_CHANNELS,
    add_bias,
    bias_of,
    channel_sums,
    product_forward,
    product_input,
    product_weights,
)
from har_edge.tflite.gradient.window import SlidingWindow, volume_window


def _window_of(context: RuleContext) -> SlidingWindow:
    kernel = context.input_shape(1)[:3]
    return volume_window(context.input_shape(0), context.output_shape(), kernel, context.options)


def _filters_first(builder: GraphBuilder, weights: int) -> int:
    """Return weights [depth, height, width, channels, filters] as [filters, depth, height, width, channels]."""
    *rest, filters = builder.shape(weights)
    table = builder.transpose(builder.reshape(weights, (math.prod(rest), filters)), (1, 0))
    return builder.reshape(table, (filters, *rest))


def _forward(context: RuleContext) -> Sequence[int] | None:
    if context.input_shape(1)[3] < FEW_CHANNELS:
        return None
    builder, (x, weights) = context.builder, context.inputs[:2]
    y = product_forward(builder, _window_of(context), x, _filters_first(builder, weights))
    return [add_bias(builder, y, bias_of(context), int(context.options.fusedActivationFunction))]


def _conv(context: RuleContext) -> Sequence[int | None]:
    builder, (x, weights) = context.builder, context.inputs[:2]
    window, dy = _window_of(context), context.gradient()
    given: list[int | None] = [None] * len(context.inputs)
    if context.needs[0]:
        given[0] = product_input(builder, window, dy, _filters_first(builder, weights))
    if context.needs[1]:
        *rest, filters = builder.shape(weights)
        found = product_weights(builder, window, x, dy, (filters, *rest))
        table = builder.transpose(builder.reshape(found, (filters, math.prod(rest))), (1, 0))
        given[1] = builder.reshape(table, builder.shape(weights))
    if context.has_input(2) and context.needs[2]:
        given[2] = channel_sums(builder, dy, context.input_shape(2))
    return given


RULES: dict[str, Rule] = {"CONV_3D": _conv}
FORWARDS: dict[str, Forward] = {"CONV_3D": _forward}
