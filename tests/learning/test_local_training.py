"""Training on one device: steps of a training graph against the same in NumPy, FedProx, evaluation, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import DataError, ModelError
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.local_training import LocalTraining
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.updates.vectors import flatten, unflatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_backward_graph, write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model, read_model
from tests.tflite import models

WIDTH, CLASSES, BATCH = 20, 3, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("model") / "model.tflite"
    path.write_bytes(models.averaging({"x": (WIDTH,)}, classes=CLASSES))
    return read_model(path)


@pytest.fixture(scope="module")
def training(model: Model) -> LocalTraining:
    graph = write_training_graph(model, batch=BATCH, loss=Loss.CROSS_ENTROPY)
    return LocalTraining(graph.data, graph.spec)


def clusters(count: int, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    x = (random.standard_normal((count, WIDTH)) + 3 * np.eye(CLASSES, WIDTH)[y]).astype(np.float32)
    return Dataset(x, y, ("a", "b", "c"), "clusters", real=False)


def start(model: Model, training: LocalTraining) -> np.ndarray:
    return flatten(read_weights(model), training.spec.weights)


def softmax_steps(weights: dict[str, np.ndarray], samples: Dataset, epochs: int, pull: float) -> dict[str, np.ndarray]:
    """Return the weights after the same steps of softmax regression, in float64."""
    (kernel, scores), random = sorted(weights.values(), key=np.ndim, reverse=True), np.random.default_rng(5)
    w, b = kernel.astype(np.float64), scores.astype(np.float64)
    first_w, first_b = w.copy(), b.copy()
    for _ in range(epochs):
        order = random.permutation(len(samples))
        for place in range(0, len(order), BATCH):
            chosen = order[place : place + BATCH]
            logits = samples.x[chosen] @ w.T + b
            error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(CLASSES)[samples.y[chosen]]
            w = w - 0.1 * (error.T @ samples.x[chosen] / len(chosen) + pull * (w - first_w))
            b = b - 0.1 * (error.mean(axis=0) + pull * (b - first_b))
    return {name: w if array.ndim == 2 else b for name, array in weights.items()}


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_steps_as_numpy_takes_them(model: Model, training: LocalTraining, pull: float) -> None:
    """19 samples: the last batch of each epoch has three, and counts as three."""
    samples, weights = clusters(19), start(model, training)
    training.train(weights, samples, make_optimizer("sgd:lr=0.1", weights.size), 2, np.random.default_rng(5), pull)
    expected = softmax_steps(read_weights(model), samples, 2, pull)
    for name, array in unflatten(weights, training.spec.weights).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=2e-6)


def test_training_learns_and_evaluation_counts_every_sample_once(model: Model, training: LocalTraining) -> None:
    train, test, weights = clusters(200), clusters(50, seed=1), start(model, training)
    before = training.evaluate(weights, test)
    optimizer = make_optimizer("sgd:lr=0.1", weights.size)
    outcome = training.train(weights, train, optimizer, 5, np.random.default_rng(0))
    after = training.evaluate(weights, test)
    assert outcome.samples == 200 and before.samples == after.samples == 50
    assert after.accuracy >= 0.9 > before.accuracy and after.loss < before.loss
    alone = [training.evaluate(weights, test.take(slice(number, number + 1))) for number in range(50)]
    assert after.loss == pytest.approx(np.mean([one.loss for one in alone]), rel=1e-5)
    assert after.accuracy == np.mean([one.accuracy for one in alone])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ("a", "b", "c", "d")}, "clusters: 4 classes, and the model tells 3 apart"),
        ({"x": np.zeros((5, WIDTH + 1), np.float32)}, r"samples have shape \[21\], expected \[20\]"),
        ({"x": np.zeros((0, WIDTH), np.float32), "y": np.zeros(0, np.int64)}, "clusters: no samples; bring some"),
    ],
)
def test_samples_that_do_not_fit(model: Model, training: LocalTraining, change: dict, says: str) -> None:
    given = {"x": np.zeros((5, WIDTH), np.float32), "y": np.zeros(5, np.int64), "classes": ("a", "b", "c")}
    samples = Dataset(**{**given, **change}, name="clusters", real=False)
    with pytest.raises(DataError, match=says):
        training.evaluate(start(model, training), samples)


def test_a_slice_in_the_middle_is_refused(model: Model) -> None:
    graph = write_backward_graph(model, batch=2, start=0, stop=len(model.main.operators))
    with pytest.raises(ModelError, match="of a slice in the middle; take that of a whole model"):
        LocalTraining(graph.data, graph.spec)
