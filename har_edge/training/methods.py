"""How a system is trained: one class for each kind of variant, each with one method, `fit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
import numpy as np

from har_edge.codecs.reducer import Reducer
from har_edge.codecs.spec import MethodSpec, parse_spec
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError
from har_edge.evaluation.study import System
from har_edge.training.bottleneck import (
    DROPOUT,
    SIZE,
    Bottleneck,
    FittedBottleneck,
    bottleneck_inputs,
    code_name,
    fit_linear_head,
    member_sizes,
)
from har_edge.training.codec import FittedReducer, encode_windows
from har_edge.training.context import TrainingContext, files_of
from har_edge.training.export import export_float, export_int8
from har_edge.training.fit import (
    Fitted,
    Network,
    array_passes,
    fit_network,
    schedule,
    window_inputs,
    window_passes,
)
from har_edge.training.loop import train
from har_edge.training.magnitude import measure_magnitudes
from har_edge.training.network import InputSpec, fit_layout
from har_edge.training.scaling import Scaling, ValueRange, measure_values

BOTTLENECK = "bottleneck"


class TrainingMethod(Protocol):
    """A way to train the system of a variant."""

    def fit(self) -> System:
        """Return a system that can be deployed."""


@dataclass(frozen=True, slots=True)
class EarlyFusion:
    """A network on windows without reduction, whose sources meet early, so that int8 loses little."""

    context: TrainingContext

    def fit(self) -> System:
        """Return the int8 system."""
        return self.fit_each_precision()["int8"]

    def fit_each_precision(self) -> dict[str, System]:
        """Return the system in each precision, from one training."""
        context = self.context
        fitted = fit_network(
            context.training, context.description, context.label_ids, context.length, context.recipe, context.progress
        )
        models = {"float": export_float(fitted), "int8": export_int8(fitted, context.calibration())}
        return {precision: context.system(model, {}) for precision, model in models.items()}


@dataclass(frozen=True, slots=True)
class LateFusion:
    """The network of the bottleneck in one piece, float32, on windows without reduction."""

    context: TrainingContext

    def fit(self) -> System:
        """Return the float32 system; its magnitudes would lose too much in int8."""
        return self.context.system(fit_bottleneck(self.context, SIZE).export_whole(), {})


@dataclass(frozen=True, slots=True)
class RestoredWindows:
    """The unreduced system with other reducers, fitted to windows where they need it."""

    context: TrainingContext
    unreduced: System | None

    def fit(self) -> System:
        """Return the system; raise ConfigError where nothing restores windows, or no unreduced system came."""
        context, variant = self.context, self.context.variant
        if is_bottleneck(variant.reducer):
            raise ConfigError(f"{variant}: nothing restores windows from a bottleneck; expected codes")
        if self.unreduced is None:
            raise ConfigError(f"{variant}: no unreduced system came; restored windows enter the model of that one")
        fitted = context.fit_codecs()
        if not all(reducer.restores for reducer in context.open_reducers(fitted).values()):
            raise ConfigError(f"{variant}: nothing restores windows from these codes; expected codes")
        known = self.unreduced.task.inputs
        inputs = {source: reducer.enters(known[source].tensor) for source, reducer in fitted.items()}
        task = msgspec.structs.replace(self.unreduced.task, inputs=inputs)
        return System(task, self.unreduced.model, files_of(fitted))


@dataclass(frozen=True, slots=True)
class CodeClassifier:
    """A network on what the reducers make of windows."""

    context: TrainingContext

    def fit(self) -> System:
        """Return the system.

        In float32, features with a time axis in the units of their source enter the network of the bottleneck.
        """
        context, variant = self.context, self.context.variant
        reducers = context.fit_codecs()
        opened = context.open_reducers(reducers)
        if variant.precision == "float" and all(self._is_in_units(source, opened) for source in opened):
            return context.system(fit_bottleneck(context, SIZE, opened).export_whole(), reducers)
        fitted = self._fit_features(opened)
        if variant.precision == "float":
            return context.system(export_float(fitted), reducers)
        return context.system(export_int8(fitted, encode_windows(opened, context.calibration())), reducers)

    def _is_in_units(self, source: str, reducers: Mapping[str, Reducer]) -> bool:
        """Return whether features have a time axis and the channels of their source, as the means of pieces have."""
        shape = reducers[source].feature_shape
        return len(shape) == 2 and shape[1] == len(self.context.description.source(source).channels)

    def _fit_features(self, reducers: Mapping[str, Reducer]) -> Fitted:
        """Train a network on features of changed windows, each of some passes encoded once and met several times."""
        context, recipe = self.context, self.context.recipe
        pool, raw = context.pool(), context.scaling()
        encoded = list(context.encoded_passes(pool, reducers, raw))
        scaling = Scaling({}, {}, {})
        for source, reducer in reducers.items():
            values = np.concatenate([batch.samples[source] for batch in encoded])
            scaling = scaling.merged(feature_scaling(source, reducer, values, raw))
        input_specs = feature_inputs(reducers)
        layout = fit_layout(input_specs, len(context.label_ids))
        epochs = array_passes(encoded, scaling.inputs, layout.classes, recipe)
        network = train(Network(input_specs, layout), epochs, schedule(pool, recipe), recipe.seed, context.progress)
        return Fitted(network, input_specs, layout, scaling)


@dataclass(frozen=True, slots=True)
class SupervisedBottleneck:
    """Encoders for the sensors and a head, trained as one; codings may follow the bottleneck."""

    context: TrainingContext

    def fit(self) -> System:
        """Return the system: the head is its model, the encoders are files of its reducers."""
        context = self.context
        first, *codings = parse_spec(context.variant.reducer)
        fitted = fit_bottleneck(context, _size(first))
        reducers = {}
        for source, encoder in fitted.export_encoders().items():
            name = f"{context.stem}-{source}.tflite"
            spec = "+".join((f"{BOTTLENECK}:{name}", *map(str, codings)))
            reducers[source] = FittedReducer(spec, {name: encoder})
        head = fitted.export_head(context.calibration(), int8=context.variant.precision == "int8")
        inputs = {source: reducer.enters(code_name(source)) for source, reducer in reducers.items()}
        return System(context.task(inputs), head, files_of(reducers))


def fit_bottleneck(
    context: TrainingContext, size: int, reducers: Mapping[str, Reducer] | None = None
) -> FittedBottleneck:
    """Train encoders and head as one, on windows, or on features in the units of their sources."""
    recipe = context.recipe
    pool, scaling = context.pool(), context.scaling()
    vectors = measure_magnitudes(context.training.recordings, context.description, scaling)
    prepare = bottleneck_inputs(scaling, vectors)
    classes = len(context.label_ids)
    if reducers is None:
        input_specs = window_inputs(context.description, context.length)
        epochs = window_passes(pool, context.augmenter(), scaling, prepare, classes, recipe)
    else:
        input_specs = feature_inputs(reducers)
        encoded = list(context.encoded_passes(pool, reducers, scaling))
        epochs = array_passes(encoded, prepare, classes, recipe)
    medians = tuple(len(vectors.triads[spec.name]) for spec in input_specs)
    layout = replace(fit_layout(input_specs, classes), dropout=DROPOUT)
    statistics = tuple(vectors.counts(spec.name)[1] for spec in input_specs)
    blueprint = Bottleneck(input_specs, medians, statistics, layout, member_sizes(size))
    network = train(blueprint, epochs, schedule(pool, recipe), recipe.seed, context.progress)
    batch = pool.draw().batch()
    samples = batch.samples if reducers is None else encode_windows(reducers, batch.samples)
    linear_head = fit_linear_head([vectors.statistics(name, samples[name], scaling) for name in samples], batch.classes)
    return FittedBottleneck(blueprint, network, scaling, vectors, linear_head)


def is_bottleneck(spec: str) -> bool:
    """Return whether a specification asks for the supervised bottleneck.

    Raise ConfigError where it stands behind another method.
    """
    methods = [part.method for part in parse_spec(spec) if part.is_recipe or part.method != BOTTLENECK]
    if BOTTLENECK in methods[1:]:
        raise ConfigError(f"reducer {spec!r}: {BOTTLENECK} takes windows as they are; expected it as the first method")
    return methods[:1] == [BOTTLENECK]


def feature_scaling(source: str, reducer: Reducer, features: Samples, raw: Scaling) -> Scaling:
    """Return the scaling of the features [n, ...] of one source.

    Features with time and the channels of the source are in its units and are scaled as windows are; integer codes
    enter as they are; anything else is measured.
    """
    if features.ndim == 3 and features.shape[2] == len(raw.mean[source]):
        return Scaling({source: raw.mean[source]}, {source: raw.spread[source]}, {source: raw.ranges[source]})
    span = None
    if reducer.code_dtype == "int8" and reducer.code_scale > 0 and reducer.code_shape == reducer.feature_shape:
        span = ValueRange.of_code(reducer.code_scale, reducer.code_zero)
    return measure_values(source, features, span)


def feature_inputs(reducers: Mapping[str, Reducer]) -> tuple[InputSpec, ...]:
    """Return the inputs of a network that takes features."""
    return tuple(InputSpec(source, reducer.feature_shape) for source, reducer in reducers.items())


def _size(part: MethodSpec) -> int:
    if not part.is_recipe or len(part.options) != 1:
        raise ConfigError(f"reducer {part}: expected {BOTTLENECK}:K, with K values a source")
    return int(part.options[0])
