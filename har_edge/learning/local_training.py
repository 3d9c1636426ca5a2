"""Train one model on the samples of one device, epoch by epoch, without a server: what a Flower client does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from har_edge.errors import DataError, ModelError
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.optimizers.optimizers import Optimizer
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.spec import TrainingSpec


@dataclass(frozen=True, slots=True)
class LocalOutcome:
    """The result of passes over samples: their number, the mean loss, and the share of right answers."""

    samples: int
    loss: float
    accuracy: float


class LocalTraining:
    """The training graph of a model, and steps on samples of this device."""

    def __init__(self, graph: bytes | memoryview, spec: TrainingSpec) -> None:
        """Load a training graph with a loss. Raises ModelError where it and its description do not fit."""
        if spec.y is None:
            raise ModelError("the training graph is of a slice in the middle; take that of a whole model")
        self.spec = spec
        self._classes = spec.y.shape[-1]
        self._step = TrainingStep(graph, spec)

    def train(
        self,
        weights: Vector,
        samples: Dataset,
        optimizer: Optimizer,
        epochs: int,
        random: np.random.Generator,
        pull: float = 0.0,
    ) -> LocalOutcome:
        """Change `weights` in place by `epochs` passes over the samples in random order.

        `pull` is the mu of FedProx: it draws the weights back to those of the beginning (Li et al. 2020, algorithm 2).
        """
        samples = self._fitting(samples)
        base, loss, right = weights.copy(), 0.0, 0
        for _ in range(epochs):
            order = random.permutation(len(samples))
            for start in range(0, len(order), self.spec.batch):
                chosen = order[start : start + self.spec.batch]
                gradient, batch_loss, batch_right = self._run(weights, samples, chosen)
                gradient /= len(chosen)
                if pull:
                    gradient += np.float32(pull) * (weights - base)
                optimizer.step(weights, gradient)
                loss, right = loss + batch_loss, right + batch_right
        seen = epochs * len(samples)
        return LocalOutcome(len(samples), loss / seen, right / seen)

    def evaluate(self, weights: Vector, samples: Dataset) -> LocalOutcome:
        """Return mean loss and accuracy on samples."""
        samples = self._fitting(samples)
        loss, right = 0.0, 0
        for start in range(0, len(samples), self.spec.batch):
            chosen = np.arange(start, min(start + self.spec.batch, len(samples)))
            _, batch_loss, batch_right = self._run(weights, samples, chosen)
            loss, right = loss + batch_loss, right + batch_right
        return LocalOutcome(len(samples), loss / len(samples), right / len(samples))

    def _run(self, weights: Vector, samples: Dataset, chosen: np.ndarray) -> tuple[Vector, float, int]:
        x = samples.inputs(chosen) if len(self.spec.x) > 1 else samples.values(chosen)
        result = self._step.run(unflatten(weights, self.spec.weights), x, samples.one_hot(chosen))
        assert result.predictions is not None  # the graph ends with a loss
        right = int(np.count_nonzero(result.predictions.argmax(axis=-1) == samples.y[chosen]))
        return flatten(result.gradients, self.spec.weights), result.loss_sum, right

    def _fitting(self, samples: Dataset) -> Dataset:
        """Return samples in the shape that the model takes. Raises DataError where they do not fit."""
        if not len(samples):
            raise DataError(f"{samples.name}: no samples; bring some of each class")
        if len(samples.classes) != self._classes:
            raise DataError(
                f"{samples.name}: {len(samples.classes)} classes, and the model tells {self._classes} apart; choose "
                "other data or another model"
            )
        return samples.reshaped(self.spec.x[0].shape[1:]) if len(self.spec.x) == 1 else samples
