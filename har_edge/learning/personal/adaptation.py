"""Adapt a float model to one person: a few labelled windows, a few steps, on the device itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError, ModelError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import Indices, batches
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.table import RULES
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import find_weights, read_weights, replace_weights
from har_edge.tflite.model import Model

BATCH = 16
_PRODUCTS = ("FULLY_CONNECTED", "BATCH_MATMUL")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D")


class Trained(Enum):
    """The weights that change.

    OUTPUT: those of the last layer. HEAD: those behind the last convolution; the trunk is frozen. ALL: every weight
    that a gradient reaches.
    """

    OUTPUT = "output"
    HEAD = "head"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class AdaptationRecipe:
    """How a model is adapted.

    `anchor` times its distance from where it began is added to the gradient of each weight (L2-SP: Li, Grandvalet and
    Davoine, ICML 2018). `epochs` is the number of passes, or with early stopping the most there may be.
    """

    # The best of twelve for early fusion in three of four columns of bench/adapt.py, with all people in view.
    trained: Trained = Trained.ALL
    rate: float = 0.0003
    epochs: int = 30
    anchor: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelledInputs:
    """Samples as the model takes them: each input float32 [n, ...], and the class of each sample, int64 [n]."""

    inputs: Mapping[str, Array]
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Indices) -> LabelledInputs:
        """Return some of the samples, by index."""
        return LabelledInputs({name: values[chosen] for name, values in self.inputs.items()}, self.y[chosen])


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """The adapted model as a .tflite, the passes made, whether early stopping chose them, and the weights changed."""

    content: memoryview
    epochs: int
    stopped_early: bool
    weights: int


class Adapter:
    """Holds the training graph of a model. Raises ModelError for a model without float weights."""

    def __init__(self, model: Model, classes: int, trained: Trained) -> None:
        names = choose_weights(model, trained)
        graph = write_training_graph(model, batch=BATCH, loss=Loss.CROSS_ENTROPY, trainable=names)
        if graph.spec.y is None or graph.spec.y.shape[1:] != (classes,):
            raise ModelError(f"{model.name} does not give one score for each of {classes} classes")
        self._model, self._classes = model, classes
        self._specs = graph.spec.weights
        self._step = TrainingStep(graph.data, graph.spec)
        self._begin = flatten(read_weights(model, names), self._specs)

    def adapt(
        self, samples: LabelledInputs, recipe: AdaptationRecipe, *, early_stopping: bool | None = None
    ) -> AdaptedModel:
        """Return the model adapted to samples.

        With early stopping, the number of passes is the one after which a third of the samples, held back for this
        alone, is answered with the lowest loss; then the model is adapted to all samples anew, with so many passes. By
        default it is used where each class that came has three samples.
        """
        if not len(samples):
            raise DataError("no labelled window came to adapt to; expected at least one")
        held = _held_back(samples.y)
        if early_stopping is None:
            early_stopping = held is not None
        if early_stopping and held is None:
            raise DataError(
                f"early stopping needs three windows of each activity, and one has {_fewest(samples.y)}; bring more, "
                "or give the number of epochs"
            )
        epochs = recipe.epochs
        if early_stopping and held is not None:
            rest = np.setdiff1d(np.arange(len(samples)), held)
            epochs = self._best_epochs(samples.take(rest), samples.take(held), recipe)
        *_, vector = self._passes(samples, recipe, epochs)
        content = replace_weights(self._model, unflatten(vector, self._specs))
        return AdaptedModel(content, epochs, early_stopping, vector.size)

    def _best_epochs(self, samples: LabelledInputs, held: LabelledInputs, recipe: AdaptationRecipe) -> int:
        """Return the number of passes with the lowest loss of what was held back; 0 where none helps."""
        losses = [self._loss(vector, held) for vector in self._passes(samples, recipe, recipe.epochs)]
        return int(np.argmin(losses))

    def _passes(self, samples: LabelledInputs, recipe: AdaptationRecipe, epochs: int) -> Iterator[Vector]:
        """Yield the weights before the first pass and after each; they are one vector, which changes."""
        vector, generator = self._begin.copy(), np.random.default_rng(recipe.seed)
        optimizer = make_optimizer(f"adam:lr={recipe.rate!r}", vector.size)
        yield vector
        for _ in range(epochs):
            for chosen in batches(len(samples), BATCH, generator):
                _, gradient = self._run(vector, samples.take(chosen))
                gradient /= np.float32(len(chosen))
                gradient += np.float32(recipe.anchor) * (vector - self._begin)
                optimizer.step(vector, gradient)
            yield vector

    def _loss(self, vector: Vector, samples: LabelledInputs) -> float:
        parts = [np.arange(at, min(at + BATCH, len(samples))) for at in range(0, len(samples), BATCH)]
        return sum(self._run(vector, samples.take(part))[0] for part in parts)

    def _run(self, vector: Vector, samples: LabelledInputs) -> tuple[float, Vector]:
        y = np.eye(self._classes, dtype=np.float32)[samples.y]
        result = self._step.run(unflatten(vector, self._specs), samples.inputs, y)
        gradient = flatten(result.gradients, self._specs)
        if not np.isfinite(gradient).all():
            raise DataError("the loss is no finite number: the training diverged; take a smaller rate")
        return result.loss_sum, gradient


def choose_weights(model: Model, trained: Trained) -> tuple[str, ...]:
    """Return the names of the weights that change. Raises ModelError for a model without any."""
    found, operators = find_weights(model), model.main.operators
    last = max(use[0] for weight in found for use in weight.uses)
    trunk = max((operator.index for operator in operators if operator.name in _CONVOLUTIONS), default=-1)
    products = [operator.index for operator in operators if operator.name in _PRODUCTS and operator.index > trunk]
    first = {Trained.OUTPUT: last, Trained.HEAD: min(products, default=len(operators)), Trained.ALL: 0}[trained]
    blocked = _blocked(model)
    names = tuple(
        weight.name for weight in found if all(place >= first and place not in blocked for place, _ in weight.uses)
    )
    if not names:
        raise ModelError(
            f"{model.name} has no weights behind its last convolution that a gradient reaches; expected some to train "
            f"with {trained.value!r}: take {Trained.ALL.value!r}"
        )
    return names


def answers(content: bytes | memoryview, output: str, samples: LabelledInputs) -> npt.NDArray[np.int64]:
    """Return the class with the highest score of a .tflite for each sample, int64 [n]; one sample runs at a time."""
    interpreter = Interpreter(bytes(content))
    found = [
        int(interpreter.run({name: values[row : row + 1] for name, values in samples.inputs.items()})[output].argmax())
        for row in range(len(samples))
    ]
    return np.array(found, np.int64)


def accuracy(content: bytes | memoryview, output: str, samples: LabelledInputs) -> float:
    """Return the share of samples whose class has the highest score in a .tflite; DataError without samples."""
    if not len(samples):
        raise DataError("no window came to test with; expected at least one")
    return float(np.mean(answers(content, output, samples) == samples.y))


def _blocked(model: Model) -> set[int]:
    """Return the operators whose result goes through one that cannot be differentiated, itself included."""
    blocked: set[int] = set()
    reads: set[int] = set()  # tensors that are read by such operators
    for operator in reversed(model.main.operators):
        if operator.name not in RULES or reads.intersection(operator.outputs):
            blocked.add(operator.index)
            reads.update(operator.inputs)
    return blocked


def _held_back(y: npt.NDArray[np.int64]) -> Indices | None:
    """Return the last third of the samples of each class, None where one has fewer than three."""
    classes = np.unique(y)
    own = [np.flatnonzero(y == label) for label in classes]
    if min(map(len, own)) < 3:
        return None
    return np.sort(np.concatenate([rows[len(rows) - len(rows) // 3 :] for rows in own]))


def _fewest(y: npt.NDArray[np.int64]) -> int:
    return int(np.unique(y, return_counts=True)[1].min())
