"""All rules, by the operator's name in the schema."""

from __future__ import annotations

from har_edge.tflite.gradient import (
    rules_activations,
    rules_conv,
    rules_depthwise,
    rules_elementwise,
    rules_linear,
    rules_matrices,
    rules_normalisation,
    rules_pool,
    rules_reductions,
    rules_shape,
    rules_slices,
    rules_transposed,
    rules_volume,
)
from har_edge.tflite.gradient.rules import Forwards, Rules

RULES: Rules = {
    **rules_linear.RULES,
    **rules_conv.RULES,
    **rules_depthwise.RULES,
    **rules_transposed.RULES,
    **rules_pool.RULES,
    **rules_elementwise.RULES,
    **rules_activations.RULES,
    **rules_reductions.RULES,
    **rules_shape.RULES,
    **rules_slices.RULES,
    **rules_matrices.RULES,
    **rules_volume.RULES,
    **rules_normalisation.RULES,
}
# Operators that are written anew instead of copied: because they hold the batch, or a faster form takes weights that
# are inputs.
FORWARDS: Forwards = {
    **rules_linear.FORWARDS,
    **rules_conv.FORWARDS,
    **rules_transposed.FORWARDS,
    **rules_volume.FORWARDS,
    **rules_shape.FORWARDS,
    **rules_slices.FORWARDS,
}
