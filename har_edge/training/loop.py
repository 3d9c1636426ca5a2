"""Epochs over training data in one compiled graph, which the next fold takes again with fresh weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src.random import seed_generator

Array = npt.NDArray[np.float32]
# XLA halves the time of a step, and takes some seconds to compile one.
STEPS_WORTH_COMPILING = 500
# Windows are changed and handed over some batches at a time: memory of this size is taken again, and stays in cache.
BATCHES_A_PIECE = 4


@dataclass(frozen=True, slots=True)
class Schedule:
    """How weights are moved: Adam with decoupled weight decay, and a rate that falls along half a cosine to 0."""

    steps: int
    batch: int
    rate: float
    decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Some batches of an epoch: what enters, and what should come out, [batches * batch, ...] each."""

    inputs: Sequence[Array]
    targets: Array


class Blueprint(Protocol):
    """A network that can be built again, with nothing that differs between folds; equal ones share one graph."""

    @property
    def target(self) -> tuple[int, ...]:
        """Shape of what should come out for one window."""

    def build(self) -> Any:
        """Return a network with fresh weights, from the seed of Keras."""

    def loss(self, targets: Any, outputs: Any) -> Any:
        """Return the mean loss of a batch."""

    def __hash__(self) -> int: ...


def seed_everything(seed: int) -> None:
    """Make TensorFlow repeat itself: seeds, deterministic operators, no names left from earlier networks."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    # Keras draws the seeds of layers from the module `random`, from which other threads of the process may draw too, as
    # those of a dask worker do: the same sequence from a generator of its own.
    seed_generator.python_random = random.Random(seed)
    tf.config.experimental.enable_op_determinism()


def train(
    blueprint: Blueprint,
    epochs: Iterable[Iterable[Piece]],
    schedule: Schedule,
    seed: int,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Any:
    """Return a new network trained on these epochs; `progress` gets each epoch, from 0, and its mean loss."""
    seed_everything(seed)
    network = blueprint.build()
    loop = _loop(blueprint, schedule.batch, schedule.decay, schedule.steps >= STEPS_WORTH_COMPILING)
    loop.start(network)
    rates = schedule.rate / 2 * (1 + np.cos(np.pi * np.arange(schedule.steps) / schedule.steps))
    done = 0
    for epoch, pieces in enumerate(epochs):
        first, total = done, 0.0
        for piece in pieces:
            count = len(piece.targets) // schedule.batch
            total += loop.run(piece, rates[done : done + count].astype(np.float32))
            done += count
        progress(epoch, total / (done - first))
    loop.finish(network)
    return network


@lru_cache(maxsize=4)
def _loop(blueprint: Blueprint, batch: int, decay: float, compiled: bool) -> _Loop:
    return _Loop(blueprint, batch, decay, compiled)


class _Loop:
    """A network, its optimiser, and the graph of one piece."""

    def __init__(self, blueprint: Blueprint, batch: int, decay: float, compiled: bool) -> None:
        self._network = blueprint.build()
        self._batch = batch
        self._loss = blueprint.loss
        self._optimizer = keras.optimizers.AdamW(1e-3, weight_decay=decay)
        self._optimizer.build(self._network.trainable_variables)
        self._fresh = [variable.numpy() for variable in self._optimizer.variables]
        self._step = tf.function(self._make_step, jit_compile=True) if compiled else self._make_step
        taken = [_any_number(tensor) for tensor in self._network.inputs]
        wanted = tf.TensorSpec((None, *blueprint.target), tf.float32)
        self._run = tf.function(self._make_run, input_signature=[taken, wanted, tf.TensorSpec((None,), tf.float32)])

    def start(self, network: Any) -> None:
        """Take over the weights of a network, and forget all gradients."""
        for own, other in zip(self._network.variables, network.variables, strict=True):
            own.assign(other)
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)

    def run(self, piece: Piece, rates: Array) -> float:
        """Train on one piece, a rate for each batch; return the sum of the losses."""
        inputs = [tf.constant(values) for values in piece.inputs]
        return float(self._run(inputs, tf.constant(piece.targets), tf.constant(rates)))

    def finish(self, network: Any) -> None:
        """Give a network the weights."""
        for own, other in zip(self._network.variables, network.variables, strict=True):
            other.assign(own)

    def _make_run(self, inputs: list[Any], targets: Any, rates: Any) -> Any:
        total = tf.zeros(())
        for at in tf.range(tf.shape(rates)[0]):
            batch = [self._slice(values, at) for values in inputs]
            total += self._step(batch, self._slice(targets, at), rates[at])
        return total

    def _slice(self, values: Any, at: Any) -> Any:
        shape = (self._batch, *values.shape[1:])
        return tf.ensure_shape(values[at * self._batch : (at + 1) * self._batch], shape)

    def _make_step(self, inputs: list[Any], targets: Any, rate: Any) -> Any:
        weights = self._network.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._loss(targets, self._network(inputs, training=True))
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss


def _any_number(tensor: Any) -> Any:
    return tf.TensorSpec((None, *tensor.shape[1:]), tf.float32)


def whole_batches(count: int, batch: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return an order of `count` windows that fills its last batch with windows from its beginning."""
    order = random.permutation(count)
    return np.resize(order, -(-count // batch) * batch)


def parts(count: int, batch: int) -> Iterator[slice]:
    """Yield slices of a few whole batches that cover `count` windows."""
    for at in range(0, count, BATCHES_A_PIECE * batch):
        yield slice(at, at + BATCHES_A_PIECE * batch)


def smooth(classes: npt.NDArray[np.int64], count: int, smoothing: float) -> Array:
    """Return one row of shares a window: all of its class but `smoothing`, which all classes share."""
    shares = np.full((len(classes), count), smoothing / count, np.float32)
    shares[np.arange(len(classes)), classes] += 1 - smoothing
    return shares
