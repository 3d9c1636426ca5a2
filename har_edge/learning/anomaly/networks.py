"""Networks that learn normal pictures, as float32 .tflite files with seeded random weights, without TensorFlow.

All of their operators take any batch: convolutions, and DEPTH_TO_SPACE where maps grow (sub-pixel convolution; Shi et
al. 2016), so that no output shape stands in the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.errors import ConfigError
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.schema import tflite

INPUT, CODE, OUTPUT = "picture", "code", "reconstruction"
_ACTIVATIONS = tflite.ActivationFunctionType
# Square pictures up to this side have one code for the whole picture; others have a code at each position.
GLOBAL_SIDE = 32
_GLOBAL_LEVELS, _LOCAL_LEVELS = 2, 3
# Biases begin this small and different: equal constants would be stored once, and be one weight.
_BIAS = 1e-3
_HIDDEN = _ACTIVATIONS.RELU


@dataclass(frozen=True, slots=True)
class AutoencoderSize:
    """The size of an autoencoder: filters of its first convolution, and values of the code (of each position)."""

    filters: int = 16
    code: int = 16


def has_global_code(height: int, width: int) -> bool:
    """Return whether pictures of this size get one code, rather than one at each position: small square ones do."""
    return height == width <= GLOBAL_SIDE


def check_side(height: int, width: int) -> int:
    """Return how often an autoencoder halves pictures of this size. Raises ConfigError where they cannot be halved."""
    levels = _GLOBAL_LEVELS if has_global_code(height, width) else _LOCAL_LEVELS
    step = 2**levels
    if height % step or width % step or min(height, width) < step:
        raise ConfigError(
            f"pictures of {width} x {height} came; an autoencoder of this size takes sides that are multiples of {step}"
        )
    return levels


def write_autoencoder(shape: Shape, size: AutoencoderSize = AutoencoderSize(), seed: int = 0) -> memoryview:
    """Return an autoencoder for pictures float32 [n, height, width, channels] from 0 to 1.

    Convolutions of stride 2 halve the picture, twice as many filters each; then a convolution makes the code: of the
    whole picture for squares of up to 32 pixels, else of each position. The way back mirrors it. Raises ConfigError for
    sides that cannot be halved.
    """
    height, width, channels = shape
    levels = check_side(height, width)
    network = _Network(seed)
    builder = network.builder
    picture = builder.empty((1, *shape), name=INPUT)
    x, filters = picture, size.filters
    for level in range(levels):
        x = network.convolve(x, filters << level, 3 if level else 5, f"down{level}", stride=2)
    deep = filters << (levels - 1)
    if levels == _GLOBAL_LEVELS:
        low, wide = builder.shape(x)[1:3]
        code = network.convolve(x, size.code, (low, wide), CODE, valid=True, activation=_ACTIVATIONS.NONE)
        x = network.unfold(code, low, deep)
    else:
        code = network.convolve(x, size.code, 1, CODE, activation=_ACTIVATIONS.NONE)
        x = network.convolve(code, deep, 3, "open")
    for level in reversed(range(levels)):
        last = level == 0
        wanted = channels if last else filters << (level - 1)
        x = network.convolve(x, deep if last else filters << level, 3, f"up{level}")
        x = network.grow(x, wanted, f"grow{level}", activation=_ACTIVATIONS.NONE if last else _HIDDEN)
    builder.rename(x, OUTPUT)
    builder.open_batch()
    return builder.encode([picture], [x])


def write_student(shape: Shape, maps: Sequence[Shape], filters: int = 16, seed: int = 0) -> memoryview:
    """Return a student whose outputs `map/0`... have the shapes [h, w, c] of a teacher's maps, finest first.

    Convolutions of stride 2 go down to each size; a convolution without activation gives the map there. Raises
    ConfigError for maps that are no halves of the picture.
    """
    network = _Network(seed)
    builder = network.builder
    picture = builder.empty((1, *shape), name=INPUT)
    x, outputs, width = picture, [], filters
    for number, (height, _, channels) in enumerate(maps):
        while builder.shape(x)[1] > height:
            x = network.convolve(x, width, 3, f"down{builder.shape(x)[1]}", stride=2)
            width = min(2 * width, 128)
        if builder.shape(x)[1:3] != tuple(maps[number][:2]):
            raise ConfigError(
                f"the teacher's map {number} is {list(maps[number])}, no halving of {list(shape)}; take pictures whose "
                "sides are multiples of 32"
            )
        y = network.convolve(x, 2 * channels, 3, f"mix{number}")
        y = network.convolve(y, channels, 1, f"map/{number}", activation=_ACTIVATIONS.NONE)
        outputs.append(y)
    builder.open_batch()
    return builder.encode([picture], outputs)


class _Network:
    """Adds layers with weights of one random generator: He's normal ones (2015, equation 10)."""

    def __init__(self, seed: int) -> None:
        self.builder = GraphBuilder()
        self._random = np.random.default_rng(seed)

    def convolve(
        self,
        x: int,
        filters: int,
        kernel: int | tuple[int, int],
        name: str,
        *,
        stride: int = 1,
        valid: bool = False,
        activation: int = _HIDDEN,
    ) -> int:
        n, height, width, channels = self.builder.shape(x)
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        options = tflite.Conv2DOptionsT()
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.padding = tflite.Padding.VALID if valid else tflite.Padding.SAME
        options.fusedActivationFunction = activation
        shape = (1, 1) if valid else (-(-height // stride), -(-width // stride))
        deviation = math.sqrt((2 if activation == _HIDDEN else 1) / (high * wide * channels))
        weights = self._random.normal(0, deviation, (filters, high, wide, channels)).astype(np.float32)
        bias = self._random.uniform(-_BIAS, _BIAS, filters)
        inputs = [x, self._constant(weights, f"{name}/weights"), self._constant(bias, f"{name}/bias")]
        made = self.builder.add("CONV_2D", inputs, (n, *shape, filters), options)
        self.builder.rename(made, name)
        return made

    def grow(self, x: int, filters: int, name: str, *, activation: int) -> int:
        """Return a map of twice the height and width."""
        return self._spread(self.convolve(x, 4 * filters, 3, name, activation=activation), 2)

    def unfold(self, code: int, side: int, filters: int) -> int:
        """Return a map [n, side, side, filters] of a code [n, 1, 1, c]."""
        return self._spread(self.convolve(code, side * side * filters, 1, "unfold"), side)

    def _spread(self, x: int, block: int) -> int:
        n, height, width, channels = self.builder.shape(x)
        options = tflite.DepthToSpaceOptionsT()
        options.blockSize = block
        shape = (n, height * block, width * block, channels // (block * block))
        return self.builder.add("DEPTH_TO_SPACE", [x], shape, options)

    def _constant(self, values: np.ndarray, name: str) -> int:
        made = self.builder.constant(values.astype(np.float32))
        self.builder.rename(made, name)
        return made
