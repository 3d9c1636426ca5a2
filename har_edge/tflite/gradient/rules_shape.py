"""Operators that move values: reshapes, transposes, slices, joins, resizes."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.tflite.gradient.rules import Forward, Rule, RuleContext


def _reshape(context: RuleContext) -> Sequence[int | None]:
    return [context.builder.reshape(context.gradient(), context.input_shape(0)), None]


def _reshape_forward(context: RuleContext) -> Sequence[int]:
    """Write the shape for the batch of this file, whatever the model computes it from."""
    return [context.builder.identity(context.inputs[0], context.output_shape())]


RULES: dict[str, Rule] = {"RESHAPE": _reshape}
FORWARDS: dict[str, Forward] = {"RESHAPE": _reshape_forward}
