"""Train a network, or sum features, on this machine: the steps that devices make, without a broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import Dataset, batches
from har_edge.learning.optimizers.optimizers import SUM, make_optimizer
from har_edge.learning.optimizers.rates import with_steps
from har_edge.learning.preparation import TrainableModel
from har_edge.learning.updates.vectors import Vector, flatten, unflatten


@dataclass(frozen=True, slots=True)
class PassOutcome:
    """A pass over the samples: its number from 1, and the mean loss."""

    epoch: int
    loss: float


def train_here(
    trainable: TrainableModel,
    data: Dataset,
    optimizer: str,
    epochs: int,
    seed: int,
    tell: Callable[[PassOutcome], None] = lambda outcome: None,
) -> Vector:
    """Return the weights after some passes over samples in random order; with the optimizer `sum`, their sums.

    The target of each sample is the sample. Raises ModelError where the loss becomes infinite.
    """
    spec, generator = trainable.spec, np.random.default_rng(seed)
    step = TrainingStep(trainable.graph, spec)
    steps = epochs * -(-len(data) // spec.batch)
    optimize = make_optimizer(with_steps(optimizer, steps), spec.elements)
    weights: Vector = trainable.weights.copy()
    for epoch in range(1, epochs + 1):
        loss = 0.0
        for chosen in batches(len(data), spec.batch, generator):
            x = data.values(chosen)
            result = step.run(unflatten(weights, spec.weights), x, x)
            gradient = flatten(result.gradients, spec.weights)
            optimize.step(weights, gradient if optimize.spec == SUM else gradient / np.float32(len(chosen)))
            loss += result.loss_sum
        if not np.isfinite(loss):
            raise ModelError(f"the loss became {loss} in epoch {epoch}; take a lower learning rate (--optimizer)")
        tell(PassOutcome(epoch, loss / len(data)))
    return weights
