"""The methods: what each one trains, and the features that come out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from har_edge.learning.anomaly.features import (
    DifferenceFeatures,
    Features,
    JoinedFeatures,
    NetworkFeatures,
    NormalizedFeatures,
    PictureFeatures,
    ReconstructionFeatures,
)
from har_edge.learning.anomaly.networks import (
    CODE,
    AutoencoderSize,
    has_global_code,
    write_autoencoder,
    write_student,
)
from har_edge.learning.anomaly.statistics import FeatureStatistics
from har_edge.learning.preparation import TrainableModel, prepare_model
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import find_weights, read_weights, replace_weights
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.schema import tflite


class AnomalyMethod(str, Enum):
    """How anomalies are found.

    AUTOENCODER: what a small network cannot draw again. PADIM: features of a network for something else, off their
    mean at this position, by their variances there (Defard et al. 2021). PADIM_FULL: the same by their whole
    covariance, whose sums and matrices grow with the square of the channels. JOINT: PADIM_FULL of one more layer and of
    the picture as a whole, each map with a weight. STUDENT: features that a student, taught
    on normal pictures, does not foresee (Bergmann et al. 2020; Batzner et al. 2024).
    """

    AUTOENCODER = "autoencoder"
    PADIM = "padim"
    PADIM_FULL = "padim-full"
    JOINT = "joint"
    STUDENT = "student"


def prepare_autoencoder(shape: Shape, batch: int, size: AutoencoderSize, seed: int) -> TrainableModel:
    """Return an autoencoder with new weights and its training graph: mean squared error, the target is the picture."""
    return prepare_model(read_model(bytes(write_autoencoder(shape, size, seed))), batch, Loss.MEAN_SQUARED)


def autoencoder_features(trainable: TrainableModel, weights: Vector) -> ReconstructionFeatures:
    """Return what a trained autoencoder gets wrong; with one code for a picture, the code too."""
    named = unflatten(weights, trainable.spec.weights)
    model = read_model(bytes(replace_weights(trainable.model, named)))
    height, width = trainable.shape[:2]
    return ReconstructionFeatures(model, CODE if has_global_code(height, width) else "")


@dataclass(frozen=True, slots=True)
class StudentTraining:
    """A student with its training graph, and the teacher that it learns from."""

    teacher: Features
    student: Model = field(repr=False)
    outputs: tuple[str, ...]
    trainable: TrainableModel

    def features(self, weights: Vector) -> DifferenceFeatures:
        """Return the differences between the teacher and the student with these weights."""
        named = unflatten(weights, self.trainable.spec.weights)
        return DifferenceFeatures(self.teacher, read_model(bytes(replace_weights(self.student, named))), self.outputs)


def normalize(features: NetworkFeatures, statistics: FeatureStatistics) -> NormalizedFeatures:
    """Return features with mean 0 and variance 1 in each channel over all positions, as a teacher's must be."""
    means, factors = [], []
    for mean, variance in zip(statistics.means, statistics.variances, strict=True):
        center = mean.mean(axis=(0, 1), dtype=np.float64)
        spread = variance.mean(axis=(0, 1), dtype=np.float64) + mean.var(axis=(0, 1), dtype=np.float64)
        means.append(center.astype(np.float32))
        factors.append((1 / np.sqrt(spread + 1e-3 * spread.mean() + 1e-12)).astype(np.float32))
    return NormalizedFeatures(features, tuple(means), tuple(factors))


def joint_features(network: Features) -> JoinedFeatures:
    """Return layers of a network, and the picture itself behind them."""
    return JoinedFeatures((network, PictureFeatures()))


def prepare_student(teacher: Features, shape: Shape, batch: int, filters: int, seed: int) -> StudentTraining:
    """Return a student for a teacher, with the graph that makes their difference vanish on normal pictures."""
    builder = GraphBuilder()
    maps = teacher.write(builder, builder.empty((1, *shape)))
    student = read_model(bytes(write_student(shape, [builder.shape(one)[1:] for one in maps], filters, seed)))
    outputs = tuple(student.main.tensors[index].name for index in student.main.outputs)
    whole = read_model(bytes(_write_difference(DifferenceFeatures(teacher, student, outputs), shape)))
    names = [weight.name for weight in find_weights(student)]
    graph = write_training_graph(whole, batch=batch, loss=Loss.MEAN_SQUARED, trainable=names, to_zero=True)
    weights = flatten(read_weights(whole, names), graph.spec.weights)
    return StudentTraining(teacher, student, outputs, TrainableModel(whole, bytes(graph.data), graph.spec, weights))


def _write_difference(features: DifferenceFeatures, shape: Shape) -> memoryview:
    """Return a model picture -> all differences behind one another, [n, values]."""
    builder = GraphBuilder()
    picture = builder.empty((1, *shape), name="picture")
    rows = [_flat(builder, one) for one in features.write(builder, picture)]
    together = builder.concat(rows, 1)
    builder.open_batch()
    return builder.encode([picture], [together])


def _flat(builder: GraphBuilder, x: int) -> int:
    size = int(np.prod(builder.shape(x)[1:]))
    options = tflite.ReshapeOptionsT()
    options.newShape = np.array([-1, size], np.int32)
    return builder.add("RESHAPE", [x, builder.ints([-1, size])], (1, size), options)
