"""Make one change of the weights of what several workers sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from har_edge.learning.optimizers.optimizers import SUM, Optimizer
from har_edge.learning.updates.vectors import Vector


@dataclass(frozen=True, slots=True)
class Contribution:
    """The update of a worker: the sum of gradients, or the change of its weights.

    A masked sum of several workers is one, too: the sum of their gradients, or the mean of their changes by samples.
    `members` are the samples of each of them then.
    """

    worker: str
    samples: int
    vector: Vector
    loss: float = 0.0
    correct: int = 0
    members: tuple[int, ...] = ()

    @property
    def shares(self) -> tuple[int, ...]:
        """The samples of each worker that it is of."""
        return self.members or (self.samples,)


class Aggregator(Protocol):
    """Changes weights by what came in a round."""

    def apply(self, weights: Vector, contributions: Mapping[str, Contribution]) -> int:
        """Change the weights in place; return over how many samples."""


def ordered(contributions: Mapping[str, Contribution]) -> list[Contribution]:
    """Return contributions with samples in the order of names: sums of floats depend on their order."""
    return [contributions[name] for name in sorted(contributions) if contributions[name].samples]


@dataclass(slots=True)
class GradientAggregator:
    """Divides the sum of gradients by the number of samples, and steps (synchronous SGD); SUM takes it undivided."""

    optimizer: Optimizer

    def apply(self, weights: Vector, contributions: Mapping[str, Contribution]) -> int:
        """Make one step of the optimizer; none without samples."""
        parts = ordered(contributions)
        samples = sum(one.samples for one in parts)
        if samples:
            gradient = parts[0].vector.copy()
            for one in parts[1:]:
                gradient += one.vector
            if self.optimizer.spec != SUM:
                gradient /= np.float32(samples)
            self.optimizer.step(weights, gradient)
        return samples


@dataclass(slots=True)
class AveragingAggregator:
    """Takes the mean of the workers' weights, by their samples (FedAvg; McMahan et al. 2017, algorithm 1).

    With an optimizer, the mean change, turned round, is the gradient of one of its steps (FedOpt; Reddi et al. 2021,
    algorithm 1): `sgd:lr=1` would take the mean itself. `decay` is the part of the weights that the round takes
    besides.
    """

    optimizer: Optimizer | None = None
    decay: float = 0.0

    def apply(self, weights: Vector, contributions: Mapping[str, Contribution]) -> int:
        """Add the mean change, or step by it; nothing without samples."""
        parts = ordered(contributions)
        samples = sum(one.samples for one in parts)
        if self.optimizer is None:
            weights *= np.float32(1 - self.decay if samples else 1)
            for one in parts:
                add_share(weights, one.vector, one.samples / samples)
        elif samples:
            gradient = np.float32(self.decay) * weights
            for one in parts:
                add_share(gradient, one.vector, -one.samples / samples)
            self.optimizer.step(weights, gradient)
        return samples


def add_share(weights: Vector, change: Vector, share: float) -> None:
    """Add a share of a change to the weights, in place."""
    weights += change * np.float32(share)
