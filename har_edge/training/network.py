"""The network: one branch per source, a fusion trunk, one score per class.

Each branch of windows is a strided convolution over time (0.2 s every 0.1 s at 50 Hz) and a second one; the trunk joins
the branches along channels, looks once more along time, and keeps mean and maximum of each feature: convolution before
fusion as in Ordóñez and Roggen, "Deep convolutional and LSTM recurrent neural networks for multimodal wearable activity
recognition", Sensors 16(1), 2016, without the recurrence, which costs more than all the rest. Codes without a time axis
meet in dense layers instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from har_edge.data.recording import Samples
from har_edge.errors import ConfigError
from har_edge.training.layers import Convolution, Dropout
from har_edge.training.scaling import Scaling

# A window is looked at in about so many frames, half overlapping.
FRAMES = 50
NOTHING: Mapping[str, str] = {}
NO_WEIGHTS: Mapping[str, tuple[Any, Any]] = {}
# From so many steps on, the second convolution takes every other one.
LONG = 16


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The input of one source: windows or codes with a time axis [steps, channels], or vectors [values]."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kernels:
    """How a network looks along time, in steps: sizes of three convolutions, strides of the first two."""

    first: int = 10
    first_stride: int = 5
    second: int = 5
    second_stride: int = 2
    third: int = 3


@dataclass(frozen=True, slots=True)
class NetworkLayout:
    """Sizes of the network: filters, kernels along time; `dropout` is the share of features left out in training.

    `hidden` are the dense layers that vectors meet in.
    """

    classes: int
    kernels: Kernels = Kernels()
    first_filters: int = 16
    second_filters: int = 16
    trunk_filters: int = 32
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.3


def fit_kernels(steps: int) -> Kernels:
    """Return the kernels for windows or codes of so many steps; for 250 (5 s at 50 Hz) these are the default."""
    stride = max(1, steps // FRAMES)
    first = min(steps, 2 * stride)
    after = (steps - first) // stride + 1
    second = min(after, 5)
    second_stride = 2 if after >= LONG else 1
    left = (after - second) // second_stride + 1
    return Kernels(first, stride, second, second_stride, min(left, 3))


def fit_layout(input_specs: Sequence[InputSpec], classes: int) -> NetworkLayout:
    """Return the sizes for what enters; ConfigError where some has a time axis of another length, or none."""
    lengths = {source.shape[0] if len(source.shape) == 2 else None for source in input_specs}
    if len(lengths) > 1:
        shapes = ", ".join(f"{source.name} {list(source.shape)}" for source in input_specs)
        raise ConfigError(f"{shapes} enter one network; expected one number of steps: give every source one reducer")
    steps = lengths.pop()
    return NetworkLayout(classes) if steps is None else NetworkLayout(classes, fit_kernels(steps))


class Blocks:
    """The parts of a network, which is built twice: to train, with normalisation and dropout, and to ship, folded."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def convolve(self, value: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
        """Return [n, steps, filters] in training, [n, steps, 1, filters] of a plain convolution otherwise."""
        if self.training:
            return Convolution(filters, kernel, stride, name)(value)
        layer = keras.layers.Conv2D(filters, (kernel, 1), (stride, 1), activation="relu", name=name)
        return layer(value)

    def dense(self, value: Any, units: int, name: str, activation: str | None = "relu") -> Any:
        return keras.layers.Dense(units, activation=activation, name=name)(value)

    def squeeze(self, value: Any, units: int, name: str) -> Any:
        """Return a code: as many values of a tanh, in a tensor of that name."""
        return keras.layers.Activation("tanh", name=name)(self.dense(value, units, f"{name}_sum", None))

    def drop(self, value: Any, share: float, name: str, *, spatial: bool = False) -> Any:
        return Dropout(share, name, spatial=spatial)(value) if self.training else value

    def join(self, values: Sequence[Any], name: str) -> Any:
        return keras.layers.Concatenate(name=name)(values) if len(values) > 1 else values[0]

    def rename(self, value: Any, name: str) -> Any:
        return keras.layers.Activation("linear", name=name)(value)

    def pool(self, value: Any, name: str) -> Any:
        """Return mean and maximum of each feature over time, [n, 2 * filters]."""
        if self.training:
            mean = keras.layers.Lambda(lambda x: tf.reduce_mean(x, 1), name=f"{name}mean")(value)
            most = keras.layers.Lambda(lambda x: tf.reduce_max(x, 1), name=f"{name}most")(value)
            return keras.layers.Concatenate(name=f"{name}pooled")([mean, most])
        steps = (value.shape[1], 1)
        mean = keras.layers.AveragePooling2D(steps, name=f"{name}mean")(value)
        most = keras.layers.MaxPooling2D(steps, name=f"{name}most")(value)
        pooled = keras.layers.Concatenate(name=f"{name}pooled")([mean, most])
        return self.reshape(pooled, (pooled.shape[-1],), f"{name}features")

    def column(self, value: Any, name: str) -> Any:
        """Return windows [n, steps, channels] as plain convolutions take them."""
        return value if self.training else self.reshape(value, (value.shape[1], 1, value.shape[2]), f"{name}_column")

    def reshape(self, value: Any, shape: tuple[int, ...], name: str) -> Any:
        # keras.layers.Reshape asks for the batch size at run time, which becomes three operators more in TFLite.
        return keras.layers.Lambda(lambda x: tf.reshape(x, (-1, *shape)), output_shape=shape, name=name)(value)


