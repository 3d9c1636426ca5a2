"""Fused activations, and the operators of the same name: their gradients follow from what they give."""

from __future__ import annotations

from collections.abc import Callable

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite

Mask = Callable[[GraphBuilder, int], int]


def positive(builder: GraphBuilder, y: int) -> int:
    """Return 1 where y > 0, else 0, as float32."""
    return compare(builder, "GREATER", y, 0.0)


def compare(builder: GraphBuilder, operator: str, y: int, bound: float) -> int:
    """Return 1 where y compares so with a number, else 0, as float32."""
    return builder.cast(builder.binary(operator, y, builder.constant(bound), dtype="bool"), "float32")


def _between(low: float, high: float) -> Mask:
    def mask(builder: GraphBuilder, y: int) -> int:
        above = builder.binary("GREATER", y, builder.constant(low), dtype="bool")
        below = builder.binary("LESS", y, builder.constant(high), dtype="bool")
        return builder.cast(builder.binary("LOGICAL_AND", above, below, dtype="bool"), "float32")

    return mask


def _tanh(builder: GraphBuilder, y: int) -> int:
    return builder.minus(builder.constant(1.0), builder.times(y, y))


_KINDS = tflite.ActivationFunctionType
# The derivative of each activation, out of its result.
DERIVATIVES: dict[int, Mask] = {
    _KINDS.RELU: positive,
    _KINDS.RELU6: _between(0.0, 6.0),
    _KINDS.RELU_N1_TO_1: _between(-1.0, 1.0),
    _KINDS.TANH: _tanh,
}


def activation_gradient(builder: GraphBuilder, kind: int, y: int, dy: int) -> int | None:
    """Return the gradient in front of an activation of this kind (ActivationFunctionType), None for an unknown one.

    At the corners of RELU, RELU6 and RELU_N1_TO_1 it is 0, as in TensorFlow.
    """
    if kind == _KINDS.NONE:
        return dy
    derivative = DERIVATIVES.get(kind)
    return None if derivative is None else builder.times(dy, derivative(builder, y))
