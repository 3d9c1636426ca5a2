"""CONV_2D in two forms: the runtime's own kernel, and a matrix product for each tap of the window.

XNNPACK takes no convolution whose weights are inputs, but takes BATCH_MATMUL. With few channels the product of a tap is
too thin, and the kernel of the runtime without XNNPACK is faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext
from har_edge.tflite.gradient.window import SlidingWindow, conv_window
from har_edge.tflite.schema import tflite

FEW_CHANNELS = 4  # below it the runtime's kernel is faster (docs/explanation/gradients.md)


def activate(builder: GraphBuilder, y: int, kind: int) -> int:
    """Return y behind an activation of this kind."""
    names = {value: name for name, value in vars(tflite.ActivationFunctionType).items() if not name.startswith("_")}
    return y if kind == tflite.ActivationFunctionType.NONE else builder.unary(names[kind], y)


def add_bias(builder: GraphBuilder, y: int, bias: int | None, activation: int) -> int:
    """Return activation(y + bias)."""
    if bias is None or activation not in (0, 1, 2, 3):
        y = y if bias is None else builder.plus(y, bias)
        return activate(builder, y, activation)
    options = tflite.AddOptionsT()
    options.fusedActivationFunction = activation
    return builder.add("ADD", [y, bias], builder.shape(y), options)


def channel_sums(builder: GraphBuilder, dy: int, shape: Sequence[int]) -> int:
    """Return the sums over all but the last dimension, the gradient of a bias."""
    channels = builder.shape(dy)[-1]
    rows = math.prod(builder.shape(dy)) // channels
    ones = builder.constant(np.ones((1, rows), np.float32))
    return builder.reshape(builder.matmul(ones, builder.reshape(dy, (rows, channels))), shape)


def bias_of(context: RuleContext, position: int = 2) -> int | None:
    """Return the bias of an operator, None where it has none."""
    return context.inputs[position] if context.has_input(position) else None


def _window_of(context: RuleContext) -> SlidingWindow:
    kernel = context.input_shape(1)[1:3]
    return conv_window(context.input_shape(0), context.output_shape(), kernel, context.options)


def _groups(context: RuleContext) -> int:
    return context.input_shape(0)[-1] // context.input_shape(1)[-1]


def tap_weights(builder: GraphBuilder, weights: int) -> dict[tuple[int, ...], int]:
    """Return the weights [filters, *kernel, channels] of each tap as [filters, channels]."""
    filters, *kernel, channels = builder.shape(weights)
    taps = math.prod(kernel)
    if taps == 1:
        return {(0,) * len(kernel): builder.reshape(weights, (filters, channels))}
    table = builder.transpose(builder.reshape(weights, (filters, taps, channels)), (1, 0, 2))
    return {
        tuple(int(k) for k in np.unravel_index(tap, kernel)): builder.reshape(
            builder.slice(table, (tap, 0, 0), (1, filters, channels)), (filters, channels)
        )
        for tap in range(taps)
    }


def product_forward(builder: GraphBuilder, window: SlidingWindow, x: int, weights: int) -> int:
    """Return the convolution of one group as a sum of products, [batch, *out, filters]."""
    padded = window.padded(builder, x)
    channels = builder.shape(x)[-1]
    total: int | None = None
    for tap, table in tap_weights(builder, weights).items():
        seen = window.tap(builder, padded, tap)
        rows = math.prod(builder.shape(seen)) // channels
        given = builder.matmul(builder.reshape(seen, (rows, channels)), table, adj_b=True)
        total = given if total is None else builder.plus(total, given)
    assert total is not None
    return builder.reshape(total, (builder.shape(x)[0], *window.out, builder.shape(weights)[0]))


def product_input(builder: GraphBuilder, window: SlidingWindow, dy: int, weights: int) -> int:
    """Return the gradient of the input of one group: each tap gives dy times its weights back."""
    filters, channels = builder.shape(weights)[0], builder.shape(weights)[-1]
    tables = tap_weights(builder, weights)

    def give(tap: tuple[int, ...], shifted: int) -> int:
        shape = builder.shape(shifted)
        rows = math.prod(shape) // filters
        given = builder.matmul(builder.reshape(shifted, (rows, filters)), tables[tap])
        return builder.reshape(given, (*shape[:-1], channels))

    return window.back(builder, dy, channels, give)


def product_weights(builder: GraphBuilder, window: SlidingWindow, x: int, dy: int, shape: Sequence[int]) -> int:
    """Return the gradient of the weights of one group: for each tap dy^T times what it sees."""
    filters, channels = shape[0], shape[-1]
    padded = window.padded(builder, x)
    rows = math.prod(builder.shape(dy)) // filters
    table = builder.reshape(dy, (rows, filters))
    given = [
        builder.matmul(table, builder.reshape(window.tap(builder, padded, tap), (rows, channels)), adj_a=True)
        for tap in window.taps
    ]
    if len(given) == 1:
        return builder.reshape(given[0], shape)
    return builder.reshape(builder.concat(given, 1), shape)


def kernel_weights(builder: GraphBuilder, window: SlidingWindow, x: int, dy: int, shape: Sequence[int]) -> int:
    """Return the gradient of the weights of one group as CONV_2D of x as [channels, H, W, batch] with dy as the filter.

    Stride and dilation change places.
    """
    filters, height, width, channels = shape
    padded = builder.transpose(window.padded(builder, x), (3, 1, 2, 0))
    turned = builder.transpose(dy, (3, 1, 2, 0))
    options = tflite.Conv2DOptionsT()
    rows, columns = window.axes
    options.padding = tflite.Padding.VALID
    options.strideH, options.strideW = rows.dilation, columns.dilation
    options.dilationHFactor, options.dilationWFactor = rows.stride, columns.stride
    sizes = [
        (builder.shape(padded)[i + 1] - (axis.out - 1) * axis.stride - 1) // axis.dilation + 1
        for i, axis in enumerate(window.axes)
    ]
    bias = builder.constant(np.zeros(filters, np.float32))
    found = builder.add("CONV_2D", [padded, turned, bias], (channels, *sizes, filters), options)
    kept = builder.slice(found, (0, 0, 0, 0), (channels, height, width, filters))
    return builder.transpose(kept, (3, 1, 2, 0))


def _split(builder: GraphBuilder, tensor: int, axis: int, groups: int) -> list[int]:
    shape = list(builder.shape(tensor))
    if groups == 1:
        return [tensor]
    shape[axis] //= groups
    begins = [[shape[axis] * group if i == axis else 0 for i in range(len(shape))] for group in range(groups)]
    return [builder.slice(tensor, begin, shape) for begin in begins]


def _forward(context: RuleContext) -> Sequence[int] | None:
    builder, (x, weights) = context.builder, context.inputs[:2]
    options = context.options
    if context.is_constant(1) or context.input_shape(1)[-1] < FEW_CHANNELS:
        return None
    groups, window = _groups(context), _window_of(context)
    pairs = zip(_split(builder, x, 3, groups), _split(builder, weights, 0, groups), strict=True)
    parts = [product_forward(builder, window, part, table) for part, table in pairs]
    return [add_bias(builder, builder.concat(parts, 3), bias_of(context), int(options.fusedActivationFunction))]


def _conv(context: RuleContext) -> Sequence[int | None]:
    builder, (x, weights) = context.builder, context.inputs[:2]
    groups, window, dy = _groups(context), _window_of(context), context.gradient()
    slices = _split(builder, dy, 3, groups)
    given: list[int | None] = [None] * len(context.inputs)
    if context.needs[0]:
        tables = _split(builder, weights, 0, groups)
        pairs = zip(slices, tables, strict=True)
        given[0] = builder.concat([product_input(builder, window, part, table) for part, table in pairs], 3)
    if context.needs[1]:
        filters, *kernel, channels = builder.shape(weights)
        form = kernel_weights if channels < FEW_CHANNELS else product_weights
        parts = zip(_split(builder, x, 3, groups), slices, strict=True)
        shape = (filters // groups, *kernel, channels)
        given[1] = builder.concat([form(builder, window, part, slice_, shape) for part, slice_ in parts], 0)
    if context.has_input(2) and context.needs[2]:
        given[2] = channel_sums(builder, dy, context.input_shape(2))
    return given


RULES: dict[str, Rule] = {"CONV_2D": _conv}
FORWARDS: dict[str, Forward] = {"CONV_2D": _forward}
