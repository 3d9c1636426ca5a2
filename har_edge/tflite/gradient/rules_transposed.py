"""TRANSPOSE_CONV: the gradient of a convolution's input as an operator, so its own gradients are convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.gradient.rules_conv import add_bias, channel_sums, product_forward, product_input, product_weights
from har_edge.tflite.gradient.window import SlidingWindow, make_axis


def _window_of(context: RuleContext) -> SlidingWindow:
    """Return the window of the convolution from the output of the operator to its input.

    Inputs are the output's shape, weights [filters, height, width, channels], values, maybe a bias.
    """
    options, padding = context.options, int(context.options.padding)
    _, height, width, _ = context.input_shape(1)
    wide, narrow = context.output_shape(), context.input_shape(2)
    steps = ((height, options.strideH), (width, options.strideW))
    return SlidingWindow(
        tuple(make_axis(wide[i], narrow[i], kernel, int(step), 1, padding) for i, (kernel, step) in enumerate(steps, 1))
    )


def _forward(context: RuleContext) -> Sequence[int] | None:
    """Write products of taps, which XNNPACK takes; the operator itself would hold the batch in its first input."""
    builder, window = context.builder, _window_of(context)
    table = builder.transpose(context.inputs[1], (3, 1, 2, 0))
    y = product_input(builder, window, context.inputs[2], table)
    bias = context.inputs[3] if context.has_input(3) else None
    return [add_bias(builder, y, bias, int(context.options.fusedActivationFunction))]


def _transposed(context: RuleContext) -> Sequence[int | None]:
    builder, window, dy = context.builder, _window_of(context), context.gradient()
    filters, height, width, channels = context.input_shape(1)
    given: list[int | None] = [None] * len(context.inputs)
    turned = (channels, height, width, filters)
    if context.needs[1]:
        found = product_weights(builder, window, dy, context.inputs[2], turned)
        given[1] = builder.transpose(found, (3, 1, 2, 0))
    if context.needs[2]:
        given[2] = product_forward(builder, window, dy, builder.transpose(context.inputs[1], (3, 1, 2, 0)))
    if context.has_input(3) and context.needs[3]:
        assert math.prod(context.input_shape(3)) == filters
        given[3] = channel_sums(builder, dy, context.input_shape(3))
    return given


RULES: dict[str, Rule] = {"TRANSPOSE_CONV": _transposed}
FORWARDS: dict[str, Forward] = {"TRANSPOSE_CONV": _forward}
