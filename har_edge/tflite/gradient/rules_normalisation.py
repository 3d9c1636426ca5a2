"""LOCAL_RESPONSE_NORMALIZATION (Krizhevsky et al. 2012, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from har_edge.tflite.gradient.rules import Rule, RuleContext


def _local_response(context: RuleContext) -> Sequence[int | None]:
    """y = x s^-beta with s = bias + alpha * (sum of x^2 over the channels at most `radius` away).

    dx = dy s^-beta - 2 alpha beta x * (the same sum of dy x s^(-beta - 1)).
    """
    builder, x, dy, options = context.builder, context.inputs[0], context.gradient(), context.options
    alpha, beta, channels = float(options.alpha), float(options.beta), context.input_shape(0)[-1]
    places = np.arange(channels)
    near = np.abs(places[:, None] - places[None]) <= int(options.radius)
    band = builder.constant(near.astype(np.float32))
    flat = (math.prod(context.input_shape(0)) // channels, channels)
    x, dy = builder.reshape(x, flat), builder.reshape(dy, flat)
    sums = builder.scaled(builder.matmul(builder.times(x, x), band), alpha)
    base = builder.plus(sums, builder.constant(float(options.bias)))
    power = builder.unary("EXP", builder.scaled(builder.unary("LOG", base), -beta))
    direct = builder.times(dy, power)
    spread = builder.matmul(builder.over(builder.times(direct, x), base), band)
    dx = builder.minus(direct, builder.times(builder.scaled(x, 2 * alpha * beta), spread))
    return [builder.reshape(dx, context.input_shape(0))]


RULES: dict[str, Rule] = {"LOCAL_RESPONSE_NORMALIZATION": _local_response}
