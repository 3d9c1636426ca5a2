"""Networks as Keras makes them and TensorFlow's converter writes them, with an open batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from har_edge.tflite.model import Model, read_model


def convert(network: Callable[[], Any]) -> Model:
    """Return a network with random weights as a model, converted."""
    keras.utils.set_random_seed(3)
    return read_model(tf.lite.TFLiteConverter.from_keras_model(network()).convert())


def transposed_autoencoder() -> Any:
    """Strided convolutions, and transposed ones back."""
    x = image = keras.Input((16, 16, 1))
    for filters in (8, 4):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(image, layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(x))


def resized_autoencoder() -> Any:
    """Pools, and both kinds of resizes back; Keras repeats pixels by TILE."""
    x = image = keras.Input((12, 16, 1))
    for filters in (8, 4):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.UpSampling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    return keras.Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))


def dense_autoencoder() -> Any:
    """Dense layers with several activations."""
    x = row = keras.Input((48,))
    for units, activation in ((24, "relu"), (8, "tanh"), (24, "elu"), (24, "leaky_relu"), (24, "gelu"), (48, None)):
        x = layers.Dense(units, activation=activation)(x)
    return keras.Model(row, x)


def inverted_residuals() -> Any:
    """Blocks of MobileNetV2, whose normalisations the converter folds."""
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for expansion, filters, stride in ((1, 8, 1), (4, 12, 2), (4, 12, 1)):
        x = _inverted_residual(x, expansion, filters, stride)
    x = layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, x)


def _inverted_residual(x: Any, expansion: int, filters: int, stride: int) -> Any:
    channels = x.shape[-1]
    y = layers.Conv2D(channels * expansion, 1, use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
    return layers.Add()([x, y]) if stride == 1 and channels == filters else y


def residual_network() -> Any:
    """Blocks of ResNet: sums, overlapping pool, padding by hand."""
    x = image = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.ReLU()(layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)]))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    y = layers.Conv2D(12, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.ReLU()(layers.Add()([layers.Conv2D(12, 1, strides=2)(x), y]))
    return keras.Model(image, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


def gated_sequence() -> Any:
    """A dilated convolution over time, a layer's normalisation, squeeze and excite, hard swish."""
    x = series = keras.Input((32, 4))
    x = layers.Conv1D(8, 3, dilation_rate=2, padding="same", activation="relu")(x)
    x = layers.LayerNormalization()(x)
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling1D()(x))
    x = layers.Activation("hard_swish")(layers.Multiply()([x, layers.Reshape((1, 8))(gate)]))
    x = layers.Flatten()(layers.Permute((2, 1))(x))
    return keras.Model(series, layers.Dense(3)(x))


def attention() -> Any:
    """Two heads that attend to each other's places."""
    x = series = keras.Input((8, 6))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    return keras.Model(series, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


def separable_network() -> Any:
    """Blocks of Xception, average pools, other activations, two branches joined."""
    x = image = keras.Input((12, 12, 2))
    x = layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, activation="swish")(x)
    left = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(4, (1, 3))(x))
    right = layers.AveragePooling2D((1, 3), 1)(x)
    x = layers.MaxPooling2D(2)(layers.Concatenate()([left, right]))
    x = layers.SpatialDropout2D(0.2)(layers.Conv2D(6, 3, strides=2, activation="relu6")(x))
    return keras.Model(image, layers.Dense(3, activation="softmax")(layers.GlobalMaxPooling2D()(x)))


CLASSIFIERS = (inverted_residuals, residual_network, gated_sequence, attention, separable_network)
AUTOENCODERS = (transposed_autoencoder, resized_autoencoder, dense_autoencoder)
