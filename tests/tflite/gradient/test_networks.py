"""Whole networks against TensorFlow: loss, predictions, and the gradient of every weight and input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from har_edge.inference.training_step import TrainingStep
from har_edge.resources import find_folder
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import find_weights, read_weights
from har_edge.tflite.model import Model, read_model
from tests.tflite.gradient.check import assert_close
from tests.tflite.gradient.keras_networks import AUTOENCODERS, CLASSIFIERS, convert
from tests.tflite.gradient.tensorflow_graph import TensorFlowGraph

pytestmark = pytest.mark.training

BATCH, TOLERANCE = 4, 1e-5
Arrays = dict[str, np.ndarray]


def _draw(model: Model) -> tuple[Arrays, np.ndarray]:
    """Return random samples by input, and sample weights, one of them 0."""
    rng = np.random.default_rng(5)
    inputs = [model.main.tensors[index] for index in model.main.inputs]
    x = {one.name: rng.standard_normal((BATCH, *one.shape[1:])).astype(np.float32) for one in inputs}
    return x, np.array([1, 0.5, 0, 2], np.float32)


def _check(
    model: Model,
    loss: Loss,
    x: Arrays,
    y: np.ndarray,
    sample_weight: np.ndarray,
    trainable: list[str] | None = None,
) -> None:
    """Compare one training step with TensorFlow's; named weights alone get gradients, where they are named."""
    every = trainable is None
    graph = write_training_graph(model, batch=BATCH, loss=loss, trainable=trainable, input_gradients=every)
    weights = read_weights(model, trainable)
    got = TrainingStep(graph.data, graph.spec).run(weights, x, y, sample_weight)
    total, predictions, wanted = _tensorflow(model, loss, x, y, sample_weight)
    np.testing.assert_allclose(got.predictions, predictions, rtol=1e-4, atol=1e-5)
    assert got.loss_sum == pytest.approx(total, rel=1e-5)
    assert set(got.gradients) == set(weights)
    found = {**got.gradients, **got.dx}
    assert_close(found, {name: wanted[name] for name in found}, TOLERANCE)


def _tensorflow(
    model: Model, loss: Loss, x: Arrays, y: np.ndarray, sample_weight: np.ndarray
) -> tuple[float, np.ndarray, Arrays]:
    """Return the loss, what the model gives, and the gradients of constants and inputs by name."""
    main = model.main

    def score(values: Mapping[int, Any]) -> Any:
        output, last = values[main.outputs[0]], main.operators[-1]
        if loss is Loss.MEAN_SQUARED:
            each = tf.reduce_mean((output - y) ** 2, axis=list(range(1, len(output.shape))))
        else:
            logits = values[last.inputs[0]] if last.name == "SOFTMAX" else output
            each = tf.nn.softmax_cross_entropy_with_logits(y, logits)
        return tf.reduce_sum(each * sample_weight)

    total, values, found = TensorFlowGraph(model).differentiate(x, score)
    return total, values[main.outputs[0]].numpy(), found


@pytest.mark.parametrize("network", AUTOENCODERS, ids=lambda one: one.__name__)
def test_autoencoders(network: Any) -> None:
    model = convert(network)
    x, sample_weight = _draw(model)
    (samples,) = x.values()
    _check(model, Loss.MEAN_SQUARED, x, np.tanh(samples), sample_weight)


@pytest.mark.parametrize("network", CLASSIFIERS, ids=lambda one: one.__name__)
def test_classifiers(network: Any) -> None:
    model = convert(network)
    x, sample_weight = _draw(model)
    classes = model.main.tensors[model.main.outputs[0]].shape[-1]
    _check(model, Loss.CROSS_ENTROPY, x, np.eye(classes, dtype=np.float32)[[0, 1, 2, 1]], sample_weight)


@pytest.mark.parametrize("name", ["har-float", "har-float-split", "har-bottleneck-float", "har-bottleneck-float-split"])
def test_shipped_models(name: str) -> None:
    model = read_model(find_folder("models") / f"{name}.tflite")
    x, sample_weight = _draw(model)
    classes = model.main.tensors[model.main.outputs[0]].shape[-1]
    _check(model, Loss.CROSS_ENTROPY, x, np.eye(classes, dtype=np.float32)[[0, 5, 2, 1]], sample_weight)


@pytest.mark.parametrize("name", ["har-decimate-q8-zlib-restore", "har-decimate-q8-zlib-restore-split"])
def test_shipped_models_behind_their_sort(name: str) -> None:
    """These sort in front (TOPK_V2): what stands before that runs, and what stands behind is trained."""
    model = read_model(find_folder("models") / f"{name}.tflite")
    sorted_from: set[int] = set()
    in_front = set()
    for operator in reversed(model.main.operators):
        if operator.name == "TOPK_V2" or sorted_from.intersection(operator.outputs):
            sorted_from.update(operator.inputs)
            in_front.add(operator.index)
    found = find_weights(model)
    behind = [weight.name for weight in found if not in_front.intersection(place for place, _ in weight.uses)]
    assert 80 < len(behind) < len(found)
    x, sample_weight = _draw(model)
    classes = model.main.tensors[model.main.outputs[0]].shape[-1]
    y = np.eye(classes, dtype=np.float32)[[0, 5, 2, 1]]
    _check(model, Loss.CROSS_ENTROPY, x, y, sample_weight, behind)
