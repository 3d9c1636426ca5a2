"""Whole systems, fitted for a study or to be shipped: the model, its reducers, and the task that joins them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from har_edge.codecs.reducer import Reducer
from har_edge.codecs.spec import Part, parse_spec
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup
from har_edge.data.recording import Samples
from har_edge.data.windows import default_window
from har_edge.errors import ConfigError
from har_edge.evaluation.study import NO_REDUCTION, Downstream, System, Training, Variant
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.training.augmentation import Augmenter
from har_edge.training.autoencoder import AutoencoderRecipe
from har_edge.training.bottleneck import (
    DROPOUT,
    SIZE,
    Bottleneck,
    FittedBottleneck,
    bottleneck_inputs,
    code_name,
    fit_linear,
    member_sizes,
)
from har_edge.training.codec import FittedReducer, encode_windows, fit_reducers
from har_edge.training.dataset import Batch, WindowPool
from har_edge.training.export import export_float, export_int8
from har_edge.training.fit import (
    Fitted,
    Network,
    Recipe,
    Say,
    array_passes,
    fit_network,
    schedule,
    silent,
    window_entrances,
    window_passes,
)
from har_edge.training.loop import parts, train
from har_edge.training.magnitude import measure_magnitudes
from har_edge.training.network import Entrance, fit_layout
from har_edge.training.scaling import Range, Scaling, measure_scaling, measure_values

BOTTLENECK = "bottleneck"
PRECISIONS = ("float", "int8")


class SystemTrainer:
    """Fits systems for one data set; the same variant, training and seed give the same bytes."""

    def __init__(
        self, description: StreamDescription, recipe: Recipe, *, stem: str = "har", progress: Say = silent
    ) -> None:
        """Take the description as the data set has it, ungrouped; files of reducers are named after `stem`."""
        self._description = description
        self._recipe = recipe
        self._stem = stem
        self._progress = progress

    def fit(self, variant: Variant, training: Training, seed: int, unreduced: System | None) -> System:
        """Return a system that can be deployed; see evaluation/study.py.

        Raises ConfigError for a variant that cannot be, DataError where a class has no training window.
        """
        if variant.precision not in PRECISIONS:
            raise ConfigError(f"precision is {variant.precision!r}; expected one of {', '.join(PRECISIONS)}")
        job = self._job(variant, training, seed)
        if variant.reducer == NO_REDUCTION:
            return job.on_windows()
        if variant.downstream is Downstream.RESTORE:
            return job.restored(unreduced)
        return job.bottleneck() if is_bottleneck(variant.reducer) else job.on_codes()

    def fit_early(self, grouping: str, training: Training, seed: int) -> dict[str, System]:
        """Return the network of early fusion, without reduction, in each precision, from one training."""
        return self._job(Variant(NO_REDUCTION, Downstream.CODES, grouping), training, seed).early()

    def _job(self, variant: Variant, training: Training, seed: int) -> _Job:
        return _Job(self._description, variant, training, replace(self._recipe, seed=seed), self._stem, self._progress)


def is_bottleneck(spec: str) -> bool:
    """Tell whether a specification asks for the supervised bottleneck; ConfigError where it does so behind another."""
    methods = [part.method for part in parse_spec(spec) if part.is_recipe or part.method != BOTTLENECK]
    if BOTTLENECK in methods[1:]:
        raise ConfigError(f"reducer {spec!r}: {BOTTLENECK} takes windows as they are; expected it as the first method")
    return methods[:1] == [BOTTLENECK]


@dataclass(frozen=True, slots=True)
class _Job:
    """One variant on one set of training windows."""

    full: StreamDescription
    variant: Variant
    training: Training
    recipe: Recipe
    stem: str
    progress: Say

    @property
    def description(self) -> StreamDescription:
        return regroup(self.full, self.variant.grouping)

    @property
    def label_ids(self) -> list[int]:
        return [label for label in range(len(self.full.labels)) if label != self.full.null_label]

    @property
    def labels(self) -> list[str]:
        return [self.full.labels[label] for label in self.label_ids]

    @property
    def length(self) -> int:
        return default_window(self.full.rate_hz)[0]

    def pool(self, windows_a_length: int) -> WindowPool:
        return WindowPool(
            self.training.recordings,
            self.length,
            self.label_ids,
            windows_a_length=windows_a_length,
            chosen=self.training.chosen,
        )

    def augmenter(self) -> Augmenter:
        return Augmenter(self.description, self.labels, self.recipe.augmentation)

    def scaling(self) -> Scaling:
        return measure_scaling(self.training.recordings, self.description)

    def calibration(self) -> Mapping[str, Samples]:
        return self.pool(2).draw().batch().samples

    def task(self, inputs: Mapping[str, SourceInput]) -> Task:
        """Return what the system is for."""
        length, hop = default_window(self.full.rate_hz)
        return Task(
            stream=StreamTask(self.full.name, self.full.rate_hz, length, hop, self.variant.grouping),
            inputs=dict(inputs),
            output="activity",
            labels=self.labels,
            label_ids=self.label_ids,
        )

    def restored(self, unreduced: System | None) -> System:
        """Return the unreduced system with other reducers, fitted to windows where they need it."""
        if is_bottleneck(self.variant.reducer):
            raise ConfigError(f"{self.variant}: nothing restores windows from a bottleneck; expected codes")
        if unreduced is None:
            raise ConfigError(f"{self.variant}: no unreduced system came; restored windows enter the model of that one")
        fitted = self.fit_codecs()
        inputs = {}
        for source in self.description.sources:
            reducer = fitted[source.name].open(self.length, len(source.channels))
            if not reducer.restores:
                raise ConfigError(f"{self.variant}: nothing restores windows from these codes; expected codes")
            inputs[source.name] = fitted[source.name].enters(unreduced.task.inputs[source.name].tensor)
        task = msgspec.structs.replace(unreduced.task, inputs=inputs)
        return System(task, unreduced.model, _files(fitted))

    def on_windows(self) -> System:
        """Train a network without reduction.

        In float32 it is that of the bottleneck, in one piece. Magnitudes lose too much in int8, so there sources meet
        early, and each window is quantised to what the model takes.
        """
        if self.variant.precision == "float":
            return self.system(self.fit_bottleneck(SIZE).export_whole(), {})
        return self.early()["int8"]

    def early(self) -> dict[str, System]:
        """Train the network of early fusion on windows; return its system in each precision."""
        fitted = fit_network(self.training, self.description, self.label_ids, self.length, self.recipe, self.progress)
        models = {"float": export_float(fitted), "int8": export_int8(fitted, self.calibration())}
        return {precision: self.system(model, {}) for precision, model in models.items()}

    def on_codes(self) -> System:
        """Train a network on what the reducers make of windows."""
        reducers = self.fit_codecs()
        opened = {
            source.name: reducers[source.name].open(self.length, len(source.channels))
            for source in self.description.sources
        }
        if self.variant.precision == "float" and all(self.is_in_units(source, opened) for source in opened):
            return self.system(self.fit_bottleneck(SIZE, opened).export_whole(), reducers)
        fitted = self.on_features(opened)
        if self.variant.precision == "float":
            return self.system(export_float(fitted), reducers)
        return self.system(export_int8(fitted, encode_windows(opened, self.calibration())), reducers)

    def is_in_units(self, source: str, reducers: Mapping[str, Reducer]) -> bool:
        """Tell whether features have a time axis and the channels of their source, as pieces' means have."""
        shape = reducers[source].feature_shape
        return len(shape) == 2 and shape[1] == len(self.description.source(source).channels)

    def system(self, model: bytes, reducers: Mapping[str, FittedReducer]) -> System:
        """Return the system of a model that takes codes, or windows where there are no reducers."""
        if not reducers:
            reducers = {port.name: FittedReducer(port_reducer(port), {}) for port in Interpreter(model).inputs}
        inputs = {source.name: reducers[source.name].enters(source.name) for source in self.description.sources}
        return System(self.task(inputs), model, _files(reducers))

    def on_features(self, reducers: Mapping[str, Reducer]) -> Fitted:
        """Train a network on features of changed windows, each of some passes encoded once and met several times."""
        pool, raw = self.pool(self.recipe.windows_a_length), self.scaling()
        encoded = list(self.encoded_passes(pool, reducers, raw))
        scaling = Scaling({}, {}, {})
        for source, reducer in reducers.items():
            values = np.concatenate([batch.samples[source] for batch in encoded])
            scaling = scaling.merged(feature_scaling(source, reducer, values, raw))
        entrances = feature_entrances(reducers)
        layout = fit_layout(entrances, len(self.label_ids))
        epochs = array_passes(encoded, scaling.inputs, layout.classes, self.recipe)
        network = train(
            Network(entrances, layout), epochs, schedule(pool, self.recipe), self.recipe.seed, self.progress
        )
        return Fitted(network, entrances, layout, scaling)

    def fit_bottleneck(self, size: int, reducers: Mapping[str, Reducer] | None = None) -> FittedBottleneck:
        """Train encoders and head as one, on windows or on features in their units."""
        pool, scaling = self.pool(self.recipe.windows_a_length), self.scaling()
        vectors = measure_magnitudes(self.training.recordings, self.description, scaling)
        prepare = bottleneck_inputs(scaling, vectors)
        classes = len(self.label_ids)
        if reducers is None:
            entrances = window_entrances(self.description, self.length)
            epochs = window_passes(pool, self.augmenter(), scaling, prepare, classes, self.recipe)
        else:
            entrances = feature_entrances(reducers)
            encoded = list(self.encoded_passes(pool, reducers, scaling))
            epochs = array_passes(encoded, prepare, classes, self.recipe)
        medians = tuple(len(vectors.triads[entrance.name]) for entrance in entrances)
        layout = replace(fit_layout(entrances, classes), dropout=DROPOUT)
        statistics = tuple(vectors.counts(entrance.name)[1] for entrance in entrances)
        blueprint = Bottleneck(entrances, medians, statistics, layout, member_sizes(size))
        network = train(blueprint, epochs, schedule(pool, self.recipe), self.recipe.seed, self.progress)
        batch = pool.draw().batch()
        samples = batch.samples if reducers is None else encode_windows(reducers, batch.samples)
        steady = fit_linear([vectors.steady(name, samples[name], scaling) for name in samples], batch.classes)
        return FittedBottleneck(blueprint, network, scaling, vectors, steady)

    def encoded_passes(self, pool: WindowPool, reducers: Mapping[str, Reducer], raw: Scaling) -> Iterator[Batch]:
        """Yield passes over the training windows, changed and encoded."""
        random, augmenter = np.random.default_rng(self.recipe.seed), self.augmenter()
        for _ in range(min(self.recipe.encoded_passes, self.recipe.epochs)):
            draw = pool.draw(int(random.integers(pool.phases)))
            pieces = [
                encode_windows(reducers, augmenter.change(draw.take(part), raw, random).samples)
                for part in parts(len(draw), self.recipe.batch)
            ]
            yield Batch(_concatenate(pieces), draw.classes)

    def bottleneck(self) -> System:
        """Train encoders and head as one; what stands behind the bottleneck codes what the encoders make."""
        first, *codings = parse_spec(self.variant.reducer)
        fitted = self.fit_bottleneck(_size(first))
        reducers = {}
        for source, encoder in fitted.export_encoders().items():
            name = f"{self.stem}-{source}.tflite"
            spec = "+".join((f"{BOTTLENECK}:{name}", *map(str, codings)))
            reducers[source] = FittedReducer(spec, {name: encoder})
        head = fitted.export_head(self.calibration(), int8=self.variant.precision == "int8")
        inputs = {source: reducer.enters(code_name(source)) for source, reducer in reducers.items()}
        return System(self.task(inputs), head, _files(reducers))

    def fit_codecs(self) -> dict[str, FittedReducer]:
        """Fit the reducers of all sources to training windows, as they are and changed."""
        windows: Mapping[str, Samples] = {}
        if any(part.is_recipe for part in parse_spec(self.variant.reducer)):
            windows = self.codec_windows()
        names = windows or {source.name: np.empty((0, 1, 1), np.float32) for source in self.description.sources}
        recipe = AutoencoderRecipe(self.recipe.seed, min(self.recipe.epochs, 12), ranges=self.scaling().ranges)
        return fit_reducers(self.variant.reducer, names, recipe, self.stem)

    def codec_windows(self) -> Mapping[str, Samples]:
        pool, random = self.pool(self.recipe.windows_a_length), np.random.default_rng(self.recipe.seed)
        draw, augmenter, scaling = pool.draw(), self.augmenter(), self.scaling()
        changed = [augmenter.change(draw.take(part), scaling, random).samples for part in parts(len(draw), 64)]
        return _concatenate([draw.batch().samples, *changed])


