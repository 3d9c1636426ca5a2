"""DEPTHWISE_CONV_2D: each channel has filters of its own, so a tap is a product of elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.gradient.rules_conv import channel_sums
from har_edge.tflite.gradient.window import SlidingWindow, conv_window


def _window_of(context: RuleContext) -> SlidingWindow:
    kernel = context.input_shape(1)[1:3]
    return conv_window(context.input_shape(0), context.output_shape(), kernel, context.options)


def _depthwise(context: RuleContext) -> Sequence[int | None]:
    """Output channel c * multiplier + m belongs to input channel c."""
    builder, dy = context.builder, context.gradient()
    given: list[int | None] = [None] * len(context.inputs)
    if context.needs[0]:
        given[0] = _input(context, dy)
    if context.needs[1]:
        given[1] = _weights(context, dy)
    if context.has_input(2) and context.needs[2]:
        given[2] = channel_sums(builder, dy, context.input_shape(2))
    return given


def _input(context: RuleContext, dy: int) -> int:
    builder, window = context.builder, _window_of(context)
    _, height, width, filters = context.input_shape(1)
    channels = context.input_shape(0)[-1]
    table = builder.reshape(context.inputs[1], (height * width, filters))

    def give(tap: tuple[int, ...], shifted: int) -> int:
        place = tap[0] * width + tap[1]
        factors = builder.reshape(builder.slice(table, (place, 0), (1, filters)), (filters,))
        shape = builder.shape(shifted)
        product = builder.times(shifted, factors)
        if filters == channels:
            return product
        flat = builder.reshape(product, (math.prod(shape[:-1]), channels, filters // channels))
        return builder.reshape(builder.sum_over(flat, [2]), (*shape[:-1], channels))

    return window.back(builder, dy, channels, give)


def _weights(context: RuleContext, dy: int) -> int:
    builder, window = context.builder, _window_of(context)
    shape = context.input_shape(1)
    channels, filters = context.input_shape(0)[-1], shape[-1]
    multiplier = filters // channels
    rows = math.prod(builder.shape(dy)) // filters
    padded = window.padded(builder, context.inputs[0])
    gradient = builder.reshape(dy, (rows, channels, multiplier) if multiplier > 1 else (rows, channels))
    given = []
    for tap in window.taps:
        seen = window.tap(builder, padded, tap)
        seen = builder.reshape(seen, (rows, channels, 1) if multiplier > 1 else (rows, channels))
        given.append(_row_sums(builder, builder.reshape(builder.times(seen, gradient), (rows, filters))))
    return builder.reshape(builder.concat(given, 0), shape)


def _row_sums(builder: GraphBuilder, table: int) -> int:
    """Return the sums over the rows, [1, columns]."""
    ones = builder.constant(np.ones((1, builder.shape(table)[0]), np.float32))
    return builder.matmul(ones, table)


RULES: dict[str, Rule] = {"DEPTHWISE_CONV_2D": _depthwise}
