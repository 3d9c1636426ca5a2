"""The classifier whose sensors send a few numbers each, trained end to end: late fusion behind a bottleneck.

Each source has an encoder of its own: convolutions, mean and maximum over time, K values of a tanh, and the median of
each magnitude. The rest is dense: BottleNet++ (Shao and Zhang, ICC Workshops 2020) without its noisy channel. In
training whole codes are zeroed at random, so that zero means absent, and half of all tanh values of a code at once, so
that the medians alone must carry the answer too. As `bottleneck:K` encoders run at the sensors, in float32, and send
int8; as one float32 model the same network takes windows that are not reduced.

Several such networks are trained on the same windows and answer together (an ensemble: Hansen and Salamon, "Neural
network ensembles", IEEE TPAMI 12(10), 1990), since what one makes of a person it never saw depends much on where its
weights began. They share the K values of a code, and become one network to ship: its dense layers hold those of all
members as blocks, and its logits are their mean.

One more member sees nothing but robust statistics (training/magnitude.py), and is linear: multinomial logistic
regression. It is worse than the others, but mistaken about other people, so that all together are better.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from har_edge.data.recording import Samples
from har_edge.training.export import convert_float, convert_int8
from har_edge.training.fit import Prepare
from har_edge.training.flatbuffer import quantise_output
from har_edge.training.layers import Absence, SourceDropout
from har_edge.training.magnitude import MIDDLE, QUARTILES, REACH, USUAL_RANGE, Magnitudes, middle, rank
from har_edge.training.network import (
    Blocks,
    InputSpec,
    NetworkLayout,
    clipped,
    fold_weights,
    hidden_layers,
    run_network,
)
from har_edge.training.scaling import Scaling, ValueRange

CODE_SCALE = 1 / 127
CODE_RANGE = ValueRange.of_code(CODE_SCALE, 0)
# Values of a tanh that a source sends, where nobody asks for another number.
SIZE = 24
MEMBERS = 3
DROPOUT = 0.4
LINEAR_WEIGHT = 0.25  # the share of the linear head in the logits
SHRINKAGE = 0.1  # inverse strength of its regularisation (C of scikit-learn)
STEPS = 1000
# Files of models hold this name, so it stays: the same training gives the same bytes.
LINEAR_LAYER = "steady"


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The linear member: kernel [statistics of all sources, classes] and bias [classes], float64."""

    kernel: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]


