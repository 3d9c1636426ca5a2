"""The network: one branch per source, a fusion trunk, one score per activity.

Each branch is a strided convolution over time (0.2 s every 0.1 s at 50 Hz) and a second one; the trunk joins the
branches along channels, looks once more along time, and keeps mean and maximum of each feature: convolution before
fusion as in Ordóñez and Roggen, "Deep convolutional and LSTM recurrent neural networks for multimodal wearable
activity recognition", Sensors 16(1), 2016, without the recurrence, which costs more than all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from har_edge.streams.recording import Source
from har_edge.training.scaling import Scaling


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the network: filters, kernels and strides along time; `dropout` is the share left out in training."""

    length: int
    classes: int
    first_filters: int = 16
    first_kernel: int = 10
    first_stride: int = 5
    second_filters: int = 16
    second_kernel: int = 5
    second_stride: int = 2
    trunk_filters: int = 32
    trunk_kernel: int = 3
    dropout: float = 0.3


def build_network(sources: Sequence[Source], layout: Layout) -> Any:
    """Return the network to train: scaled windows [n, length, channels] of each source in, probabilities out."""
    return _build(sources, layout, training=True, full_scale=None)


def fold_network(network: Any, sources: Sequence[Source], layout: Layout, scaling: Scaling, *, clip: bool) -> Any:
    """Return the network to ship: raw physical units in, batch normalisation and scaling folded into convolutions.

    With `clip`, the graph holds its inputs within full scale as training did; an int8 model needs no operator for
    that, because its inputs saturate there.
    """
    shipped = _build(sources, layout, training=False, full_scale=scaling.full_scale if clip else None)
    for layer in shipped.layers:
        trained = layer.get_weights() and network.get_layer(layer.name).get_weights()
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = _fold_normalisation(trained[0], network.get_layer(f"{layer.name}_norm"))
            source = layer.name.removesuffix("_first")
            if source != layer.name:
                kernel, bias = _fold_scaling(kernel, bias, scaling.mean[source], scaling.spread[source])
            layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
        elif trained:
            layer.set_weights(trained)
    return shipped


def _build(sources: Sequence[Source], layout: Layout, *, training: bool, full_scale: float | None) -> Any:
    inputs = [keras.Input((layout.length, len(source.channels)), name=source.name) for source in sources]
    branches = []
    for source, value in zip(sources, inputs, strict=True):
        if full_scale is not None:
            value = _clip(value, full_scale, f"{source.name}_clip")
        value = _reshape(value, (layout.length, 1, len(source.channels)), f"{source.name}_column")
        first = (layout.first_filters, layout.first_kernel, layout.first_stride)
        value = _convolve(value, *first, f"{source.name}_first", training)
        second = (layout.second_filters, layout.second_kernel, layout.second_stride)
        branches.append(_convolve(value, *second, f"{source.name}_second", training))
    value = keras.layers.Concatenate(name="fusion")(branches) if len(branches) > 1 else branches[0]
    if training:
        value = keras.layers.SpatialDropout2D(layout.dropout / 2)(value)
    value = _convolve(value, layout.trunk_filters, layout.trunk_kernel, 1, "trunk", training)
    steps = (value.shape[1], 1)
    mean = keras.layers.AveragePooling2D(steps, name="mean")(value)
    most = keras.layers.MaxPooling2D(steps, name="most")(value)
    value = keras.layers.Concatenate(name="pooled")([mean, most])
    value = _reshape(value, (2 * layout.trunk_filters,), "features")
    if training:
        value = keras.layers.Dropout(layout.dropout)(value)
    value = keras.layers.Dense(layout.classes, name="logits")(value)
    return keras.Model(inputs, keras.layers.Softmax(name="activity")(value))


def _convolve(value: Any, filters: int, kernel: int, stride: int, name: str, training: bool) -> Any:
    activation = None if training else "relu"
    convolve = keras.layers.Conv2D(
        filters, (kernel, 1), (stride, 1), use_bias=not training, activation=activation, name=name
    )
    value = convolve(value)
    if training:
        value = keras.layers.BatchNormalization(momentum=0.95, name=f"{name}_norm")(value)
        value = keras.layers.ReLU()(value)
    return value


def _reshape(value: Any, shape: tuple[int, ...], name: str) -> Any:
    # keras.layers.Reshape asks for the batch size at run time, which becomes three operators more in TFLite.
    return keras.layers.Lambda(lambda x: tf.reshape(x, (-1, *shape)), output_shape=shape, name=name)(value)


def _clip(value: Any, limit: float, name: str) -> Any:
    return keras.layers.Lambda(
        lambda x: tf.clip_by_value(x, -limit, limit), output_shape=tuple(value.shape[1:]), name=name
    )(value)


def _fold_normalisation(kernel: Any, norm: Any) -> tuple[Any, Any]:
    gamma, beta, mean, variance = (weights.astype(np.float64) for weights in norm.get_weights())
    factor = gamma / np.sqrt(variance + norm.epsilon)
    return kernel.astype(np.float64) * factor, beta - mean * factor


def _fold_scaling(kernel: Any, bias: Any, mean: Any, spread: Any) -> tuple[Any, Any]:
    # Exact because nothing is padded: every output sees `kernel` whole samples.
    kernel = kernel / spread[:, None].astype(np.float64)
    return kernel, bias - (kernel * mean[:, None].astype(np.float64)).sum((0, 1, 2))


def scaled_inputs(samples: Mapping[str, Any], sources: Sequence[Source]) -> list[Any]:
    """Return the samples of a batch in the order of the network's inputs."""
    return [samples[source.name] for source in sources]
