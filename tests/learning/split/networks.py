"""Small networks to train in stages, written without TensorFlow."""

from __future__ import annotations

import numpy as np

from har_edge.learning.data.datasets import Dataset
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.schema import tflite

WIDTH, HIDDEN, CLASSES = 6, 10, 4
RELU = tflite.ActivationFunctionType.RELU


class Layers:
    """Adds layers with weights of one random generator."""

    def __init__(self, seed: int) -> None:
        self.builder, self.random = GraphBuilder(), np.random.default_rng(seed)

    def dense(self, x: int, width: int, name: str, activation: int = 0) -> int:
        columns = self.builder.shape(x)[-1]
        options = tflite.FullyConnectedOptionsT()
        options.fusedActivationFunction = activation
        weights = self.builder.constant(self.random.normal(0, columns**-0.5, (width, columns)).astype(np.float32))
        bias = self.builder.constant(self.random.normal(0, 0.1, width).astype(np.float32))
        self.builder.rename(weights, f"{name}/weights")
        self.builder.rename(bias, f"{name}/bias")
        return self.named(self.builder.add("FULLY_CONNECTED", [x, weights, bias], (1, width), options), name)

    def add(self, a: int, b: int, name: str) -> int:
        return self.named(self.builder.plus(a, b), name)

    def named(self, tensor: int, name: str) -> int:
        self.builder.rename(tensor, name)
        return tensor


def residual(seed: int = 0) -> Model:
    """Return a network of seven operators whose first layer is read by three later ones: it crosses up to three cuts.

    0 first, 1 second, 2 sum (first + second), 3 third, 4 again (first + third), 5 logits, 6 scores.
    """
    net = Layers(seed)
    x = net.builder.empty((1, WIDTH), name="samples")
    first = net.dense(x, HIDDEN, "first", RELU)
    second = net.dense(first, HIDDEN, "second", RELU)
    third = net.dense(net.add(first, second, "sum"), HIDDEN, "third", RELU)
    logits = net.dense(net.add(first, third, "again"), CLASSES, "logits")
    options = tflite.SoftmaxOptionsT()
    options.beta = 1.0
    scores = net.named(net.builder.add("SOFTMAX", [logits], (1, CLASSES), options), "scores")
    net.builder.open_batch()
    return read_model(bytes(net.builder.encode([x], [scores])))


def samples(count: int, seed: int = 0) -> Dataset:
    """Return samples whose class shows."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, count)
    x = random.normal(0, 0.4, (count, WIDTH)).astype(np.float32)
    x[np.arange(count), y] += 1
    return Dataset(x, y, tuple(map(str, range(CLASSES))), "made", real=False)
