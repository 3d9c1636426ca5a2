"""Means and variances of features by position, as sums that devices add up: one pass over the normal pictures.

PaDiM (Defard et al. 2021), with a diagonal covariance or the full one. The pass is a training graph whose weights are
the sums, and whose gradients are what a batch adds to them; with the optimizer `sum` the training engine adds up what
the devices send, whoever saw which picture, and whoever was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.learning.anomaly.features import Features
from har_edge.learning.preparation import TrainableModel
from har_edge.learning.updates.vectors import Vector, unflatten
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.spec import PortSpec, TrainingSpec, WeightSpec, gradient_port, weight_port
from har_edge.tflite.model import read_model

OPTIMIZER = "sum"
_COUNT = "count"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Means and variances of each map of features, float32 [h, w, c], over `count` pictures.

    `covariances` are those of the channels at each position, float32 [h * w, c, c]; none for diagonal ones.
    """

    count: int
    means: tuple[Floats, ...] = field(repr=False)
    variances: tuple[Floats, ...] = field(repr=False)
    covariances: tuple[Floats, ...] = field(default=(), repr=False)
    _whitening: dict[tuple[int, float], Floats] = field(default_factory=dict, init=False, repr=False, compare=False)

    def only(self, number: int) -> FeatureStatistics:
        """Return the statistics of one map."""
        place = slice(number, number + 1)
        return FeatureStatistics(self.count, self.means[place], self.variances[place], self.covariances[place])

    def whitening(self, number: int, regularization: float) -> Floats:
        """Return the matrix at each position, [h * w, c, c], that makes features independent, of variance 1.

        A share of the mean variance is added to each. It is kept: settings that differ in other things ask again.
        """
        key = number, regularization
        if key not in self._whitening:
            floor = regularization * float(self.variances[number].mean(dtype=np.float64)) + 1e-12
            covariance = self.covariances[number].astype(np.float64)
            factor = np.linalg.cholesky(covariance + floor * np.eye(covariance.shape[1]))
            self._whitening[key] = np.linalg.inv(factor).transpose(0, 2, 1).astype(np.float32)
        return self._whitening[key]


def prepare_statistics(features: Features, shape: Shape, batch: int, *, full: bool = False) -> TrainableModel:
    """Return the graph that sums features and their squares, with `full` their products, as a training from zeros."""
    data, spec = _write_sums(features, shape, batch, full=full)
    return TrainableModel(read_model(bytes(data)), bytes(data), spec, np.zeros(spec.elements, np.float32))


def read_statistics(sums: Vector, spec: TrainingSpec) -> FeatureStatistics:
    """Return the statistics that the sums hold. Raises ModelError for sums over fewer than two pictures."""
    found = unflatten(sums, spec.weights)
    count = round(float(found[_COUNT][0]))
    if count < 2:
        raise ModelError(f"the features of {count} pictures were summed; expected at least two")
    means, variances, covariances = [], [], []
    for number in range((len(spec.weights) - 1) // 2):
        mean = found[f"sum/{number}"].astype(np.float64) / count
        if f"product/{number}" in found:
            second = found[f"product/{number}"].astype(np.float64) / count
            flat = mean.reshape(-1, mean.shape[2])
            covariance = second - flat[:, :, None] * flat[:, None, :]
            covariances.append(covariance.astype(np.float32))
            square = np.diagonal(second, axis1=1, axis2=2).reshape(mean.shape)
        else:
            square = found[f"square/{number}"].astype(np.float64) / count
        means.append(mean.astype(np.float32))
        variances.append(np.maximum(square - mean**2, 0).astype(np.float32))
    return FeatureStatistics(count, tuple(means), tuple(variances), tuple(covariances))


def _write_sums(features: Features, shape: Shape, batch: int, *, full: bool) -> tuple[memoryview, TrainingSpec]:
    builder = GraphBuilder()
    pictures = (batch, *shape)
    x, y = builder.empty(pictures, name="x/0"), builder.empty(pictures, name="y")
    rows = builder.empty((batch,), name="sample_weight")
    maps = features.write(builder, x)
    factor = builder.reshape(rows, (batch, 1, 1, 1))
    names, sums = [_COUNT], [builder.reshape(builder.sum_over(factor, [0]), (1,))]
    loss = builder.reshape(builder.sum_over(_mean_squares(builder, maps, factor), [0, 1, 2, 3]), (1,))
    for number, one in enumerate(maps):
        weighted = builder.times(one, factor)
        names += [f"sum/{number}", f"product/{number}" if full else f"square/{number}"]
        second = _products(builder, weighted, one) if full else builder.sum_over(builder.times(weighted, one), [0])
        sums += [builder.sum_over(weighted, [0]), second]
    weights = tuple(WeightSpec(name, builder.shape(one)) for name, one in zip(names, sums, strict=True))
    inputs = [builder.empty(one.shape, name=weight_port(i)) for i, one in enumerate(weights)]
    outputs = [
        _named(builder, loss, "loss"),
        _named(builder, _mean_squares(builder, maps, factor), "predictions"),
        *(_named(builder, one, gradient_port(i)) for i, one in enumerate(sums)),
    ]
    spec = TrainingSpec(
        batch=batch,
        loss=Loss.MEAN_SQUARED.value,
        label_smoothing=0.0,
        start=0,
        stop=1,
        weights=weights,
        x=(PortSpec("x/0", "picture", pictures),),
        y=PortSpec("y", "", pictures),  # of no use here: the engine gives every learner of pictures its input again
        sample_weight=PortSpec("sample_weight", "", (batch,)),
        dy=(),
        masks=(),
        loss_sum=PortSpec("loss", "", (1,)),
        predictions=PortSpec("predictions", "", (batch, 1, 1, 1)),
        dx=(),
    )
    return builder.encode([*inputs, x, y, rows], outputs), spec


def _products(builder: GraphBuilder, weighted: int, x: int) -> int:
    """Return the sums over the samples of the products of channels at each position, [h * w, c, c]."""
    n, height, width, channels = builder.shape(x)
    left, right = (
        builder.transpose(builder.reshape(one, (n, height * width, channels)), order)
        for one, order in ((weighted, (1, 2, 0)), (x, (1, 0, 2)))
    )
    return builder.matmul(left, right)


def _mean_squares(builder: GraphBuilder, maps: Sequence[int], factor: int) -> int:
    """Return the mean square of the first map for each sample, [n, 1, 1, 1]: a figure to show while sums grow."""
    _, height, width, channels = builder.shape(maps[0])
    total = builder.sum_over(builder.times(maps[0], maps[0]), [1, 2, 3], keep=True)
    return builder.times(builder.scaled(total, 1.0 / (height * width * channels)), factor)


def _named(builder: GraphBuilder, tensor: int, name: str) -> int:
    """Return a tensor of its own with this name."""
    own = builder.identity(tensor, builder.shape(tensor))
    builder.rename(own, name)
    return own