def build_network(input_specs: Sequence[InputSpec], layout: NetworkLayout) -> Any:
    """Return the network to train: scaled values [n, *shape] of each source in, one logit a class out."""
    inputs = _inputs(input_specs)
    return keras.Model(inputs, _connect(Blocks(training=True), input_specs, inputs, layout))


def fold_network(
    network: Any, input_specs: Sequence[InputSpec], layout: NetworkLayout, scaling: Scaling, *, clip: bool
) -> Any:
    """Return the network to ship: physical units in, probabilities out, normalisation and scaling folded.

    With `clip`, the graph holds its inputs within range as training did; an int8 model needs no operator for that,
    because its inputs saturate there. Inputs without an int8 range are scaled by float32 operators of their own
    (training/export.py) in an int8 model, and so enter this network scaled.
    """
    inputs = _inputs(input_specs)
    values = [clipped(value, scaling) for value in inputs] if clip else inputs
    logits = _connect(Blocks(training=False), input_specs, values, layout)
    shipped = keras.Model(inputs, keras.layers.Softmax(name="activity")(logits))
    unscaled = [source.name for source in input_specs if clip or scaling.ranges[source.name] is not None]
    fold_weights(network, shipped, scaling, enter={f"{name}_first": name for name in unscaled})
    return shipped


def _inputs(input_specs: Sequence[InputSpec]) -> list[Any]:
    return [keras.Input(source.shape, name=source.name) for source in input_specs]


def _connect(blocks: Blocks, input_specs: Sequence[InputSpec], values: Sequence[Any], layout: NetworkLayout) -> Any:
    branch = _vector_branch if len(input_specs[0].shape) == 1 else _window_branch
    branches = [branch(blocks, source.name, value, layout) for source, value in zip(input_specs, values, strict=True)]
    value = blocks.join(branches, "fusion")
    if branch is _window_branch:
        value = blocks.drop(value, layout.dropout / 2, "fusion_drop", spatial=True)
        value = blocks.convolve(value, layout.trunk_filters, layout.kernels.third, 1, "trunk")
        value = blocks.drop(blocks.pool(value, ""), layout.dropout, "drop")
    else:
        value = hidden_layers(blocks, value, layout)
    return blocks.dense(value, layout.classes, "logits", None)


def _window_branch(blocks: Blocks, name: str, value: Any, layout: NetworkLayout) -> Any:
    kernels = layout.kernels
    value = blocks.column(value, name)
    value = blocks.convolve(value, layout.first_filters, kernels.first, kernels.first_stride, f"{name}_first")
    return blocks.convolve(value, layout.second_filters, kernels.second, kernels.second_stride, f"{name}_second")


def _vector_branch(blocks: Blocks, name: str, value: Any, layout: NetworkLayout) -> Any:
    return blocks.dense(value, layout.hidden[0] // 2, f"{name}_first")


def hidden_layers(blocks: Blocks, value: Any, layout: NetworkLayout, suffix: str = "") -> Any:
    """Return `value` behind the dense layers of a layout, each with its dropout; `suffix` ends their names."""
    for number, units in enumerate(layout.hidden):
        name = f"{number}{suffix}"
        value = blocks.drop(blocks.dense(value, units, f"hidden_{name}"), layout.dropout / (1 + number), f"drop_{name}")
    return value


def clipped(value: Any, scaling: Scaling) -> Any:
    """Return an input held within its bounds."""
    low, high = scaling.bounds(value.name)
    return keras.layers.Lambda(
        lambda x: tf.minimum(tf.maximum(x, low), high), output_shape=tuple(value.shape[1:]), name=f"{value.name}_clip"
    )(value)


def fold_weights(
    network: Any,
    shipped: Any,
    scaling: Scaling,
    *,
    enter: Mapping[str, str],
    leave: Mapping[str, str] = NOTHING,
    made: Mapping[str, tuple[Any, Any]] = NO_WEIGHTS,
) -> None:
    """Give the layers of a network to ship the weights of the trained ones of their names.

    `enter` names the layers that take an input as it comes, `leave` those that give one as it was: the scaling of that
    input is folded into them. `made` holds kernel and bias of layers that no trained one stands for.
    """
    for layer in shipped.layers:
        if not layer.get_weights():
            continue
        if layer.name in made:
            kernel, bias = made[layer.name]
        elif isinstance(trained := network.get_layer(layer.name), Convolution):
            kernel, bias = trained.folded()
        else:
            kernel, bias = (weights.astype(np.float64) for weights in trained.get_weights())
        if layer.name in enter:
            name = enter[layer.name]
            kernel, bias = _fold_entering(kernel, bias, scaling.mean[name], scaling.spread[name])
        if layer.name in leave:
            name = leave[layer.name]
            mean, spread = (
                np.tile(values, len(bias) // len(values)) for values in (scaling.mean[name], scaling.spread[name])
            )
            kernel, bias = kernel * spread, bias * spread + mean
        layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])


def _fold_entering(kernel: Any, bias: Any, mean: Any, spread: Any) -> tuple[Any, Any]:
    # Exact because nothing is padded: every output sees `kernel` whole samples, whose channels vary fastest.
    samples = kernel.reshape(-1, len(mean), kernel.shape[-1]) / spread[:, None].astype(np.float64)
    return samples.reshape(kernel.shape), bias - (samples * mean[:, None].astype(np.float64)).sum((0, 1))


def run_network(network: Any, values: Samples) -> Samples:
    """Return what a Keras model with one input and one output makes of values [n, ...]."""
    pieces = [np.asarray(network(values[at : at + 256], training=False)) for at in range(0, len(values), 256)]
    return np.concatenate(pieces)
