"""Fit one network to recordings, the same way every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from har_edge.streams.description import StreamDescription
from har_edge.streams.recording import Recording
from har_edge.training.augmentation import Augmentation, Augmenter, drop_sources
from har_edge.training.dataset import WINDOWS_A_LENGTH, Draw, WindowPool
from har_edge.training.loop import Piece, Schedule, parts, smooth, train, whole_batches
from har_edge.training.network import Entrance, Layout, build_network
from har_edge.training.scaling import Scaling, measure_scaling


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights besides the recordings.

    The number of epochs is fixed: nothing is stopped or chosen by looking at data outside training. Each epoch draws
    `windows_a_length` windows from every length of one, at another phase.
    """

    epochs: int = 12
    seed: int = 0
    windows_a_length: int = WINDOWS_A_LENGTH
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.0
    smoothing: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network, what enters it, and the scaling of its training data."""

    network: Any
    entrances: tuple[Entrance, ...]
    layout: Layout
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class Network:
    """The blueprint of a network that gives one logit a class."""

    entrances: tuple[Entrance, ...]
    layout: Layout

    def build(self) -> Any:
        return build_network(self.entrances, self.layout)

    def loss(self, targets: Any, outputs: Any) -> Any:
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, outputs))


def window_entrances(description: StreamDescription, length: int) -> tuple[Entrance, ...]:
    """Return what enters where windows are not reduced."""
    return tuple(Entrance(source.name, (length, len(source.channels))) for source in description.sources)


def fit_network(
    recordings: Sequence[Recording],
    description: StreamDescription,
    label_ids: Sequence[int],
    length: int,
    layout: Layout,
    recipe: Recipe,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Fitted:
    """Train a new network on all windows of `recordings`; `progress` gets each epoch, from 0, and its mean loss."""
    pool = WindowPool(recordings, length, label_ids, windows_a_length=recipe.windows_a_length)
    scaling = measure_scaling(recordings, description)
    entrances = window_entrances(description, length)
    augmenter = Augmenter(description, [description.labels[label] for label in label_ids], recipe.augmentation)
    network = train(
        Network(entrances, layout),
        window_passes(pool, augmenter, scaling, layout.classes, recipe),
        schedule(pool, recipe),
        recipe.seed,
        progress,
    )
    return Fitted(network, entrances, layout, scaling)


def schedule(pool: WindowPool, recipe: Recipe) -> Schedule:
    """Return the schedule of a recipe: as many steps as the longest passes take."""
    most = -(-max(len(pool.draw(phase)) for phase in range(pool.phases)) // recipe.batch)
    return Schedule(most * recipe.epochs, recipe.batch, recipe.rate, recipe.decay)


def window_passes(
    pool: WindowPool, augmenter: Augmenter, scaling: Scaling, classes: int, recipe: Recipe
) -> Iterator[Iterator[Piece]]:
    """Yield each epoch: changed and scaled windows, piece by piece."""
    random = np.random.default_rng(recipe.seed)

    def pieces(draw: Draw) -> Iterator[Piece]:
        for part in parts(len(draw), recipe.batch):
            batch = augmenter.change(draw.take(part), scaling.spread, random)
            drop_sources(batch.samples, recipe.augmentation.absent, random)
            inputs = [scaling.scale(source, values, values) for source, values in batch.samples.items()]
            yield Piece(inputs, smooth(batch.classes, classes, recipe.smoothing))

    for _ in range(recipe.epochs):
        draw = pool.draw(int(random.integers(pool.phases)))
        yield pieces(draw.take(whole_batches(len(draw), recipe.batch, random)))