def fit_linear_head(statistics: Sequence[Samples], classes: npt.NDArray[np.int64]) -> LinearHead | None:
    """Return the linear member from the statistics of training windows, source by source; None without any.

    Each window counts once as it is and once without each of several sources, so that zero means absent here too.
    """
    whole = [values.astype(np.float64) for values in statistics]
    absences = [None, *range(len(whole))] if len(whole) > 1 else [None]
    rows = np.concatenate(
        [np.hstack([values * (at != absent) for at, values in enumerate(whole)]) for absent in absences]
    )
    if not rows.shape[1]:
        return None
    spread = np.maximum(np.hstack(whole).std(0), 1e-6)
    with warnings.catch_warnings():
        # As many steps as there are; the last ones no longer change an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=SHRINKAGE, max_iter=STEPS).fit(rows / spread, np.tile(classes, len(absences)))
    kernel, bias = fitted.coef_.T / spread[:, None], fitted.intercept_
    if kernel.shape[1] == 1:  # of two classes, the second against the first
        kernel, bias = np.hstack([0 * kernel, kernel]), np.append(0.0, bias)
    return LinearHead(kernel, bias)


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The blueprint: scaled windows with magnitudes [n, L, C + M] and medians [n, M] of each source in, logits out.

    `medians` is M of each source, `statistics` the number of all its statistics, medians first, `sizes` the number of
    learned values of each member; `absent` is the share of windows that a source is missing from in training, `branch`
    that of codes without learned values. Logits are [n, members * classes], those of the first member first.
    """

    input_specs: tuple[InputSpec, ...]
    medians: tuple[int, ...]
    statistics: tuple[int, ...]
    layout: NetworkLayout
    sizes: tuple[int, ...]
    absent: float = 0.15
    branch: float = 0.5

    @property
    def target(self) -> tuple[int, ...]:
        return (self.layout.classes,)

    def build(self) -> Any:
        blocks, inputs = Blocks(training=True), []
        windows, medians = [], []
        for spec, count in zip(self.input_specs, self.medians, strict=True):
            length, channels = spec.shape
            windows.append(keras.Input((length, channels + count), name=spec.name))
            medians.append(keras.Input((count,), name=f"{spec.name}_medians") if count else None)
            inputs += [windows[-1], *([medians[-1]] if count else [])]
        logits = [self._member(blocks, member, windows, medians) for member in range(len(self.sizes))]
        return keras.Model(inputs, blocks.join(logits, "members"))

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Return the mean over windows of the sum over members."""
        logits = tf.reshape(outputs, (-1, len(self.sizes), self.layout.classes))
        targets = tf.broadcast_to(targets[:, None], tf.shape(logits))
        return len(self.sizes) * tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))

    def _member(self, blocks: Blocks, member: int, windows: Sequence[Any], medians: Sequence[Any]) -> Any:
        """Return the logits of one member, with a head of its own."""
        codes = []
        for window, median in zip(windows, medians, strict=True):
            name = f"{window.name}_{member}"
            code = self.encode(blocks, window.name, member, window)
            if median is not None:
                code = blocks.join([Absence(self.branch, f"{name}_branch")(code), median], f"{name}_code")
            codes.append(code)
        if len(codes) > 1:
            codes = SourceDropout(self.absent, f"absent_{member}")(codes)
        value = hidden_layers(blocks, blocks.join(codes, f"codes_{member}"), self.layout, f"_{member}")
        return blocks.dense(value, self.layout.classes, f"logits_{member}", None)

    def encode(self, blocks: Blocks, source: str, member: int, value: Any) -> Any:
        """Return a member's values [n, size] of a window; in a network to ship it is a column [n, L, 1, C + M]."""
        layout, kernels, name = self.layout, self.layout.kernels, f"{source}_{member}"
        value = blocks.convolve(value, layout.first_filters, kernels.first, kernels.first_stride, f"{name}_first")
        value = blocks.convolve(value, layout.second_filters, kernels.second, kernels.second_stride, f"{name}_second")
        value = blocks.drop(value, layout.dropout / 2, f"{name}_drop", spatial=True)
        value = blocks.convolve(value, layout.trunk_filters, kernels.third, 1, f"{name}_third")
        value = blocks.drop(blocks.pool(value, f"{name}_"), layout.dropout / 2, f"{name}_pooled_drop")
        return blocks.squeeze(value, self.sizes[member], f"{name}_learned")

    def head(self, blocks: Blocks, codes: Sequence[Any]) -> Any:
        """Return the mean logits of all members, from the codes of all sources."""
        together = replace(self.layout, hidden=tuple(len(self.sizes) * units for units in self.layout.hidden))
        code = blocks.join(codes, "codes")
        learned = blocks.dense(hidden_layers(blocks, code, together), self.layout.classes, "logits", None)
        if not any(self.statistics):
            return learned
        # First, since what it makes is smaller than the codes: less crosses a cut of the hidden layers.
        linear = blocks.dense(code, self.layout.classes, LINEAR_LAYER, None)
        return keras.layers.Add(name="sum")([linear, learned])

    def head_weights(self, network: Any, linear_head: LinearHead | None) -> dict[str, tuple[Any, Any]]:
        """Return kernel and bias of each dense layer of `head`, in float64, from those of the trained members.

        Every member takes its own values of each code and the medians, which all share.
        """
        members = range(len(self.sizes))
        names = [f"hidden_{number}" for number in range(len(self.layout.hidden))]
        made = {}
        rows, width = [self._rows(member) for member in members], self._width
        for name in names:
            kernels, biases = zip(*(_trained(network, f"{name}_{member}") for member in members), strict=True)
            made[name] = _blocks(kernels, rows, width), np.concatenate(biases)
            width = made[name][0].shape[1]
            stops = np.cumsum([len(bias) for bias in biases])
            rows = [np.arange(stop - len(bias), stop) for stop, bias in zip(stops, biases, strict=True)]
        kernels, biases = zip(*(_trained(network, f"logits_{member}") for member in members), strict=True)
        made["logits"] = np.concatenate(kernels) / len(members), np.mean(biases, 0)
        if linear_head is not None:
            kernel = np.zeros((self._width, self.layout.classes))
            kernel[self._rows(None)] = linear_head.kernel
            made["logits"] = made["logits"][0] * (1 - LINEAR_WEIGHT), made["logits"][1] * (1 - LINEAR_WEIGHT)
            made[LINEAR_LAYER] = kernel * LINEAR_WEIGHT, linear_head.bias * LINEAR_WEIGHT
        return made

    @property
    def _width(self) -> int:
        return sum(sum(self.sizes) + count for count in self.statistics)

    def _rows(self, member: int | None) -> npt.NDArray[np.int64]:
        """Return which of the values of all codes a member takes, in its order; for None all statistics."""
        rows: list[int] = []
        at = 0
        for medians, statistics in zip(self.medians, self.statistics, strict=True):
            after = at + sum(self.sizes)
            if member is None:
                rows += range(after, after + statistics)
            else:
                first = at + sum(self.sizes[:member])
                rows += [*range(first, first + self.sizes[member]), *range(after, after + medians)]
            at = after + statistics
        return np.array(rows)


