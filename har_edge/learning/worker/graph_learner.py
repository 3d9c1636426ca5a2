"""A worker's means: a training graph that LiteRT runs, and blocks of samples from the store, or samples of its own."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from har_edge.errors import DataError, MessageError
from har_edge.inference.interpreter import Array
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.blocks import MAX_BLOCK_BYTES, read_block
from har_edge.learning.data.datasets import Dataset, Fingerprint
from har_edge.learning.data.input_layout import InputLayout, layout_of
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.learning.worker.worker import BatchOutcome, Indices
from har_edge.protocol.training import TrainingJob
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.gradient.spec import TrainingSpec

# Samples that stay in memory beside the graph; others are read from the disk when they are needed.
CACHED_BYTES = 16 << 20
# A step is timed for so long at least: quotas of a processor count over some tenths of a second.
_MEASURE_S = 0.5
MEAN_SQUARED = "mean-squared"


def check_spec(spec: TrainingSpec, job: TrainingJob) -> None:
    """Raise MessageError where a training graph is not the one that a job describes."""
    shape = layout_of(spec).shape
    if spec.batch != job.batch or spec.elements != job.parameters or spec.y is None or shape != job.shape:
        raise MessageError(
            f"a training graph for batches of {spec.batch} samples {list(shape)} with {spec.elements} weights came; "
            f"the job says {job.batch} samples {list(job.shape)} and {job.parameters} weights"
        )


class GraphLearner:
    """Computes steps. With `own` samples, every block is these."""

    def __init__(
        self,
        step: TrainingStep,
        job: TrainingJob,
        store: Store,
        own: Dataset | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_spec(step.spec, job)
        self._step, self._job, self._store, self._own = step, job, store, own
        self._layout = layout_of(step.spec)
        self._expected = Fingerprint(job.shape, job.classes)
        self._cached: OrderedDict[int, Dataset] = OrderedDict()
        self.step_s = self._measure(clock)

    @property
    def own_samples(self) -> int:
        """How many samples of its own the worker has."""
        return len(self._own) if self._own is not None else 0

    def missing(self, block: int) -> bool:
        """Return whether a block is neither in memory nor in the store."""
        if self._own is not None or block in self._cached or block >= len(self._job.blocks):
            return False
        return not self._store.has(self._job.blocks[block].sha256)

    def samples(self, block: int) -> int:
        """Return how many samples a block has. Raises MessageError for one that the job does not name."""
        if self._own is not None:
            return len(self._own)
        if block >= len(self._job.blocks):
            raise MessageError(f"block {block} came; the job has {len(self._job.blocks)}")
        return self._job.blocks[block].samples

    def values(self, block: int, indices: Indices) -> Array:
        """Return samples as the model takes them, float32 [n, ...]. Raises DataError as `compute` does."""
        return self._block(block).values(indices)

    @property
    def layout(self) -> InputLayout:
        """How the inputs of the model stand in a sample."""
        return self._layout

    def compute(self, weights: Vector, chosen: list[tuple[int, Indices]]) -> BatchOutcome:
        """Run one step. Raises DataError for a block that is not what the job says."""
        parts = [(self._block(block), indices) for block, indices in chosen]
        x = np.concatenate([data.values(indices) for data, indices in parts])
        labels = np.concatenate([data.y[indices] for data, indices in parts])
        if self._step.spec.loss == MEAN_SQUARED:
            return self._run(weights, x, x, None)
        return self._run(weights, x, np.eye(len(self._job.classes), dtype=np.float32)[labels], labels)

    def _run(self, weights: Vector, x: Array, y: Array, labels: Array | None) -> BatchOutcome:
        spec = self._step.spec
        result = self._step.run(unflatten(weights, spec.weights), self._layout.split(x), y)
        found = result.predictions
        correct = 0
        if labels is not None and found is not None:
            correct = int((found.reshape(len(labels), -1).argmax(axis=1) == labels).sum())
        return BatchOutcome(flatten(result.gradients, spec.weights), result.loss_sum, correct)

    def _block(self, block: int) -> Dataset:
        if self._own is not None:
            return self._own
        found = self._cached.pop(block, None)
        if found is None:
            file = self._job.blocks[block]
            found = read_block(self._store.path(file.sha256).read_bytes())
            if (difference := self._expected.difference(found.fingerprint)) or len(found) != file.samples:
                raise DataError(f"block {block}: {difference or f'{len(found)} samples, expected {file.samples}'}")
        self._cached[block] = found
        while len(self._cached) > 1 and sum(one.x.nbytes for one in self._cached.values()) > CACHED_BYTES:
            self._cached.popitem(last=False)
        return found

    def _measure(self, clock: Callable[[], float]) -> float:
        """Return the seconds of one step with a full batch."""
        job, spec = self._job, self._step.spec
        weights = np.zeros(job.parameters, np.float32)
        x = np.zeros((job.batch, *job.shape), np.float32)
        assert spec.y is not None
        y = np.zeros((job.batch, *spec.y.shape[1:]), np.float32)
        self._run(weights, x, y, None)  # the first one allocates
        began, runs = clock(), 0
        while (passed := clock() - began) < _MEASURE_S or not runs:
            self._run(weights, x, y, None)
            runs += 1
        return passed / runs


def most_block_bytes(job: TrainingJob) -> int:
    """Return the bytes of the largest file that a job names. Raises MessageError for a block beyond what is read."""
    largest = max((one.size for one in job.blocks), default=0)
    if largest > MAX_BLOCK_BYTES + 65_536 or math.prod(job.shape) * 4 > MAX_BLOCK_BYTES:
        raise MessageError(f"a job with blocks of {largest} bytes came; expected at most {MAX_BLOCK_BYTES}")
    values = math.prod(job.shape)
    for block in job.blocks:
        if block.samples * values > block.size:
            raise MessageError(
                f"a job with {block.samples} samples of {values} values in {block.size} bytes came; expected a byte a "
                "value at least"
            )
    return max(largest, job.graph.size, job.spec.size)
