"""All rules, by the operator's name in the schema."""

from __future__ import annotations

from har_edge.tflite.gradient import rules_elementwise, rules_linear, rules_shape
from har_edge.tflite.gradient.rules import Forwards, Rules

RULES: Rules = {**rules_linear.RULES, **rules_elementwise.RULES, **rules_shape.RULES}
# Operators that are written anew instead of copied: because they hold the batch, or a faster form takes weights that
# are inputs.
FORWARDS: Forwards = {**rules_shape.FORWARDS}
