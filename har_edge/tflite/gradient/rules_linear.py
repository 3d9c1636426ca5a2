"""Matrix products: FULLY_CONNECTED and BATCH_MATMUL."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.tflite.gradient.rules import Rule, RuleContext


def _fully_connected(context: RuleContext) -> Sequence[int | None]:
    """y = x W^T + b: dx = dy W, dW = dy^T x, db = sum of dy over the rows."""
    builder, (x, weights) = context.builder, context.inputs[:2]
    units, depth = builder.shape(weights)
    rows = math.prod(context.input_shape(0)) // depth
    dy = builder.reshape(context.gradient(), (rows, units))
    flat = builder.reshape(x, (rows, depth))
    dx = builder.reshape(builder.matmul(dy, weights), builder.shape(x)) if context.needs[0] else None
    dw = builder.matmul(dy, flat, adj_a=True) if context.needs[1] else None
    db = None
    if context.has_input(2) and context.needs[2]:
        db = builder.reshape(builder.sum_over(dy, [0]), context.input_shape(2))
    return [dx, dw, db]


RULES: dict[str, Rule] = {"FULLY_CONNECTED": _fully_connected}
