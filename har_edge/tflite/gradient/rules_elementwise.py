"""Elementwise operators."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.tflite.gradient.activations import activation_gradient
from har_edge.tflite.gradient.rules import Rule, RuleContext
from har_edge.tflite.schema import tflite


def _add(context: RuleContext) -> Sequence[int | None]:
    dy = context.gradient()
    return [
        context.builder.unbroadcast(dy, context.input_shape(i)) if context.needs[i] else None
        for i in range(len(context.inputs))
    ]


def _relu(context: RuleContext) -> Sequence[int | None]:
    kind = getattr(tflite.ActivationFunctionType, context.operator.name)
    return [activation_gradient(context.builder, kind, context.outputs[0], context.gradient())]


RULES: dict[str, Rule] = {"ADD": _add, "RELU": _relu}