def member_sizes(size: int, members: int = MEMBERS) -> tuple[int, ...]:
    """Return how many of `size` learned values each member has; there are no more members than values."""
    members = min(members, size)
    return tuple(size // members + (member < size % members) for member in range(members))


def _trained(network: Any, name: str) -> tuple[Any, Any]:
    kernel, bias = network.get_layer(name).get_weights()
    return kernel.astype(np.float64), bias.astype(np.float64)


def _blocks(kernels: Sequence[Any], rows: Sequence[npt.NDArray[np.int64]], height: int) -> Any:
    """Return one kernel with those of all members side by side, each over the rows it takes, zero elsewhere."""
    whole = np.zeros((height, sum(kernel.shape[1] for kernel in kernels)))
    left = 0
    for kernel, taken in zip(kernels, rows, strict=True):
        whole[taken, left : left + kernel.shape[1]] = kernel
        left += kernel.shape[1]
    return whole


def code_name(source: str) -> str:
    """Return the name of the tensor with the code of a source."""
    return f"{source}_code"


@dataclass(frozen=True, slots=True)
class FittedBottleneck:
    """A trained bottleneck, with the scaling of its training data."""

    blueprint: Bottleneck
    network: Any
    scaling: Scaling
    magnitudes: Magnitudes
    linear_head: LinearHead | None

    def export_whole(self) -> bytes:
        """Return encoders and head as one float32 .tflite: physical units in, probabilities out."""
        blocks, inputs = Blocks(training=False), self._inputs()
        codes = [self._code(blocks, value) for value in inputs]
        return convert_float(self._filled(keras.Model(inputs, _activity(self.blueprint.head(blocks, codes)))))

    def export_encoders(self) -> dict[str, bytes]:
        """Return the encoder of each source: float32 in physical units in, an int8 code out."""
        made = {name: convert_float(model) for name, model in self._encoders().items()}
        return {name: quantise_output(model, CODE_SCALE, 0) for name, model in made.items()}

    def export_head(self, windows: Mapping[str, Samples], *, int8: bool) -> bytes:
        """Return the head, that takes the codes of all sources; calibrated on the codes of training windows."""
        codes = {code_name(name): run_network(model, windows[name]) for name, model in self._encoders().items()}
        inputs = [keras.Input(values.shape[1:], name=name) for name, values in codes.items()]
        head = self._filled(keras.Model(inputs, _activity(self.blueprint.head(Blocks(training=False), inputs))))
        ranges: dict[str, ValueRange | None] = dict.fromkeys(codes, CODE_RANGE)
        return convert_int8(head, Scaling({}, {}, ranges), codes) if int8 else convert_float(head)

    def _inputs(self) -> list[Any]:
        return [keras.Input(spec.shape, name=spec.name) for spec in self.blueprint.input_specs]

    def _encoders(self) -> dict[str, Any]:
        return {
            value.name: self._filled(keras.Model(value, self._code(Blocks(training=False), value)))
            for value in self._inputs()
        }

    def _code(self, blocks: Blocks, window: Any) -> Any:
        """Return the code of a window [n, L, C] in physical units."""
        name, triads = window.name, self.magnitudes.triads[window.name]
        column = blocks.column(clipped(window, self.scaling), name)
        if not triads:
            return blocks.rename(self._learned(blocks, name, column), code_name(name))
        length, channels = window.shape[1:]
        strength = _named(lambda x: _strength(x, triads), (length, 1, len(triads)), f"{name}_magnitude")(
            blocks.reshape(window, (length, 1, channels), f"{name}_raw")
        )
        statistics = _named(self._statistics(name), (self.magnitudes.counts(name)[1],), f"{name}_steady")(
            [strength, blocks.reshape(window, (length, 1, channels), f"{name}_whole")]
        )
        column = blocks.join([column, strength], f"{name}_channels")
        return blocks.join([self._learned(blocks, name, column), statistics], code_name(name))

    def _statistics(self, name: str) -> Any:
        """Return the function from magnitudes and windows, both columns, to the statistics that a code holds."""
        count, more, upright = len(self.magnitudes.triads[name]), self.magnitudes, list(self.magnitudes.upright[name])
        mean = np.concatenate([more.mean[name], self.scaling.mean[name][upright]])
        factor = 1 / (REACH * np.concatenate([more.spread[name], self.scaling.spread[name][upright]]))

        def compute(values: Sequence[Any]) -> Any:
            strength, window = values
            if upright:
                picks = np.eye(window.shape[-1], dtype=np.float32)[None, None, :, upright]
                strength = tf.concat([strength, tf.nn.conv2d(window, picks, 1, "VALID")], -1)
            length = strength.shape[1]
            rows = tf.reshape(tf.transpose(strength, (0, 3, 1, 2)), (-1, strength.shape[3], length))
            third, first = (rank(length, part) for part in QUARTILES)
            largest = tf.math.top_k(rows, first + 1).values
            middles = (largest[:, :, rank(length, MIDDLE)] - mean) * factor
            spans = (largest[:, :count, third] - largest[:, :count, first]) * factor[:count] - USUAL_RANGE / REACH
            return tf.clip_by_value(tf.concat([middles, spans], 1), -1.0, 1.0)

        return compute

    def _learned(self, blocks: Blocks, name: str, column: Any) -> Any:
        members = range(len(self.blueprint.sizes))
        return blocks.join(
            [self.blueprint.encode(blocks, name, member, column) for member in members], f"{name}_learned"
        )

    def _filled(self, model: Any) -> Any:
        """Return a model to ship with the trained weights, scaling folded in."""
        first = {
            f"{spec.name}_{member}_first": spec.name
            for spec in self.blueprint.input_specs
            for member in range(len(self.blueprint.sizes))
        }
        head = self.blueprint.head_weights(self.network, self.linear_head)
        fold_weights(self.network, model, self._extended(), enter=first, made=head)
        return model

    def _extended(self) -> Scaling:
        """Return the scaling of windows with magnitudes."""
        scaling, more = self.scaling, self.magnitudes
        return replace(
            scaling,
            mean={name: np.concatenate([mean, more.mean[name]]) for name, mean in scaling.mean.items()},
            spread={name: np.concatenate([spread, more.spread[name]]) for name, spread in scaling.spread.items()},
        )


def _activity(logits: Any) -> Any:
    return keras.layers.Softmax(name="activity")(logits)


def _named(function: Any, shape: tuple[int, ...], name: str) -> Any:
    return keras.layers.Lambda(function, output_shape=shape, name=name)


def _strength(column: Any, triads: Sequence[int]) -> Any:
    """Return the length of each vector of a column [n, L, 1, C], [n, L, 1, M]: a sum of squares as a convolution."""
    picks = np.zeros((1, 1, column.shape[-1], len(triads)), np.float32)
    for number, at in enumerate(triads):
        picks[0, 0, at : at + 3, number] = 1
    return tf.sqrt(tf.nn.conv2d(tf.square(column), picks, 1, "VALID"))


def bottleneck_inputs(scaling: Scaling, vectors: Magnitudes) -> Prepare:
    """Return what makes inputs of windows: scaled ones with magnitudes, and medians, source by source."""

    def prepare(samples: dict[str, Samples]) -> list[Samples]:
        inputs = []
        for name, windows in samples.items():
            strength = vectors.scaled(name, windows)
            inputs.append(vectors.extend(scaling.scale(name, windows, windows), strength))
            if vectors.triads[name]:
                inputs.append(middle(strength))
        return inputs

    return prepare
