"""Layers that exist in training only: what is shipped is folded into plain convolutions.

They compute what the layers of Keras compute, written so that XLA compiles them well: a convolution as one matrix
product over frames, statistics over the batch in two passes, and dropout from a counter-based generator (Philox:
Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

Layer: Any = keras.layers.Layer

MOMENTUM = 0.95
EPSILON = 1e-3


class Convolution(Layer):  # type: ignore[misc]
    """Convolve over time without padding, normalise over the batch (Ioffe and Szegedy, ICML 2015), rectify.

    Takes [n, steps, channels], gives [n, fewer steps, filters].
    """

    def __init__(self, filters: int, kernel: int, stride: int, name: str) -> None:
        super().__init__(name=name)
        self._filters, self._size, self._stride = filters, kernel, stride

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(self._size, shape[-1], self._filters), initializer="glorot_uniform")
        self.gamma = self.add_weight(shape=(self._filters,), initializer="ones")
        self.beta = self.add_weight(shape=(self._filters,), initializer="zeros")
        self.mean = self.add_weight(shape=(self._filters,), initializer="zeros", trainable=False)
        self.variance = self.add_weight(shape=(self._filters,), initializer="ones", trainable=False)

    def call(self, value: Any, training: bool = False) -> Any:
        frames = _frames(value, self._size, self._stride)
        value = tf.matmul(tf.reshape(frames, (-1, frames.shape[-1])), tf.reshape(self.kernel, (-1, self._filters)))
        mean, variance = self.mean, self.variance
        if training:
            mean = tf.reduce_mean(value, 0)
            variance = tf.reduce_mean(tf.square(value - mean), 0)
            for known, new in ((self.mean, mean), (self.variance, variance)):
                known.assign(MOMENTUM * known + (1 - MOMENTUM) * new)
        factor = self.gamma * tf.math.rsqrt(variance + EPSILON)
        value = tf.nn.relu(value * factor + (self.beta - mean * factor))
        return tf.reshape(value, (-1, frames.shape[1], self._filters))

    def folded(self) -> tuple[Any, Any]:
        """Return kernel [size, 1, channels, filters] and bias of the plain convolution that does the same."""
        kernel, gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in self.weights_in_order())
        factor = gamma / np.sqrt(variance + EPSILON)
        return kernel[:, None] * factor, beta - mean * factor

    def weights_in_order(self) -> tuple[Any, ...]:
        """Return kernel, scale, shift, mean and variance."""
        return self.kernel, self.gamma, self.beta, self.mean, self.variance


def _frames(value: Any, size: int, stride: int) -> Any:
    """Return every stretch of `size` steps, one every `stride`: [n, frames, size * channels]."""
    steps, channels = value.shape[1], value.shape[2]
    count = (steps - size) // stride + 1
    if size % stride or steps % stride:
        return tf.concat([value[:, at : at + (count - 1) * stride + 1 : stride] for at in range(size)], -1)
    pieces = tf.reshape(value, (-1, steps // stride, stride * channels))
    return tf.concat([pieces[:, at : at + count] for at in range(size // stride)], -1)


class Dropout(Layer):  # type: ignore[misc]
    """Zero a share of the features at random in training, and blow up the others; `spatial`: for all steps alike."""

    def __init__(self, share: float, name: str, *, spatial: bool = False) -> None:
        super().__init__(name=name)
        self._share, self._spatial = share, spatial

    def build(self, shape: Any) -> None:
        self.counter = self.add_weight(shape=(2,), dtype="int32", initializer=_Seed(), trainable=False)

    def call(self, value: Any, training: bool = False) -> Any:
        if not training or not self._share:
            return value
        kept = _uniform(self.counter, _mask_shape(value, self._spatial)) >= self._share
        return tf.where(kept, value / (1 - self._share), 0.0)


class Absence(Layer):  # type: ignore[misc]
    """Zero all values of a share of the windows in training; nothing is blown up."""

    def __init__(self, share: float, name: str) -> None:
        super().__init__(name=name)
        self._share = share

    def build(self, shape: Any) -> None:
        self.counter = self.add_weight(shape=(2,), dtype="int32", initializer=_Seed(), trainable=False)

    def call(self, value: Any, training: bool = False) -> Any:
        if not training or not self._share:
            return value
        return tf.where(_uniform(self.counter, (tf.shape(value)[0], 1)) >= self._share, value, 0.0)


class SourceDropout(Layer):  # type: ignore[misc]
    """Zero whole inputs of a list at random in training, never all of a window, so that zero means absent.

    Neverova, Wolf, Taylor and Nebout, "ModDrop: adaptive multi-modal gesture recognition", IEEE TPAMI 38(8), 2016,
    section 4.2. Nothing is blown up: what is there looks as it does when nothing is missing.
    """

    def __init__(self, share: float, name: str) -> None:
        super().__init__(name=name)
        self._share = share

    def build(self, shapes: Any) -> None:
        self.counter = self.add_weight(shape=(2,), dtype="int32", initializer=_Seed(), trainable=False)

    def call(self, values: Any, training: bool = False) -> Any:
        if not training or not self._share:
            return values
        there = _uniform(self.counter, (tf.shape(values[0])[0], len(values))) >= self._share
        there = there | ~tf.reduce_any(there, 1, keepdims=True)
        return [
            tf.where(tf.reshape(there[:, at], (-1, *[1] * (len(value.shape) - 1))), value, 0.0)
            for at, value in enumerate(values)
        ]


class Noise(Layer):  # type: ignore[misc]
    """Add normal noise in training, as rounding to int8 will."""

    def __init__(self, deviation: float, name: str) -> None:
        super().__init__(name=name)
        self._deviation = deviation

    def build(self, shape: Any) -> None:
        self.counter = self.add_weight(shape=(2,), dtype="int32", initializer=_Seed(), trainable=False)

    def call(self, value: Any, training: bool = False) -> Any:
        if not training or not self._deviation:
            return value
        self.counter.assign_add([0, 1])
        return value + self._deviation * tf.random.stateless_normal(tf.shape(value), self.counter, alg="philox")


class _Seed(keras.initializers.Initializer):  # type: ignore[misc]
    """Another key for every layer, from the seed of Keras; the second number counts the draws."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return tf.concat([keras.random.randint((1,), 0, (1 << 31) - 1, "int32"), [0]], 0)


def _uniform(counter: Any, shape: Any) -> Any:
    counter.assign_add([0, 1])
    return tf.random.stateless_uniform(shape, counter, alg="philox")


def _mask_shape(value: Any, spatial: bool) -> list[Any]:
    between = [1] * (len(value.shape) - 2) if spatial else list(value.shape[1:-1])
    return [tf.shape(value)[0], *between, value.shape[-1]]
