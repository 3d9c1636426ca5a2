"""The networks as Keras models: those of keras.applications as they are there, the others written out."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from har_edge.training.zoo.catalog import Architecture

INPUT = "image"
LOGITS = "logits"
SCORES = "scores"
_APPLICATIONS = {"vgg16": "VGG16", "resnet50": "ResNet50", "xception": "Xception", "mobilenetv2": "MobileNetV2"}


def build(network: Architecture, size: int, classes: int, *, lower_3d: bool = False) -> Any:
    """Return the Keras model of a network for inputs of a size, with an open batch and softmax as its last layer.

    Args:
        size: height and width of the input in pixels.
        lower_3d: make 3-D convolutions 2-D ones over neighbouring frames, since TFLite has no CONV_3D for integers.
    """
    image = keras.Input(network.shape(size), name=INPUT)
    if network.name in _APPLICATIONS:
        application = getattr(keras.applications, _APPLICATIONS[network.name])
        logits = application(weights=None, input_tensor=image, classes=classes, classifier_activation=None)
        model = keras.Model(image, layers.Softmax(name=SCORES)(logits.output), name=network.name)
        return keras.models.clone_model(model, clone_function=_with_constant_shape)
    written = {"lenet5": lenet5, "alexnet": alexnet}
    return c3d(image, classes, lower=lower_3d) if network.name == "c3d" else written[network.name](image, classes)


def lenet5(image: Any, classes: int) -> Any:
    """Return LeNet-5: LeCun et al. 1998, section II.B and figure 2, with tanh and average pooling.

    As usual today, all 16 maps of C3 see all 6 of S2, pooling has no weights, and softmax stands for the RBF units.
    """
    x = layers.Conv2D(6, 5, activation="tanh", name="c1")(image)
    x = layers.AveragePooling2D(2, name="s2")(x)
    x = layers.Conv2D(16, 5, activation="tanh", name="c3")(x)
    x = layers.AveragePooling2D(2, name="s4")(x)
    x = Flat(name="flat")(x)
    x = layers.Dense(120, activation="tanh", name="c5")(x)
    x = layers.Dense(84, activation="tanh", name="f6")(x)
    return keras.Model(image, _scores(x, classes), name="lenet5")


def alexnet(image: Any, classes: int) -> Any:
    """Return AlexNet: Krizhevsky et al. 2012, sections 3.3 to 3.5; dropout does nothing in inference.

    The two GPUs of the paper are two groups in the second, fourth and fifth convolution.
    """
    x = layers.Conv2D(96, 11, strides=4, activation="relu", name="conv1")(image)
    x = layers.MaxPooling2D(3, 2, name="pool1")(ResponseNormalization(name="norm1")(x))
    x = layers.Conv2D(256, 5, padding="same", groups=2, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(ResponseNormalization(name="norm2")(x))
    x = layers.Conv2D(384, 3, padding="same", activation="relu", name="conv3")(x)
    x = layers.Conv2D(384, 3, padding="same", groups=2, activation="relu", name="conv4")(x)
    x = layers.Conv2D(256, 3, padding="same", groups=2, activation="relu", name="conv5")(x)
    x = Flat(name="flat")(layers.MaxPooling2D(3, 2, name="pool5")(x))
    x = layers.Dense(4096, activation="relu", name="fc6")(x)
    x = layers.Dense(4096, activation="relu", name="fc7")(x)
    return keras.Model(image, _scores(x, classes), name="alexnet")


# C3D (Tran et al. 2015, figure 3): filters of the convolutions of each block, and the frames that its pooling joins.
_C3D = (((64,), 1), ((128,), 2), ((256, 256), 2), ((512, 512), 2), ((512, 512), 2))


def c3d(clip: Any, classes: int, *, lower: bool = False) -> Any:
    """Return C3D: Tran et al. 2015, section 3.3 and figure 3, with kernels 3 x 3 x 3.

    Pooling joins 2 x 2 x 2 values, the first 1 x 2 x 2. `lower` is as in `build`.
    """
    x = clip
    for block, (filters, frames) in enumerate(_C3D, 1):
        for letter, count in zip("ab", filters, strict=False):
            name = f"conv{block}{letter}"
            if lower:
                x = Convolution3D(count, name=name)(x)
            else:
                x = layers.Conv3D(count, 3, padding="same", activation="relu", name=name)(x)
        x = Pooling3D(frames, name=f"pool{block}")(x)
    x = Flat(name="flat")(x)
    x = layers.Dense(4096, activation="relu", name="fc6")(x)
    x = layers.Dense(4096, activation="relu", name="fc7")(x)
    return keras.Model(clip, _scores(x, classes), name="c3d")


def _scores(x: Any, classes: int) -> Any:
    return layers.Softmax(name=SCORES)(layers.Dense(classes, name=LOGITS)(x))


def _with_constant_shape(layer: Any) -> Any:
    if isinstance(layer, layers.Flatten):
        return Flat(name=layer.name)
    return layer.__class__.from_config(layer.get_config())


class Flat(layers.Layer):  # type: ignore[misc]
    """Flatten to [batch, values] by a constant shape: that of Keras becomes four operators in a .tflite."""

    def call(self, x: Any) -> Any:
        """Return the values of each window in one row."""
        return tf.reshape(x, (-1, math.prod(x.shape[1:])))


class ResponseNormalization(layers.Layer):  # type: ignore[misc]
    """Local response normalisation with the constants of Krizhevsky et al. 2012, section 3.3: k 2, n 5, 1e-4, 0.75."""

    def call(self, x: Any) -> Any:
        """Return x over (2 + 1e-4 * the squares of five neighbouring channels) ^ 0.75."""
        return tf.nn.local_response_normalization(x, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75)


class Pooling3D(layers.Layer):  # type: ignore[misc]
    """Maximum over `frames` x 2 x 2 values, rounding up, as reshapes and 2-D pooling: TFLite has no 3-D pooling.

    Rows stay an axis of their own in all of it, so that a split by rows can go through.
    """

    def __init__(self, frames: int, **options: Any) -> None:
        super().__init__(**options)
        self.frames = frames

    def call(self, x: Any) -> Any:
        """Return the pooled clips [batch, frames, height, width, channels]."""
        _, frames, height, width, channels = x.shape
        x = tf.reshape(x, (-1, height, width, channels))
        x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        _, height, width, _ = x.shape
        if self.frames > 1:
            x = tf.reshape(x, (-1, self.frames, height, width * channels))
            x = tf.nn.max_pool2d(x, (self.frames, 1), (self.frames, 1), "VALID")
        return tf.reshape(x, (-1, frames // self.frames, height, width, channels))


class Convolution3D(layers.Layer):  # type: ignore[misc]
    """A 3 x 3 x 3 convolution with ReLU as one 2-D convolution of each frame beside its neighbours, channel by channel.

    It sums the same products, and TFLite has integer kernels for it.
    """

    def __init__(self, filters: int, **options: Any) -> None:
        super().__init__(**options)
        self.filters = filters

    def build(self, shape: Any) -> None:
        """Make the weights [3, 3, 3, channels, filters] and [filters], as Conv3D has them."""
        self.kernel = self.add_weight(shape=(3, 3, 3, shape[-1], self.filters), name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), name="bias", initializer="zeros")

    def call(self, x: Any) -> Any:
        """Return clips [batch, frames, height, width, filters]."""
        _, frames, height, width, channels = x.shape
        padded = tf.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        beside = tf.concat([padded[:, at : at + frames] for at in range(3)], axis=-1)
        kernel = tf.reshape(tf.transpose(self.kernel, (1, 2, 0, 3, 4)), (3, 3, 3 * channels, self.filters))
        flat = tf.reshape(beside, (-1, height, width, 3 * channels))
        y = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(flat, kernel, 1, "SAME"), self.bias))
        return tf.reshape(y, (-1, frames, height, width, self.filters))
