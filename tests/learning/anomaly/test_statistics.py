"""Sums of features: what one device or several add up, however the pictures are shared out."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.anomaly.features import ReconstructionFeatures
from har_edge.learning.anomaly.local_run import train_here
from har_edge.learning.anomaly.networks import CODE, AutoencoderSize, write_autoencoder
from har_edge.learning.anomaly.pictures import normal_dataset
from har_edge.learning.anomaly.statistics import OPTIMIZER, prepare_statistics, read_statistics
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.server.aggregation import Contribution, GradientAggregator
from har_edge.learning.updates.vectors import flatten, unflatten
from har_edge.tflite.model import read_model
from tests.learning.anomaly_pictures import stripes

SHAPE, BATCH = (16, 16, 1), 4
NETWORK = bytes(write_autoencoder(SHAPE, AutoencoderSize(4, 3)))


@pytest.fixture(scope="module")
def features() -> ReconstructionFeatures:
    return ReconstructionFeatures(read_model(NETWORK), CODE)


def test_statistics_are_means_and_variances_by_position(features: ReconstructionFeatures) -> None:
    data = normal_dataset(stripes(11), "stripes", real=False)
    sums = prepare_statistics(features, SHAPE, BATCH)
    found = read_statistics(train_here(sums, data, OPTIMIZER, 1, 0), sums.spec)
    interpreter = Interpreter(NETWORK)
    x = data.values()
    output = interpreter.run({"picture": x})["reconstruction"]
    assert found.count == 11
    assert [mean.shape for mean in found.means] == [(16, 16, 1), (1, 1, 3)]
    np.testing.assert_allclose(found.means[0], (x - output).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.variances[0], (x - output).var(axis=0), atol=1e-6)


def test_several_devices_add_up_what_one_does(features: ReconstructionFeatures) -> None:
    """Two rounds, as after a device was lost: the sums are those of all pictures, not means of rounds."""
    data = normal_dataset(stripes(10), "stripes", real=False)
    sums = prepare_statistics(features, SHAPE, BATCH)
    step, spec = TrainingStep(sums.graph, sums.spec), sums.spec

    def part(name: str, rows: list[int]) -> Contribution:
        x = data.values(np.array(rows))
        found = step.run(unflatten(sums.weights, spec.weights), x, x)
        return Contribution(name, len(rows), flatten(found.gradients, spec.weights))

    weights = sums.weights.copy()
    aggregator = GradientAggregator(make_optimizer(OPTIMIZER, spec.elements))
    assert aggregator.apply(weights, {"a": part("a", [0, 1, 2]), "b": part("b", [3, 4, 5, 6])}) == 7
    assert aggregator.apply(weights, {"a": part("a", [7, 8, 9])}) == 3
    wanted = train_here(sums, data, OPTIMIZER, 1, 0)
    assert read_statistics(weights, spec).count == 10
    np.testing.assert_allclose(weights, wanted, rtol=1e-5, atol=1e-5)


def test_statistics_of_one_picture_are_refused(features: ReconstructionFeatures) -> None:
    sums = prepare_statistics(features, SHAPE, BATCH)
    weights = train_here(sums, normal_dataset(stripes(1), "stripes", real=False), OPTIMIZER, 1, 0)
    with pytest.raises(ModelError, match=r"features of 1 pictures were summed; expected at least two"):
        read_statistics(weights, sums.spec)
