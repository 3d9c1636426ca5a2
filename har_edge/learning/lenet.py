"""LeNet-5 as a float32 .tflite with seeded random weights, written without TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ConfigError
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.schema import tflite

INPUT, OUTPUT = "image", "scores"
SIDE = 28
# The sides of pictures: two pools must leave a value; beyond, a network with more layers fits better.
LEAST_SIDE, MOST_SIDE = 4, 256
# From this side on the second convolution leaves out its borders, as in the paper.
_UNPADDED = 16
_BATCH = 1


def write_lenet5(classes: int = 10, seed: int = 0, shape: tuple[int, ...] = (SIDE, SIDE, 1)) -> memoryview:
    """Return LeNet-5 for pictures [n, height, width, channels] from 0 to 1, with `classes` scores.

    It has 61,706 weights for 28 x 28 grey pixels and 10 classes.

    The network is that of LeCun et al. 1998, section II.B and figure 2, with tanh and average pooling. As usual today,
    its first convolution pads the 28 x 28 pixels, all 16 maps of C3 see all 6 of S2, pooling has no weights, and
    softmax stands for the RBF units. Below 16 pixels the second convolution pads, too. Weights are Glorot's (2010,
    formula 16), uniform; biases are zero. Raises ConfigError for a shape that it cannot take.
    """
    check_shape(shape)
    height, width, channels = (*shape, 1)[:3]
    network = _Network(seed)
    builder = network.builder
    image = builder.empty((_BATCH, height, width, channels), name=INPUT)
    x = network.convolve(image, 6, "c1", tflite.Padding.SAME)
    small = min(height, width) < _UNPADDED
    padding = tflite.Padding.SAME if small else tflite.Padding.VALID
    x = network.convolve(network.pool(x, "s2"), 16, "c3", padding)
    x = network.flatten(network.pool(x, "s4"), "flat")
    x = network.dense(x, 120, "c5", tanh=True)
    x = network.dense(x, 84, "f6", tanh=True)
    x = network.dense(x, classes, "logits", tanh=False)
    options = tflite.SoftmaxOptionsT()
    options.beta = 1.0
    scores = network.named(builder.add("SOFTMAX", [x], (_BATCH, classes), options), OUTPUT)
    builder.open_batch()
    return builder.encode([image], [scores])


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise ConfigError for pictures of a shape that LeNet-5 cannot take: [height, width], or with 1 or 3 channels."""
    whole = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    if not whole or not LEAST_SIDE <= min(shape[:2]) <= max(shape[:2]) <= MOST_SIDE:
        raise ConfigError(
            f"lenet5 takes pictures of {LEAST_SIDE} to {MOST_SIDE} pixels a side, grey or RGB; samples of "
            f"{list(shape)} came: name a model for these with --model FILE.tflite"
        )


class _Network:
    """Adds layers with weights of one random generator."""

    def __init__(self, seed: int) -> None:
        self.builder = GraphBuilder()
        self._random = np.random.default_rng(seed)

    def named(self, tensor: int, name: str) -> int:
        self.builder.rename(tensor, name)
        return tensor

    def convolve(self, x: int, filters: int, name: str, padding: int) -> int:
        """Add a 5 x 5 convolution with a bias, and tanh."""
        _, height, width, channels = self.builder.shape(x)
        lost = 4 if padding == tflite.Padding.VALID else 0
        options = tflite.Conv2DOptionsT()
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        options.padding = padding
        weights = self._weights((filters, 5, 5, channels), 25 * channels, 25 * filters)
        inputs = [x, *self._parameters(weights, name)]
        made = self.builder.add("CONV_2D", inputs, (_BATCH, height - lost, width - lost, filters), options)
        return self.named(self.builder.unary("TANH", self.named(made, f"{name}_sum")), name)

    def pool(self, x: int, name: str) -> int:
        """Add the means of 2 x 2 values."""
        _, height, width, channels = self.builder.shape(x)
        options = tflite.Pool2DOptionsT()
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = 2
        options.padding = tflite.Padding.VALID
        made = self.builder.add("AVERAGE_POOL_2D", [x], (_BATCH, height // 2, width // 2, channels), options)
        return self.named(made, name)

    def flatten(self, x: int, name: str) -> int:
        size = math.prod(self.builder.shape(x))
        options = tflite.ReshapeOptionsT()
        options.newShape = np.array([-1, size], np.int32)
        return self.named(
            self.builder.add("RESHAPE", [x, self.builder.ints([-1, size])], (_BATCH, size), options), name
        )

    def dense(self, x: int, units: int, name: str, *, tanh: bool) -> int:
        _, width = self.builder.shape(x)
        inputs = [x, *self._parameters(self._weights((units, width), width, units), name)]
        made = self.builder.add("FULLY_CONNECTED", inputs, (_BATCH, units), tflite.FullyConnectedOptionsT())
        if not tanh:
            return self.named(made, name)
        return self.named(self.builder.unary("TANH", self.named(made, f"{name}_sum")), name)

    def _weights(self, shape: tuple[int, ...], inputs: int, outputs: int) -> NDArray[Any]:
        reach = math.sqrt(6 / (inputs + outputs))
        return self._random.uniform(-reach, reach, shape).astype(np.float32)

    def _parameters(self, weights: NDArray[Any], name: str) -> tuple[int, int]:
        kernel = self.named(self.builder.constant(weights), f"{name}/weights")
        bias = self.named(self.builder.constant(np.zeros(len(weights), np.float32)), f"{name}/bias")
        return kernel, bias
