"""The network and the pictures of bench/split_training.py: VGG16's layers for 64 x 64 pixels, and MNIST enlarged.

Simonyan and Zisserman 2015, table 1, column D, with `width` filters instead of 64 in the first block, and one dense
layer of 512 units in front of the classes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from har_edge.learning.data.dataset_files import read_data
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite

SIDE, CHANNELS, CLASSES, UNITS = 64, 3, 10, 512
# Convolutions of each block; the filters double from block to block.
BLOCKS = (2, 2, 3, 3, 3)


def write_vgg(width: int = 40, seed: int = 0) -> memoryview:
    """Return the network as a float .tflite with an open batch; weights are He's (2015, formula 10), biases zero."""
    builder, rng = GraphBuilder(), np.random.default_rng(seed)
    image = x = builder.empty((1, SIDE, SIDE, CHANNELS), name="image")
    for block, count in enumerate(BLOCKS):
        for number in range(count):
            x = _convolve(builder, rng, x, width << block, f"conv{block + 1}_{number + 1}")
        x = _pool(builder, x, f"pool{block + 1}")
    size = math.prod(builder.shape(x))
    x = builder.add("RESHAPE", [x, builder.ints([-1, size])], (1, size), tflite.ReshapeOptionsT())
    builder.rename(x, "flat")
    x = _dense(builder, rng, x, UNITS, "dense", relu=True)
    x = _dense(builder, rng, x, CLASSES, "logits", relu=False)
    options = tflite.SoftmaxOptionsT()
    options.beta = 1.0
    scores = builder.add("SOFTMAX", [x], builder.shape(x), options)
    builder.rename(scores, "scores")
    builder.open_batch()
    return builder.encode([image], [scores])


def _weights(builder: GraphBuilder, rng: np.random.Generator, shape: tuple[int, ...], name: str) -> tuple[int, int]:
    reach = math.sqrt(2 / math.prod(shape[1:]))
    kernel = builder.constant((rng.standard_normal(shape) * reach).astype(np.float32))
    bias = builder.constant(np.zeros(shape[0], np.float32))
    builder.rename(kernel, f"{name}/weights")
    builder.rename(bias, f"{name}/bias")
    return kernel, bias


def _convolve(builder: GraphBuilder, rng: np.random.Generator, x: int, filters: int, name: str) -> int:
    _, height, width, channels = builder.shape(x)
    options: Any = tflite.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.padding = tflite.Padding.SAME
    options.fusedActivationFunction = tflite.ActivationFunctionType.RELU
    inputs = [x, *_weights(builder, rng, (filters, 3, 3, channels), name)]
    made = builder.add("CONV_2D", inputs, (1, height, width, filters), options)
    builder.rename(made, name)
    return made


def _pool(builder: GraphBuilder, x: int, name: str) -> int:
    _, height, width, channels = builder.shape(x)
    options: Any = tflite.Pool2DOptionsT()
    options.strideH = options.strideW = options.filterHeight = options.filterWidth = 2
    options.padding = tflite.Padding.VALID
    made = builder.add("MAX_POOL_2D", [x], (1, height // 2, width // 2, channels), options)
    builder.rename(made, name)
    return made


def _dense(builder: GraphBuilder, rng: np.random.Generator, x: int, units: int, name: str, *, relu: bool) -> int:
    _, size = builder.shape(x)
    options: Any = tflite.FullyConnectedOptionsT()
    options.fusedActivationFunction = tflite.ActivationFunctionType.RELU if relu else 0
    made = builder.add("FULLY_CONNECTED", [x, *_weights(builder, rng, (units, size), name)], (1, units), options)
    builder.rename(made, name)
    return made


def write_pictures(path: Path, count: int, mnist: Path | None, seed: int = 0) -> str:
    """Write `count` pictures to train with and some to test with as .npz; return what they are.

    MNIST's digits, twice as large, with a margin, the same in all three colours; without MNIST, noise around a pattern
    for each class.
    """
    rng, tests = np.random.default_rng(seed), max(32, count // 10)
    if mnist is not None:
        found = read_data(mnist)
        parts = [(one.x.reshape(-1, 28, 28), one.y) for one in (found.train, found.test)]
        chosen = [rng.permutation(len(y))[:wanted] for (_, y), wanted in zip(parts, (count, tests), strict=True)]
        small, labels = zip(*((x[pick], y[pick]) for (x, y), pick in zip(parts, chosen, strict=True)), strict=True)
        pictures = [_enlarge(one) for one in small]
    else:
        patterns = rng.integers(0, 256, (CLASSES, SIDE, SIDE, CHANNELS))
        labels = tuple(rng.integers(0, CLASSES, wanted) for wanted in (count, tests))
        pictures = [
            np.clip(patterns[y] / 2 + rng.integers(0, 128, (len(y), SIDE, SIDE, CHANNELS)), 0, 255).astype(np.uint8)
            for y in labels
        ]
    real = np.array([mnist is not None])
    np.savez(path, x_train=pictures[0], y_train=labels[0], x_test=pictures[1], y_test=labels[1], real=real)
    kind = "synthetic pictures of" if mnist is None else "MNIST (real), enlarged to"
    return f"{kind} {SIDE} x {SIDE} x {CHANNELS}"


def _enlarge(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of 28 x 28 as 64 x 64 x 3."""
    large = pictures.astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    margin = (SIDE - large.shape[1]) // 2
    return np.pad(large, ((0, 0), (margin, margin), (margin, margin)))[..., None].repeat(CHANNELS, axis=3)
