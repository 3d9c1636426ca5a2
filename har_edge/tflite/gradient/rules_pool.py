"""MAX_POOL_2D and AVERAGE_POOL_2D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.gradient.window import SlidingWindow, Tap, make_axis

_LOWEST = float(np.finfo(np.float32).min)


def _window_of(context: RuleContext) -> SlidingWindow:
    options, x, y = context.options, context.input_shape(0), context.output_shape()
    sizes = ((options.filterHeight, options.strideH), (options.filterWidth, options.strideW))
    padding = int(options.padding)
    return SlidingWindow(
        tuple(make_axis(x[i], y[i], int(kernel), int(step), 1, padding) for i, (kernel, step) in enumerate(sizes, 1))
    )


def _average(context: RuleContext) -> Sequence[int | None]:
    """Each input of a window gets dy over the number of inputs that the window sees; SAME counts no padding."""
    builder, window = context.builder, _window_of(context)
    counts = np.multiply.outer(*(axis.counts() for axis in window.axes)).astype(np.float32)
    factors = 1 / counts[:, :, None]
    factors = factors.flat[:1] if (counts == counts.flat[0]).all() else factors
    share = builder.times(context.gradient(), builder.constant(factors.astype(np.float32)))
    channels = context.input_shape(0)[-1]
    # The window is a row of a column: what goes back along one dimension goes back along the other.
    for number in (1, 0):
        share = _only(window, number).back(builder, share, channels, lambda tap, shifted: shifted)
    return [share]


def _only(window: SlidingWindow, number: int) -> SlidingWindow:
    """Return the window along one dimension, which leaves the other as it is."""
    other = 1 - number
    size = window.axes[other].out if number == 1 else window.axes[other].size
    plain = make_axis(size, size, 1, 1, 1, 1)
    return SlidingWindow((plain, window.axes[1]) if number == 1 else (window.axes[0], plain))


def _maximum(context: RuleContext) -> Sequence[int | None]:
    """The first of the largest inputs of a window, row by row, gets dy, as in TensorFlow."""
    builder, window, dy = context.builder, _window_of(context), context.gradient()
    padded = window.padded(builder, context.inputs[0], _LOWEST)
    given: dict[Tap, int] = {}
    left: int | None = None  # dy where no tap was the largest yet, else 0
    for tap in window.taps:
        equal = builder.binary("EQUAL", window.tap(builder, padded, tap), context.outputs[0], dtype="bool")
        given[tap] = builder.times(dy if left is None else left, builder.cast(equal, "float32"))
        left = builder.minus(dy if left is None else left, given[tap])
    return [window.back_each(builder, given, context.input_shape(0)[-1])]


RULES: dict[str, Rule] = {"AVERAGE_POOL_2D": _average, "MAX_POOL_2D": _maximum}
