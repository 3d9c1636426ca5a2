"""Activations and normalisations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient.activations import activation_gradient
from har_edge.tflite.gradient.masks import inverted, positive, within, within_or_at
from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.schema import tflite

# As in the kernel of L2_NORMALIZATION: no vector is divided by less than 1e-6.
_LEAST_SQUARED_NORM = 1e-12
# Below this |x|, the normal distribution is a straight line through 1/2 to float32's precision.
_STRAIGHT = 0.01
_TANH_CUBIC = 0.044715  # of the approximate GELU (Hendrycks and Gimpel 2016)


def _fused(context: RuleContext) -> Sequence[int | None]:
    kind = getattr(tflite.ActivationFunctionType, context.operator.name)
    return [activation_gradient(context.builder, kind, context.outputs[0], context.gradient())]


def _clipped(low: float, high: float) -> Rule:
    """Give the gradient to values that the clip left alone, those at its bounds too, as tf.clip_by_value does."""

    def rule(context: RuleContext) -> Sequence[int | None]:
        mask = within_or_at(context.builder, context.inputs[0], low, high)
        return [context.builder.times(context.gradient(), mask)]

    return rule


def _leaky(context: RuleContext) -> Sequence[int | None]:
    builder, alpha = context.builder, float(context.options.alpha)
    above = positive(builder, context.inputs[0])
    slope = builder.plus(builder.scaled(above, 1.0 - alpha), builder.constant(alpha))
    return [builder.times(context.gradient(), slope)]


def _prelu(context: RuleContext) -> Sequence[int | None]:
    """y = relu(x) - alpha * relu(-x), as Keras has it: the gradient at 0 is 0."""
    builder, (x, alpha), dy = context.builder, context.inputs, context.gradient()
    minus_x = builder.unary("NEG", x)
    found: list[int | None] = [None, None]
    if context.needs[0]:
        below = builder.times(positive(builder, minus_x), alpha)
        found[0] = builder.times(dy, builder.plus(positive(builder, x), below))
    if context.needs[1]:
        wide = builder.unary("NEG", builder.times(dy, builder.unary("RELU", minus_x)))
        found[1] = builder.unbroadcast(wide, builder.shape(alpha))
    return found


def _elu(context: RuleContext) -> Sequence[int | None]:
    """y = x above 0, exp(x) - 1 below, where its derivative is y + 1."""
    builder = context.builder
    below = builder.binary("MINIMUM", context.outputs[0], builder.constant(0.0))
    return [builder.times(context.gradient(), builder.plus(below, builder.constant(1.0)))]


def _logistic(context: RuleContext) -> Sequence[int | None]:
    builder, y = context.builder, context.outputs[0]
    return [builder.times(context.gradient(), builder.times(y, inverted(builder, y)))]


def _hard_swish(context: RuleContext) -> Sequence[int | None]:
    """y = x * relu6(x + 3) / 6."""
    builder, x = context.builder, context.inputs[0]
    gate = builder.unary("RELU6", builder.plus(x, builder.constant(3.0)))
    sloping = builder.times(x, within(builder, x, -3.0, 3.0))
    slope = builder.scaled(builder.plus(gate, sloping), 1 / 6)
    return [builder.times(context.gradient(), slope)]


def _gelu(context: RuleContext) -> Sequence[int | None]:
    slope = _tanh_gelu(context) if context.options.approximate else _exact_gelu(context)
    return [context.builder.times(context.gradient(), slope)]


def _exact_gelu(context: RuleContext) -> int:
    """Return F(x) + x * f(x) of the normal distribution F and its density f.

    There is no operator for F. But F(a) = gelu(a) / a; and between -a and a, a small one, F is a straight line.
    """
    builder, x = context.builder, context.inputs[0]
    away = builder.binary("MAXIMUM", builder.unary("ABS", x), builder.constant(_STRAIGHT))
    above = builder.over(builder.unary("GELU", away, tflite.GeluOptionsT()), away)
    slope = builder.over(builder.minus(above, builder.constant(0.5)), away)
    distribution = builder.plus(builder.times(x, slope), builder.constant(0.5))
    squares = builder.scaled(builder.times(x, x), -0.5)
    density = builder.scaled(builder.unary("EXP", squares, tflite.ExpOptionsT()), 1 / math.sqrt(2 * math.pi))
    return builder.plus(distribution, builder.times(x, density))


def _tanh_gelu(context: RuleContext) -> int:
    """Return the derivative of x * (1 + tanh u) / 2 with u = sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    builder, x = context.builder, context.inputs[0]
    scale, one = math.sqrt(2 / math.pi), builder.constant(1.0)
    squares = builder.scaled(builder.times(x, x), _TANH_CUBIC)
    tanh = builder.unary("TANH", builder.scaled(builder.times(x, builder.plus(squares, one)), scale))
    inner = builder.scaled(builder.plus(builder.scaled(squares, 3.0), one), scale)
    curved = builder.times(builder.minus(one, builder.times(tanh, tanh)), builder.times(x, inner))
    return builder.scaled(builder.plus(builder.plus(tanh, one), curved), 0.5)


def _softmax(context: RuleContext) -> Sequence[int | None]:
    """dx = beta * y * (dy - sum(dy * y)), sums over the last dimension."""
    builder, y, dy = context.builder, context.outputs[0], context.gradient()
    mixed = builder.sum_over(builder.times(dy, y), [-1], keep=True)
    return [builder.scaled(builder.times(y, builder.minus(dy, mixed)), float(context.options.beta))]


def _log_softmax(context: RuleContext) -> Sequence[int | None]:
    """dx = dy - exp(y) * sum(dy), the sum over the last dimension."""
    builder, dy = context.builder, context.gradient()
    softmax = builder.unary("EXP", context.outputs[0], tflite.ExpOptionsT())
    return [builder.minus(dy, builder.times(softmax, builder.sum_over(dy, [-1], keep=True)))]


def _l2_normalization(context: RuleContext) -> Sequence[int | None]:
    """y = x / n with the norm n of the last dimension: dx = (dy - y * sum(dy * y)) / n; where n is at its least value,
    dx = dy / n.
    """
    builder, x, y, dy = context.builder, context.inputs[0], context.outputs[0], context.gradient()
    least = builder.constant(_LEAST_SQUARED_NORM)
    squares = builder.sum_over(builder.times(x, x), [-1], keep=True)
    norm = builder.unary("SQRT", builder.binary("MAXIMUM", squares, least))
    free = positive(builder, builder.minus(squares, least))
    along = builder.times(builder.sum_over(builder.times(dy, y), [-1], keep=True), free)
    return [builder.over(builder.minus(dy, builder.times(y, along)), norm)]


RULES: dict[str, Rule] = {
    "RELU": _fused,
    "RELU6": _fused,
    "TANH": _fused,
    "RELU_N1_TO_1": _clipped(-1.0, 1.0),
    "RELU_0_TO_1": _clipped(0.0, 1.0),
    "LEAKY_RELU": _leaky,
    "PRELU": _prelu,
    "ELU": _elu,
    "LOGISTIC": _logistic,
    "HARD_SWISH": _hard_swish,
    "GELU": _gelu,
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": _log_softmax,
    "L2_NORMALIZATION": _l2_normalization,
}
