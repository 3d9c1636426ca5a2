"""The two networks of bench/training_step.py, as .tflite, in TensorFlow and in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_edge.learning.lenet import write_lenet5
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite

Weights = dict[str, np.ndarray]
SIDE, CLASSES = 28, 10


@dataclass(frozen=True)
class Layer:
    """A layer by its kind: conv, average, maximum, flatten or dense; `size` are filters or units."""

    kind: str
    size: int = 0
    kernel: int = 0
    same: bool = False
    activation: str = ""


NETWORKS: dict[str, tuple[Layer, ...]] = {
    "LeNet-5": (
        Layer("conv", 6, 5, same=True, activation="tanh"),
        Layer("average"),
        Layer("conv", 16, 5, activation="tanh"),
        Layer("average"),
        Layer("flatten"),
        Layer("dense", 120, activation="tanh"),
        Layer("dense", 84, activation="tanh"),
        Layer("dense", 10),
    ),
    "2.2 million parameters": (
        Layer("conv", 32, 3, activation="relu"),
        Layer("conv", 64, 3, activation="relu"),
        Layer("maximum"),
        Layer("flatten"),
        Layer("dense", 236, activation="relu"),
        Layer("dense", 10),
    ),
}


def write_network(name: str) -> memoryview:
    """Return a network as .tflite with an open batch and random weights."""
    if name == "LeNet-5":
        return write_lenet5(CLASSES)
    builder, rng = GraphBuilder(), np.random.default_rng(0)
    image = x = builder.empty((1, SIDE, SIDE, 1), name="image")
    for number, layer in enumerate(NETWORKS[name]):
        x = _add(builder, rng, x, layer, f"layer{number}")
    options = tflite.SoftmaxOptionsT()
    options.beta = 1.0
    scores = builder.add("SOFTMAX", [x], builder.shape(x), options)
    builder.open_batch()
    return builder.encode([image], [scores])


def _add(builder: GraphBuilder, rng: np.random.Generator, x: int, layer: Layer, name: str) -> int:
    _, *sizes, channels = builder.shape(x)
    if layer.kind == "flatten":
        size = math.prod(builder.shape(x))
        return builder.add("RESHAPE", [x, builder.ints([-1, size])], (1, size), tflite.ReshapeOptionsT())
    if layer.kind == "maximum":
        pool = tflite.Pool2DOptionsT()
        pool.strideH = pool.strideW = pool.filterHeight = pool.filterWidth = 2
        pool.padding = tflite.Padding.VALID
        return builder.add("MAX_POOL_2D", [x], (1, *(n // 2 for n in sizes), channels), pool)
    shape = (layer.size, layer.kernel, layer.kernel, channels) if layer.kind == "conv" else (layer.size, channels)
    reach = math.sqrt(6 / (math.prod(shape[1:]) + layer.size))
    weights = builder.constant(rng.uniform(-reach, reach, shape).astype(np.float32))
    bias = builder.constant(np.zeros(layer.size, np.float32))
    builder.rename(weights, f"{name}/weights")
    builder.rename(bias, f"{name}/bias")
    options: Any = tflite.FullyConnectedOptionsT()
    out: tuple[int, ...] = (1, layer.size)
    if layer.kind == "conv":
        options = tflite.Conv2DOptionsT()
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        options.padding = tflite.Padding.VALID
        out = (1, *(n - layer.kernel + 1 for n in sizes), layer.size)
    options.fusedActivationFunction = tflite.ActivationFunctionType.RELU if layer.activation else 0
    return builder.add("CONV_2D" if layer.kind == "conv" else "FULLY_CONNECTED", [x, weights, bias], out, options)


def tensorflow_step(name: str, weights: Weights) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Return TensorFlow's own step in graph mode on one thread: loss, softmax, then the gradients."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    arrays = list(weights.values())
    turned = [np.moveaxis(array, 0, -1) if array.ndim > 1 else array for array in arrays]
    variables = [tf.Variable(array) for array in turned]

    def forward(x: Any) -> Any:
        rest = iter(variables)
        for layer in NETWORKS[name]:
            if layer.kind == "conv":
                x = tf.nn.conv2d(x, next(rest), 1, "SAME" if layer.same else "VALID") + next(rest)
            elif layer.kind == "dense":
                x = tf.matmul(x, next(rest)) + next(rest)
            elif layer.kind == "flatten":
                x = tf.reshape(x, [x.shape[0], -1])
            else:
                x = (tf.nn.avg_pool2d if layer.kind == "average" else tf.nn.max_pool2d)(x, 2, 2, "VALID")
            x = {"": tf.identity, "relu": tf.nn.relu, "tanh": tf.tanh}[layer.activation](x)
        return x

    @tf.function
    def graph(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = forward(x)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(y, logits))
        return [loss, tf.nn.softmax(logits), *tape.gradient(loss, variables)]

    def step(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        loss, softmax, *found = [one.numpy() for one in graph(tf.constant(x), tf.constant(y))]
        return [loss, softmax, *(np.moveaxis(one, -1, 0) if one.ndim > 1 else one for one in found)]

    return step


def numpy_step(name: str, weights: Weights) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Return the step in NumPy: im2col and matrix products."""
    arrays = list(weights.values())

    def step(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        tape: list[Callable[[np.ndarray], tuple[np.ndarray, list[np.ndarray]]]] = []
        rest = iter(arrays)
        for layer in NETWORKS[name]:
            x, back = _NUMPY[layer.kind](x, layer, rest)
            tape.append(back)
        shifted = x - x.max(axis=1, keepdims=True)
        softmax = np.exp(shifted)
        total = softmax.sum(axis=1, keepdims=True)
        loss = float((y * (np.log(total) - shifted)).sum())
        softmax /= total
        dy, gradients = softmax - y, []
        for back in reversed(tape):
            dy, found = back(dy)
            gradients = found + gradients
        return [np.float32(loss), softmax, *gradients]

    return step


def _activated(y: np.ndarray, kind: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    if kind == "tanh":
        y = np.tanh(y)
        return y, lambda dy: dy * (1 - y * y)
    if kind == "relu":
        y = np.maximum(y, 0)
        return y, lambda dy: dy * (y > 0)
    return y, lambda dy: dy


def _dense(x: np.ndarray, layer: Layer, rest: Any) -> Any:
    w, b = next(rest), next(rest)
    y, before = _activated(x @ w.T + b, layer.activation)

    def back(dy: np.ndarray) -> Any:
        dy = before(dy)
        return dy @ w, [dy.T @ x, dy.sum(axis=0)]

    return y, back


def _conv(x: np.ndarray, layer: Layer, rest: Any) -> Any:
    w, b = next(rest), next(rest)
    k, pad = layer.kernel, layer.kernel // 2 if layer.same else 0
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(wide, (k, k), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    n, height, width = seen.shape[:3]
    columns = seen.reshape(n * height * width, -1)
    table = w.reshape(len(w), -1)
    y, before = _activated((columns @ table.T + b).reshape(n, height, width, -1), layer.activation)

    def back(dy: np.ndarray) -> Any:
        dy = before(dy).reshape(columns.shape[0], -1)
        given = (dy @ table).reshape(seen.shape) if x.shape[-1] > 1 else None  # the first layer's input needs none
        dx = np.zeros_like(wide)
        for i in range(k if given is not None else 0):
            for j in range(k):
                dx[:, i : i + height, j : j + width] += given[:, :, :, i, j]
        sizes = x.shape[1:3]
        return dx[:, pad : pad + sizes[0], pad : pad + sizes[1]], [(dy.T @ columns).reshape(w.shape), dy.sum(axis=0)]

    return y, back


def _flatten(x: np.ndarray, layer: Layer, rest: Any) -> Any:
    return x.reshape(len(x), -1), lambda dy: (dy.reshape(x.shape), [])


def _pool(x: np.ndarray, layer: Layer, rest: Any) -> Any:
    n, height, width, channels = x.shape
    cells = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    cells = cells.reshape(n, height // 2, width // 2, channels, 4)
    if layer.kind == "average":
        return cells.mean(axis=4), lambda dy: ((dy / 4).repeat(2, axis=1).repeat(2, axis=2), [])
    first = cells.argmax(axis=4)

    def back(dy: np.ndarray) -> Any:
        given = np.zeros_like(cells)
        np.put_along_axis(given, first[..., None], dy[..., None], axis=4)
        given = given.reshape(n, height // 2, width // 2, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return given.reshape(x.shape), []

    return cells.max(axis=4), back


_NUMPY: dict[str, Callable[..., Any]] = {
    "conv": _conv,
    "dense": _dense,
    "flatten": _flatten,
    "average": _pool,
    "maximum": _pool,
}
