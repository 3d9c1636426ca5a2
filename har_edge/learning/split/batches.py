"""Which samples a step has: a function of its number, so that a run that goes back takes the same ones again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from har_edge.learning.data.datasets import Dataset, Indices
from har_edge.learning.data.input_layout import InputLayout
from har_edge.learning.split.stage import label_ports
from har_edge.learning.split.tensors import Array, pack_tensors
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.stage_spec import StageSpec


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """The samples of each step: every epoch has all of them once, in an order of its own that the seed gives."""

    samples: int
    batch: int
    seed: int

    @property
    def steps_an_epoch(self) -> int:
        """How many steps an epoch has; the last one may have fewer samples."""
        return -(-self.samples // self.batch)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 1; `step` counts from 0."""
        return step // self.steps_an_epoch + 1

    def indices(self, step: int) -> Indices:
        """Return the samples of a step."""
        epoch, place = divmod(step, self.steps_an_epoch)
        order = _order(self.samples, self.seed, epoch)
        return order[place * self.batch : (place + 1) * self.batch]

    def count(self, step: int) -> int:
        """Return how many samples a step has."""
        place = step % self.steps_an_epoch
        return min(self.batch, self.samples - place * self.batch)


@lru_cache(maxsize=2)  # of this epoch and the next
def _order(samples: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng([seed, epoch]).permutation(samples)


@dataclass(frozen=True, slots=True)
class BatchFeed:
    """Micro-batches as bytes for the first and for the last stage."""

    data: Dataset
    order: BatchOrder
    micro_batch: int
    first: StageSpec
    last: StageSpec
    layout: InputLayout | None = None

    def micros(self, step: int) -> int:
        """Return how many micro-batches a step has."""
        return -(-self.order.count(step) // self.micro_batch)

    def inputs(self, step: int, micro: int) -> bytes:
        """Return what enters the first stage; a micro-batch of fewer samples is filled with zeros."""
        values = self.data.values(self._chosen(step, micro))
        ports = self.first.entering
        parts = {ports[0].name: values} if self.layout is None else self.layout.split(values)
        return pack_tensors({port.name: _filled(parts[port.name], port.shape) for port in ports}, ports)

    def labels(self, step: int, micro: int) -> bytes:
        """Return targets and sample weights for the last stage."""
        chosen = self._chosen(step, micro)
        targets, weight = label_ports(self.last)
        found = self.data.one_hot(chosen) if self.last.loss == Loss.CROSS_ENTROPY.value else self.data.values(chosen)
        arrays = {
            targets.name: _filled(found.reshape(len(chosen), *targets.shape[1:]), targets.shape),
            weight.name: _filled(np.ones(len(chosen), np.float32), weight.shape),
        }
        return pack_tensors(arrays, [targets, weight])

    def _chosen(self, step: int, micro: int) -> Indices:
        return self.order.indices(step)[micro * self.micro_batch : (micro + 1) * self.micro_batch]


def _filled(values: Array, shape: tuple[int, ...]) -> Array:
    if values.shape == tuple(shape):
        return values
    filled = np.zeros(shape, np.float32)
    filled[: len(values)] = values
    return filled
