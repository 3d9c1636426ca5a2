"""Fit one network to recordings, the same way every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from har_edge.streams.description import StreamDescription
from har_edge.streams.recording import Recording
from har_edge.training.augmentation import Augmentation, Augmenter
from har_edge.training.dataset import STEP, WindowPool
from har_edge.training.network import Layout, build_network, scaled_inputs
from har_edge.training.scaling import Scaling, measure_scaling


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights besides the recordings.

    The number of epochs is fixed: nothing is stopped or chosen by looking at data outside training. `hop` is in
    samples; each epoch draws its windows at another phase of it.
    """

    epochs: int = 12
    seed: int = 0
    hop: int = 50
    batch: int = 64
    rate: float = 2e-3
    smoothing: float = 0.05
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network with the scaling of its training data."""

    network: Any
    scaling: Scaling
    layout: Layout


def seed_everything(seed: int) -> None:
    """Make TensorFlow repeat itself: seeds, deterministic operators, no names left from earlier networks."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit_network(
    recordings: Sequence[Recording],
    description: StreamDescription,
    label_ids: Sequence[int],
    layout: Layout,
    recipe: Recipe,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Fitted:
    """Train a new network on all windows of `recordings`; `progress` gets each epoch, from 0, and its mean loss."""
    seed_everything(recipe.seed)
    random = np.random.default_rng(recipe.seed)
    pool = WindowPool(recordings, layout.length, label_ids)
    scaling = measure_scaling(recordings)
    augmenter = Augmenter(description, [description.labels[label] for label in label_ids], recipe.augmentation)
    network = build_network(description.sources, layout)
    steps = -(-len(pool.draw(recipe.hop)) // recipe.batch) * recipe.epochs
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(recipe.rate, steps)),
        keras.losses.CategoricalCrossentropy(label_smoothing=recipe.smoothing),
    )
    for epoch in range(recipe.epochs):
        batch = pool.draw(recipe.hop, int(random.integers(recipe.hop // STEP)))
        batch = augmenter.change(batch, scaling.spread, random)
        history = network.fit(
            scaled_inputs(scaling.apply(batch.samples), description.sources),
            np.eye(layout.classes, dtype=np.float32)[batch.classes],
            batch_size=recipe.batch,
            verbose=0,
        )
        progress(epoch, float(history.history["loss"][-1]))
    return Fitted(network, scaling, layout)
