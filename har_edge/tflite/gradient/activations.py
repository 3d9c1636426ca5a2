"""Fused activations, and the operators of the same name: their gradients follow from what they give."""

from __future__ import annotations

from collections.abc import Callable

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite

Derivative = Callable[[GraphBuilder, int], int]


def _relu(builder: GraphBuilder, y: int) -> int:
    return builder.unary("SIGN", y)


def _relu6(builder: GraphBuilder, y: int) -> int:
    below = builder.unary("SIGN", builder.minus(builder.constant(6.0), y))
    return builder.times(builder.unary("SIGN", y), below)


def _relu_n1_to_1(builder: GraphBuilder, y: int) -> int:
    return builder.unary("SIGN", builder.minus(builder.constant(1.0), builder.unary("ABS", y)))


def _tanh(builder: GraphBuilder, y: int) -> int:
    return builder.minus(builder.constant(1.0), builder.times(y, y))


_KINDS = tflite.ActivationFunctionType
# The derivative of each activation, out of its result. The sign of what a clip gives is a mask of 0 and 1; see masks.py
# for why no comparison makes it.
DERIVATIVES: dict[int, Derivative] = {
    _KINDS.RELU: _relu,
    _KINDS.RELU6: _relu6,
    _KINDS.RELU_N1_TO_1: _relu_n1_to_1,
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
