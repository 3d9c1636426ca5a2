"""Losses: the sum over the samples of a batch, and its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite


class Loss(Enum):
    """Softmax cross entropy with the one-hot class, or the mean squared error of each sample."""

    CROSS_ENTROPY = "cross-entropy"
    MEAN_SQUARED = "mean-squared"


@dataclass(frozen=True, slots=True)
class LossTensors:
    """The sum of the loss over the samples, the gradient of what came in, and what the loss compares with y."""

    total: int
    gradient: int
    predictions: int


def cross_entropy(
    builder: GraphBuilder, logits: int, y: int, sample_weight: int, smoothing: float, beta: float = 1.0
) -> LossTensors:
    """Write -sum(w * y' * log softmax(beta * logits)) with y' = (1 - smoothing) * y + smoothing / classes.

    Joined so, it takes no logarithm of a rounded softmax; the gradient is w * beta * (softmax * sum(y') - y'). Classes
    are the last dimension. `sample_weight` is [batch].
    """
    classes = builder.shape(logits)[-1]
    if smoothing:
        y = builder.plus(builder.scaled(y, 1.0 - smoothing), builder.constant(smoothing / classes))
    scaled = builder.scaled(logits, beta)
    options = tflite.SoftmaxOptionsT()
    options.beta = 1.0
    weights = _weights(builder, logits, sample_weight)
    target = builder.times(y, weights)
    logs = builder.add("LOG_SOFTMAX", [scaled], builder.shape(logits), tflite.LogSoftmaxOptionsT())
    total = _total(builder, builder.times(builder.scaled(target, -1.0), logs))
    softmax = builder.add("SOFTMAX", [scaled], builder.shape(logits), options)
    mass = builder.sum_over(target, [-1], keep=True)
    gradient = builder.minus(builder.times(softmax, mass), target)
    return LossTensors(total, builder.scaled(gradient, beta), softmax)


def mean_squared(builder: GraphBuilder, output: int, y: int, sample_weight: int) -> LossTensors:
    """Write sum(w * mean((output - y)^2)), the mean over the elements of each sample."""
    elements = math.prod(builder.shape(output)[1:])
    difference = builder.minus(output, y)
    weighted = builder.times(difference, builder.scaled(_weights(builder, output, sample_weight), 1.0 / elements))
    total = _total(builder, builder.times(weighted, difference))
    return LossTensors(total, builder.scaled(weighted, 2.0), output)


def _weights(builder: GraphBuilder, like: int, sample_weight: int) -> int:
    shape = builder.shape(like)
    return builder.reshape(sample_weight, (shape[0], *[1] * (len(shape) - 1)))


def _total(builder: GraphBuilder, values: int) -> int:
    """Return the sum of all values as a tensor of one element."""
    flat = builder.reshape(values, (1, int(np.prod(builder.shape(values)))))
    return builder.reshape(builder.sum_over(flat, [1]), (1,))
