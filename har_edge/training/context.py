"""The context of every method of training: one variant, its training windows, and measurements on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.codecs.reducer import Reducer
from har_edge.codecs.spec import parse_spec
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup
from har_edge.data.recording import Samples
from har_edge.data.windows import default_window
from har_edge.evaluation.study import NO_REDUCTION, System, Training, Variant
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.training.augmentation import Augmenter
from har_edge.training.autoencoder import AutoencoderRecipe
from har_edge.training.codec import FittedReducer, encode_windows, fit_reducers
from har_edge.training.dataset import Batch, WindowPool
from har_edge.training.fit import Progress, Recipe
from har_edge.training.loop import parts
from har_edge.training.scaling import Scaling, measure_scaling

# Autoencoders learn in fewer passes than classifiers.
AUTOENCODER_EPOCHS = 12


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """One variant on one set of training windows.

    `full` describes the data set as it is recorded, ungrouped. Files of reducers are named after `stem`.
    """

    full: StreamDescription
    variant: Variant
    training: Training
    recipe: Recipe
    stem: str
    progress: Progress

    @property
    def description(self) -> StreamDescription:
        """The description with the sources of the variant's grouping."""
        return regroup(self.full, self.variant.grouping)

    @property
    def label_ids(self) -> list[int]:
        """The labels that are classes: all but the null label."""
        return [label for label in range(len(self.full.labels)) if label != self.full.null_label]

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return [self.full.labels[label] for label in self.label_ids]

    @property
    def length(self) -> int:
        """The length of a window in samples."""
        return default_window(self.full.rate_hz)[0]

    def pool(self, windows_a_length: int | None = None) -> WindowPool:
        """Return the training windows; by default as many as the recipe draws from every length of one."""
        return WindowPool(
            self.training.recordings,
            self.length,
            self.label_ids,
            windows_a_length=windows_a_length or self.recipe.windows_a_length,
            chosen=self.training.chosen,
        )

    def augmenter(self) -> Augmenter:
        """Return what changes windows for training."""
        return Augmenter(self.description, self.labels, self.recipe.augmentation)

    def scaling(self) -> Scaling:
        """Return the scaling measured on the training recordings."""
        return measure_scaling(self.training.recordings, self.description)

    def calibration(self) -> Mapping[str, Samples]:
        """Return the windows [n, length, channels] of each source that int8 models are calibrated on."""
        return self.pool(2).draw().batch().samples

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

    def fit_codecs(self) -> dict[str, FittedReducer]:
        """Fit the reducers of all sources to training windows, as they are and changed."""
        windows: Mapping[str, Samples] = {}
        if any(part.is_recipe for part in parse_spec(self.variant.reducer)):
            windows = self._codec_windows()
        names = windows or {source.name: np.empty((0, 1, 1), np.float32) for source in self.description.sources}
        epochs = min(self.recipe.epochs, AUTOENCODER_EPOCHS)
        recipe = AutoencoderRecipe(self.recipe.seed, epochs, ranges=self.scaling().ranges)
        return fit_reducers(self.variant.reducer, names, recipe, self.stem)

    def _codec_windows(self) -> Mapping[str, Samples]:
        pool, random = self.pool(), np.random.default_rng(self.recipe.seed)
        draw, augmenter, scaling = pool.draw(), self.augmenter(), self.scaling()
        changed = [augmenter.change(draw.take(part), scaling, random).samples for part in parts(len(draw), 64)]
        return _concatenate([draw.batch().samples, *changed])

    def open_reducers(self, fitted: Mapping[str, FittedReducer]) -> dict[str, Reducer]:
        """Return fitted reducers, ready to encode windows."""
        return {
            source.name: fitted[source.name].open(self.length, len(source.channels))
            for source in self.description.sources
        }

    def task(self, inputs: Mapping[str, SourceInput]) -> Task:
        """Return the task of a system with these inputs."""
        length, hop = default_window(self.full.rate_hz)
        return Task(
            stream=StreamTask(self.full.name, self.full.rate_hz, length, hop, self.variant.grouping),
            inputs=dict(inputs),
            output="activity",
            labels=self.labels,
            label_ids=self.label_ids,
        )

    def system(self, model: bytes, reducers: Mapping[str, FittedReducer]) -> System:
        """Return the system of a model that takes codes, or windows where there are no reducers."""
        if not reducers:
            reducers = {port.name: FittedReducer(port_reducer(port), {}) for port in Interpreter(model).inputs}
        inputs = {source.name: reducers[source.name].enters(source.name) for source in self.description.sources}
        return System(self.task(inputs), model, files_of(reducers))


def port_reducer(port: Port) -> str:
    """Return the reducer whose code is what a model takes for windows, as it is."""
    return f"q8:{port.scale!r}:{port.zero_point}" if port.dtype == np.int8 else NO_REDUCTION


def files_of(reducers: Mapping[str, FittedReducer]) -> dict[str, bytes]:
    """Return the files of all reducers by name."""
    return {name: content for reducer in reducers.values() for name, content in reducer.files.items()}


def _concatenate(pieces: Sequence[Mapping[str, Samples]]) -> dict[str, Samples]:
    return {source: np.concatenate([piece[source] for piece in pieces]) for source in pieces[0]}