def feature_scaling(source: str, reducer: Reducer, features: Samples, raw: Scaling) -> Scaling:
    """Return the scaling of the features [n, ...] of one source.

    Features with time and the channels of the source are in its units and are scaled as windows are; integer codes
    enter as they are; anything else is measured.
    """
    if features.ndim == 3 and features.shape[2] == len(raw.mean[source]):
        return Scaling({source: raw.mean[source]}, {source: raw.spread[source]}, {source: raw.ranges[source]})
    span = None
    if reducer.code_dtype == "int8" and reducer.code_scale > 0 and reducer.code_shape == reducer.feature_shape:
        span = Range.of_code(reducer.code_scale, reducer.code_zero)
    return measure_values(source, features, span)


def feature_entrances(reducers: Mapping[str, Reducer]) -> tuple[Entrance, ...]:
    """Return what enters where a network takes features."""
    return tuple(Entrance(source, reducer.feature_shape) for source, reducer in reducers.items())


def port_reducer(port: Port) -> str:
    """Return the reducer whose code is what a model takes for windows, as it is."""
    return f"q8:{port.scale!r}:{port.zero_point}" if port.dtype == np.int8 else NO_REDUCTION


def _size(part: Part) -> int:
    if not part.is_recipe or len(part.options) != 1:
        raise ConfigError(f"reducer {part}: expected {BOTTLENECK}:K, with K values a source")
    return int(part.options[0])


def _files(reducers: Mapping[str, FittedReducer]) -> dict[str, bytes]:
    return {name: content for reducer in reducers.values() for name, content in reducer.files.items()}


def _concatenate(pieces: Sequence[Mapping[str, Samples]]) -> dict[str, Samples]:
    return {source: np.concatenate([piece[source] for piece in pieces]) for source in pieces[0]}
