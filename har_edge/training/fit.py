"""Train networks on windows that are changed anew each epoch, or on codes of some that were changed before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Samples
from har_edge.evaluation.study import Training
from har_edge.training.augmentation import Augmentation, Augmenter, drop_sources
from har_edge.training.dataset import WINDOWS_A_LENGTH, Batch, Draw, Indices, WindowPool
from har_edge.training.loop import Piece, Schedule, parts, smooth, train, whole_batches
from har_edge.training.network import InputSpec, NetworkLayout, build_network, fit_layout
from har_edge.training.scaling import Scaling, measure_scaling

Progress = Callable[[int, float], None]
# Windows or features of each source, which it may write to, to the inputs of a network in their order.
Prepare = Callable[[dict[str, Samples]], list[Samples]]


def no_progress(epoch: int, loss: float) -> None:
    """Report nothing about an epoch."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights besides the recordings.

    The number of epochs is fixed: nothing is stopped or chosen by looking at data outside training. Each epoch draws
    `windows_a_length` windows from every length of one, at another phase. A network on codes changes
    and encodes the data in `encoded_passes` epochs, and reuses them in the others.
    """

    epochs: int = 12
    seed: int = 0
    windows_a_length: int = WINDOWS_A_LENGTH
    encoded_passes: int = 4
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.0
    smoothing: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network, what enters it, and the scaling of its training data."""

    network: Any
    input_specs: tuple[InputSpec, ...]
    layout: NetworkLayout
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class Network:
    """The blueprint of a network that gives one logit a class."""

    input_specs: tuple[InputSpec, ...]
    layout: NetworkLayout

    @property
    def target(self) -> tuple[int, ...]:
        return (self.layout.classes,)

    def build(self) -> Any:
        return build_network(self.input_specs, self.layout)

    def loss(self, targets: Any, outputs: Any) -> Any:
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, outputs))


def window_inputs(description: StreamDescription, length: int) -> tuple[InputSpec, ...]:
    """Return what enters where windows are not reduced."""
    return tuple(InputSpec(source.name, (length, len(source.channels))) for source in description.sources)


def fit_network(
    training: Training,
    description: StreamDescription,
    label_ids: Sequence[int],
    length: int,
    recipe: Recipe,
    progress: Progress = no_progress,
) -> Fitted:
    """Train a new network on windows as they are; `description` is that of the recordings, regrouped if they are."""
    pool = WindowPool(
        training.recordings,
        length,
        label_ids,
        windows_a_length=recipe.windows_a_length,
        chosen=training.chosen,
    )
    input_specs = window_inputs(description, length)
    layout, scaling = fit_layout(input_specs, len(label_ids)), measure_scaling(training.recordings, description)
    augmenter = Augmenter(description, [description.labels[label] for label in label_ids], recipe.augmentation)
    epochs = window_passes(pool, augmenter, scaling, scaling.inputs, layout.classes, recipe)
    network = train(Network(input_specs, layout), epochs, schedule(pool, recipe), recipe.seed, progress)
    return Fitted(network, input_specs, layout, scaling)


def schedule(pool: WindowPool, recipe: Recipe) -> Schedule:
    """Return the schedule of a recipe: as many steps as the longest passes take."""
    most = -(-max(len(pool.draw(phase)) for phase in range(pool.phases)) // recipe.batch)
    return Schedule(most * recipe.epochs, recipe.batch, recipe.rate, recipe.decay)


def window_passes(
    pool: WindowPool,
    augmenter: Augmenter,
    scaling: Scaling,
    prepare: Prepare,
    classes: int,
    recipe: Recipe,
) -> Iterator[Iterator[Piece]]:
    """Yield each epoch, piece by piece: changed windows, as `prepare` makes inputs of them."""
    random = np.random.default_rng(recipe.seed)

    def pieces(draw: Draw) -> Iterator[Piece]:
        for part in parts(len(draw), recipe.batch):
            batch = augmenter.change(draw.take(part), scaling, random)
            drop_sources(batch.samples, recipe.augmentation.absent, random)
            yield Piece(prepare(batch.samples), smooth(batch.classes, classes, recipe.smoothing))

    for _ in range(recipe.epochs):
        draw = pool.draw(int(random.integers(pool.phases)))
        yield pieces(draw.take(whole_batches(len(draw), recipe.batch, random)))


def array_passes(passes: Sequence[Batch], prepare: Prepare, classes: int, recipe: Recipe) -> Iterator[Iterator[Piece]]:
    """Yield each epoch from passes that were made before, in turn and each time in another order."""
    random = np.random.default_rng(recipe.seed)

    def pieces(batch: Batch, order: Indices) -> Iterator[Piece]:
        for part in parts(len(order), recipe.batch):
            samples = {source: values[order[part]] for source, values in batch.samples.items()}
            drop_sources(samples, recipe.augmentation.absent, random)
            yield Piece(prepare(samples), smooth(batch.classes[order[part]], classes, recipe.smoothing))

    for epoch in range(recipe.epochs):
        batch = passes[epoch % len(passes)]
        yield pieces(batch, whole_batches(len(batch), recipe.batch, random))
