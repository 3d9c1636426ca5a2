"""Random weights of a scale that keeps activations in range, and made-up images to measure that with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

Array = npt.NDArray[np.float32]

# Standard deviation of biases, beside weights that keep about 1: zeros would hide a bias in the wrong place.
BIAS_DEVIATION = 0.1
# Standard deviation of the logits: with 1, a thousand classes would all be zeros of an int8 softmax.
LOGITS_DEVIATION = 4.0
# Images that statistics are taken of.
SAMPLE = 8
_PATCHES = 7
# Mantissa bits that measured values keep: processors that round differently shall make the same weights.
_KEPT_BITS = 7


def make_images(shape: tuple[int, ...], count: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield images (or clips) [1, *shape] from -1 to 1: patches around a colour, and noise.

    The first one holds -1 and 1, so that a calibration sees the whole range.
    """
    height, width, channels = shape[-3:]
    rows, columns = (np.arange(side) * _PATCHES // side for side in (height, width))
    for number in range(count):
        colour, contrast = generator.uniform(-0.5, 0.5, channels), generator.uniform(0.05, 0.45)
        patches = colour + generator.uniform(-contrast, contrast, (*shape[:-3], _PATCHES, _PATCHES, channels))
        image = patches[..., rows[:, None], columns[None, :], :] + generator.uniform(-0.05, 0.05, shape)
        if number == 0:
            image.reshape(-1)[:2] = -1, 1
        yield image[None].astype(np.float32)


def randomize(model: Any, images: Array, generator: np.random.Generator) -> None:
    """Give a model random weights, and its batch normalisation the statistics that these images [n, ...] have.

    Weights are normal with a variance of 2 / inputs (He et al., Delving deep into rectifiers, ICCV 2015, section 2.2).
    """
    for layer in model.layers:
        if not isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(_draw(weight, layer, generator))
    _settle_batch_normalization(model, images, generator)
    _settle_logits(model, images)


def _draw(weight: Any, layer: Any, generator: np.random.Generator) -> Array:
    shape = tuple(weight.shape)
    values = generator.standard_normal(shape, dtype=np.float32)
    if weight.name == "bias":
        values *= np.float32(BIAS_DEVIATION)
        return values
    depthwise = isinstance(layer, layers.DepthwiseConv2D) or weight.name == "depthwise_kernel"
    values *= np.sqrt(np.float32(2) / np.float32(math.prod(shape[:2] if depthwise else shape[:-1])))
    return values


def _settle_batch_normalization(model: Any, images: Array, generator: np.random.Generator) -> None:
    """Set mean and variance to those of the images: then every normalised activation has about mean 0, variance 1."""
    found = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    if not found:
        return
    for layer in found:
        layer.momentum = 0.0
        beta = BIAS_DEVIATION * generator.standard_normal(layer.beta.shape, dtype=np.float32)
        layer.beta.assign(beta)
    model(images, training=True)
    for layer in found:
        for statistic in (layer.moving_mean, layer.moving_variance):
            statistic.assign(_coarse(np.asarray(statistic)))


def _settle_logits(model: Any, images: Array) -> None:
    """Scale and shift the last dense layer, so that the logits of different images differ by LOGITS_DEVIATION.

    Without the shift, most of every logit would be the same for all images, and one class would always win.
    """
    last = [layer for layer in model.layers if isinstance(layer, layers.Dense)][-1]
    features = np.asarray(keras.Model(model.input, last.input)(images, training=False))
    kernel, _ = last.get_weights()
    logits = features @ kernel
    mean = logits.mean(axis=0)
    scale = _coarse(np.float32(LOGITS_DEVIATION / np.std(logits - mean, dtype=np.float64)))
    last.set_weights([kernel * scale, -scale * _coarse(mean)])


def _coarse(values: Any) -> Any:
    """Round to a few bits of mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**_KEPT_BITS) / 2**_KEPT_BITS, exponent).astype(np.float32)
