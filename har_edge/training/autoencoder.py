"""Autoencoders: a window through K numbers and back, one for each source, all trained at once.

`ae` is dense (Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313, 2006);
`cae` begins with the convolutions of the classifier and ends with their mirror image (Masci et al., "Stacked
convolutional auto-encoders for hierarchical feature extraction", ICANN 2011). The K numbers are a tanh, which int8
holds in steps of 1/128, and noise of that size is added in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from har_edge.data.recording import Samples
from har_edge.training.export import convert_int8
from har_edge.training.flatbuffer import unscale_output
from har_edge.training.layers import Noise
from har_edge.training.loop import Piece, Schedule, parts, train, whole_batches
from har_edge.training.network import Blocks, InputSpec, fit_kernels, fold_weights, run_network
from har_edge.training.scaling import Scaling, ValueRange, measure_values

# The range of a tanh in int8, whatever values were seen.
CODE_SCALE = 1 / 128
CODE_RANGE = ValueRange.of_code(CODE_SCALE, 0)


@dataclass(frozen=True, slots=True)
class AutoencoderRecipe:
    """How autoencoders are trained. `ranges` gives the int8 range of each source where it is known."""

    seed: int = 0
    epochs: int = 12
    batch: int = 64
    rate: float = 2e-3
    hidden: int = 64
    filters: int = 16
    ranges: Mapping[str, ValueRange | None] | None = None


@dataclass(frozen=True, slots=True)
class Autoencoders:
    """The blueprint: scaled windows of each source in, the same windows out, side by side."""

    method: str
    size: int
    input_specs: tuple[InputSpec, ...]
    hidden: int
    filters: int

    @property
    def target(self) -> tuple[int, ...]:
        return (sum(int(np.prod(spec.shape)) for spec in self.input_specs),)

    def build(self) -> Any:
        inputs = [keras.Input(spec.shape, name=spec.name) for spec in self.input_specs]
        blocks, rows = Blocks(training=True), []
        for spec, value in zip(self.input_specs, inputs, strict=True):
            code = Noise(CODE_SCALE / 2, f"{spec.name}_noise")(self.encode(blocks, spec, value))
            back = self.decode(blocks, spec, code)
            rows.append(blocks.reshape(back, (int(np.prod(spec.shape)),), f"{spec.name}_row"))
        return keras.Model(inputs, blocks.join(rows, "windows"))

    def loss(self, targets: Any, outputs: Any) -> Any:
        return tf.reduce_mean(tf.square(targets - outputs))

    def encode(self, blocks: Blocks, spec: InputSpec, value: Any) -> Any:
        """Return the code [n, size]."""
        name, kernels = spec.name, fit_kernels(spec.shape[0])
        if self.method == "ae":
            value = blocks.reshape(value, (int(np.prod(spec.shape)),), f"{name}_flat")
            value = blocks.dense(value, self.hidden, f"{name}_first")
        else:
            value = blocks.column(value, name)
            value = blocks.convolve(value, self.filters, kernels.first, kernels.first_stride, f"{name}_first")
            value = blocks.convolve(value, self.filters, kernels.second, kernels.second_stride, f"{name}_second")
            value = blocks.reshape(value, (int(np.prod(value.shape[1:])),), f"{name}_flat")
        return blocks.squeeze(value, self.size, f"{name}_code")

    def decode(self, blocks: Blocks, spec: InputSpec, value: Any) -> Any:
        """Return windows [n, L, C]."""
        name, (length, channels) = spec.name, spec.shape
        if self.method == "ae":
            value = blocks.dense(value, self.hidden, f"{name}_back")
            value = blocks.dense(value, length * channels, f"{name}_last", None)
            return blocks.reshape(value, (length, channels), f"{name}_window")
        stride = fit_kernels(length).first_stride
        frames = -(-length // stride)
        value = blocks.dense(value, frames * self.filters, f"{name}_back")
        value = blocks.reshape(value, (frames, 1, self.filters), f"{name}_frames")
        value = keras.layers.Conv2D(2 * self.filters, (3, 1), padding="same", activation="relu", name=f"{name}_blur")(
            value
        )
        value = keras.layers.Conv2D(stride * channels, (1, 1), name=f"{name}_last")(value)
        value = blocks.reshape(value, (frames * stride, channels), f"{name}_window")
        if frames * stride == length:
            return value
        return keras.layers.Lambda(lambda x: x[:, :length], output_shape=spec.shape, name=f"{name}_cut")(value)


def fit_autoencoders(
    method: str, size: int, windows: Mapping[str, Samples], recipe: AutoencoderRecipe
) -> dict[str, tuple[bytes, bytes]]:
    """Train an autoencoder for the windows [n, L, C] of each source; return encoder and decoder, full int8 .tflite."""
    input_specs = tuple(InputSpec(source, values.shape[1:]) for source, values in windows.items())
    blueprint = Autoencoders(method, size, input_specs, recipe.hidden, recipe.filters)
    scaling = Scaling({}, {}, {})
    for source, values in windows.items():
        scaling = scaling.merged(measure_values(source, values, (recipe.ranges or {}).get(source)))
    count = len(next(iter(windows.values())))
    steps = -(-count // recipe.batch) * recipe.epochs
    network = train(
        blueprint, _epochs(windows, scaling, recipe), Schedule(steps, recipe.batch, recipe.rate), recipe.seed
    )
    return {spec.name: _export(blueprint, network, spec, scaling, windows[spec.name]) for spec in input_specs}


def _epochs(windows: Mapping[str, Samples], scaling: Scaling, recipe: AutoencoderRecipe) -> Iterator[Iterator[Piece]]:
    random = np.random.default_rng(recipe.seed)
    count = len(next(iter(windows.values())))

    def pieces(order: Any) -> Iterator[Piece]:
        for part in parts(len(order), recipe.batch):
            chosen = {source: values[order[part]] for source, values in windows.items()}
            inputs = list(scaling.apply(chosen).values())
            yield Piece(inputs, np.concatenate([values.reshape(len(values), -1) for values in inputs], 1))

    for _ in range(recipe.epochs):
        yield pieces(whole_batches(count, recipe.batch, random))


def _export(
    blueprint: Autoencoders, network: Any, spec: InputSpec, scaling: Scaling, windows: Samples
) -> tuple[bytes, bytes]:
    name, blocks = spec.name, Blocks(training=False)
    window, code = keras.Input(spec.shape, name=name), keras.Input((blueprint.size,), name="code")
    own = Scaling({name: scaling.mean[name]}, {name: scaling.spread[name]}, {name: scaling.ranges[name]})
    encoder = keras.Model(window, blueprint.encode(blocks, spec, window))
    decoder = keras.Model(code, blueprint.decode(blocks, spec, code))
    folds = scaling.ranges[name] is not None
    fold_weights(network, encoder, own, enter={f"{name}_first": name} if folds else {})
    fold_weights(network, decoder, own, enter={}, leave={f"{name}_last": name} if folds else {})
    encoded = run_network(encoder, own.clip(name, windows) if folds else own.apply({name: windows})[name])
    codes = Scaling({}, {}, {"code": CODE_RANGE})
    decoding = convert_int8(decoder, codes, {"code": encoded})
    if not folds:
        decoding = unscale_output(decoding, scaling.mean[name], scaling.spread[name])
    return convert_int8(encoder, own, {name: windows}), decoding
