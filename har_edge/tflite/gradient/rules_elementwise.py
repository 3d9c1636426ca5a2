"""Elementwise operators of one or two inputs, which are broadcast as NumPy does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from har_edge.tflite.gradient.masks import greater, positive
from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.schema import tflite


def _pair(context: RuleContext, da: Callable[[], int], db: Callable[[], int]) -> Sequence[int | None]:
    """Return the gradients of two operands, each made only where it is needed, summed over what was broadcast."""
    return [
        context.builder.unbroadcast(make(), context.input_shape(position)) if context.needs[position] else None
        for position, make in enumerate((da, db))
    ]


def _add(context: RuleContext) -> Sequence[int | None]:
    return _pair(context, context.gradient, context.gradient)


def _add_several(context: RuleContext) -> Sequence[int | None]:
    return [context.gradient() if needed else None for needed in context.needs]


def _sub(context: RuleContext) -> Sequence[int | None]:
    return _pair(context, context.gradient, lambda: context.builder.unary("NEG", context.gradient()))


def _mul(context: RuleContext) -> Sequence[int | None]:
    builder, (a, b), dy = context.builder, context.inputs, context.gradient()
    return _pair(context, lambda: builder.times(dy, b), lambda: builder.times(dy, a))


def _div(context: RuleContext) -> Sequence[int | None]:
    """y = a / b: da = dy / b, db = -dy * a / b^2."""
    builder, (a, b) = context.builder, context.inputs
    da = builder.over(context.gradient(), b)
    return _pair(context, lambda: da, lambda: builder.unary("NEG", builder.times(da, builder.over(a, b))))


def _pow(context: RuleContext) -> Sequence[int | None]:
    """y = a^b: da = dy * b * a^(b - 1), db = dy * y * log a, which is 0 where a <= 0, as in TensorFlow."""
    builder, (a, b), dy = context.builder, context.inputs, context.gradient()

    def base() -> int:
        lower = builder.binary("POW", a, builder.minus(b, builder.constant(1.0)))
        return builder.times(builder.times(dy, b), lower)

    def exponent() -> int:
        # The logarithm of 1 is 0: neither NaN nor infinity comes up where a <= 0.
        above = positive(builder, a)
        kept = builder.times(builder.unary("RELU", a), above)
        ones = builder.minus(builder.constant(1.0), above)
        logs = builder.unary("LOG", builder.plus(kept, ones))
        return builder.times(builder.times(dy, context.outputs[0]), logs)

    return _pair(context, base, exponent)


def _extreme(context: RuleContext) -> Sequence[int | None]:
    """Give the gradient to the operand that was taken; of two equal ones to the first, as TensorFlow does."""
    builder, (a, b), dy = context.builder, context.inputs, context.gradient()
    second = greater(builder, b, a) if context.operator.name == "MAXIMUM" else greater(builder, a, b)
    to_second = builder.times(dy, second)
    return _pair(context, lambda: builder.minus(dy, to_second), lambda: to_second)


def _squared_difference(context: RuleContext) -> Sequence[int | None]:
    builder, (a, b) = context.builder, context.inputs
    da = builder.times(builder.scaled(context.gradient(), 2.0), builder.minus(a, b))
    return _pair(context, lambda: da, lambda: builder.unary("NEG", da))


def _of_input(derivative: Callable[[RuleContext, int], int]) -> Rule:
    """Return the rule dx = dy * derivative(x)."""

    def rule(context: RuleContext) -> Sequence[int | None]:
        return [context.builder.times(context.gradient(), derivative(context, context.inputs[0]))]

    return rule


def _of_output(derivative: Callable[[RuleContext, int], int]) -> Rule:
    """Return the rule dx = dy * derivative(y)."""

    def rule(context: RuleContext) -> Sequence[int | None]:
        return [context.builder.times(context.gradient(), derivative(context, context.outputs[0]))]

    return rule


def _negate(context: RuleContext) -> Sequence[int | None]:
    return [context.builder.unary("NEG", context.gradient())]


def _logarithm(context: RuleContext) -> Sequence[int | None]:
    return [context.builder.over(context.gradient(), context.inputs[0])]


def _square_root(context: RuleContext) -> Sequence[int | None]:
    builder = context.builder
    return [builder.over(builder.scaled(context.gradient(), 0.5), context.outputs[0])]


def _inverse_root(context: RuleContext, y: int) -> int:
    """y = x^(-1/2): its derivative is -y^3 / 2."""
    builder = context.builder
    return builder.scaled(builder.times(builder.times(y, y), y), -0.5)


def _absolute(context: RuleContext, x: int) -> int:
    return context.builder.unary("SIGN", x)


def _cosine(context: RuleContext, x: int) -> int:
    return context.builder.unary("COS", x, tflite.CosOptionsT())


def _minus_sine(context: RuleContext, x: int) -> int:
    return context.builder.unary("NEG", context.builder.unary("SIN", x))


RULES: dict[str, Rule] = {
    "ADD": _add,
    "ADD_N": _add_several,
    "SUB": _sub,
    "MUL": _mul,
    "DIV": _div,
    "POW": _pow,
    "MAXIMUM": _extreme,
    "MINIMUM": _extreme,
    "SQUARED_DIFFERENCE": _squared_difference,
    "NEG": _negate,
    "ABS": _of_input(_absolute),
    "SQUARE": _of_input(lambda context, x: context.builder.scaled(x, 2.0)),
    "SQRT": _square_root,
    "RSQRT": _of_output(_inverse_root),
    "EXP": _of_output(lambda context, y: y),
    "LOG": _logarithm,
    "SIN": _of_input(_cosine),
    "COS": _of_input(_minus_sine),
}
