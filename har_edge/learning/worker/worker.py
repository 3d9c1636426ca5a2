"""A worker of a training: a pure machine that steps through its task batch by batch, and sends what it made of it.

Messages and the time go in, messages come out; `step` computes one batch, so that its thread hears the broker between
two of them. A task ends when all its samples are done, or its time is over: then it sends what it has.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from har_edge.errors import HarEdgeError, MessageError, ModelError
from har_edge.learning.data.blocks import epoch_order
from har_edge.learning.masking.task import MaskedTask
from har_edge.learning.optimizers.optimizers import Optimizer, make_optimizer
from har_edge.learning.updates.compression import PackedVector, decode, make_compressor
from har_edge.learning.updates.vector_parts import VectorAssembly, split_vector
from har_edge.learning.updates.vectors import Vector
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import TrainingEvent, Unreadable
from har_edge.protocol.events import decode as decode_message
from har_edge.protocol.masks import MaskPart, MaskRelay
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import (
    Round,
    TrainingJob,
    TrainingTask,
    Update,
    VectorPart,
    WorkerReport,
    WorkerState,
    encode_training,
)

# An idle worker says again that it is there: its first word, or the server's, may have been lost.
IDLE_S = 10.0
# The ways to pack an update that a round may choose.
_PACKINGS = {"auto": ("none", "float16")}
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The outcome of one batch: sums over its samples."""

    gradient: Vector
    loss: float
    correct: int


class Learner(Protocol):
    """The means of a worker: the training graph and the samples."""

    @property
    def step_s(self) -> float:
        """Seconds of one step with a full batch, as measured."""

    @property
    def own_samples(self) -> int:
        """How many samples of its own the worker has."""

    def missing(self, block: int) -> bool:
        """Return whether the samples of a block are not here yet."""

    def samples(self, block: int) -> int:
        """Return how many samples a block has."""

    def compute(self, weights: Vector, chosen: list[tuple[int, Indices]]) -> BatchOutcome:
        """Run one step for samples, given by block and index."""


class Protect(Protocol):
    """Changes an update before it is compressed: clips it, adds noise or masks."""

    def __call__(self, vector: Vector, samples: int) -> Vector:
        """Return what is to be sent."""


def as_it_is(vector: Vector, samples: int) -> Vector:
    """Return an update unchanged."""
    del samples
    return vector


@dataclass(slots=True)
class RunningTask:
    """A task under way: its samples as (block, index) in order, and the sums so far."""

    task: TrainingTask
    round: int
    weights: Vector
    base: Vector
    optimizer: Optimizer | None
    blocks: Indices
    indices: Indices
    total: Vector = field(repr=False)
    masks: MaskedTask | None = None
    done: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    began: float | None = None


@dataclass(frozen=True, slots=True)
class SentUpdate:
    """The last update that was sent: the number of its task, and what it held."""

    number: int
    packed: PackedVector | None


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """A worker beside its speed: its data, and the version of its software."""

    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    software: str = ""
    key: bytes = b""


def filters_of(job: TrainingJob, topics: Topics, worker: str) -> list[str]:
    """Return the topics that a worker of a job subscribes to."""
    levels = ("round", "relay") if job.mask else ("round",)
    return [topics.training(job.run, level, one) for level in levels for one in (None, worker)]


class TrainingWorker:
    """One worker of one job. `reasons` says why messages were dropped; whoever logs it empties it."""

    def __init__(
        self,
        job: TrainingJob,
        name: str,
        instance: str,
        learner: Learner,
        topics: Topics,
        profile: WorkerProfile = WorkerProfile(),
        protect: Protect = as_it_is,
    ) -> None:
        self.job, self.name, self.instance, self.reasons = job, name, instance, list[str]()
        self.tasks = self.samples = 0  # done
        self._learner, self._topics, self._profile, self._protect = learner, topics, profile, protect
        self._compress, self._compressor = "none", make_compressor("none", job.parameters)
        self._assembly: tuple[int, VectorAssembly] = (0, VectorAssembly(0))
        self._task: RunningTask | None = None
        self._masked: RunningTask | None = None  # the last task whose update is masked
        self._heard, self._sent, self._said_at = 0, SentUpdate(0, None), -math.inf

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        return filters_of(self.job, self._topics, self.name)

    @property
    def wanted(self) -> list[int]:
        """The blocks whose samples must be brought before the task can go on."""
        ranges = self._task.task.ranges if self._task is not None else ()
        return sorted({one.block for one in ranges if self._learner.missing(one.block)})

    @property
    def busy(self) -> bool:
        """Whether there is something to compute now."""
        return self._task is not None and not self.wanted

    @property
    def _masks(self) -> MaskedTask | None:
        """The masked sum that this worker takes part in."""
        return self._masked.masks if self._masked is not None else None

    # --- what comes ---------------------------------------------------------------------------------------------------

    def handle(self, delivery: Delivery) -> list[Outgoing]:
        """Take a message; return what is to be sent at once, nothing for one that others are to take."""
        event = decode_message(delivery, self._topics)
        if isinstance(event, Unreadable):
            self.reasons.append(event.reason)
            return []
        message = event.message if isinstance(event, TrainingEvent) else None
        if not isinstance(message, Round | MaskRelay) or message.author != self.job.author:
            return []
        try:
            return self._take_relay(message) if isinstance(message, MaskRelay) else self._take_round(message)
        except HarEdgeError as error:
            self.reasons.append(f"a round of {message.author}: {error}")
            return []

    def _take_round(self, message: Round) -> list[Outgoing]:
        task = message.tasks.get(self.name)
        if task is None or task.number < self._heard:  # of others, or heard already
            return []
        if task.number == self._heard:
            return self._say_again()
        self._take(message, task)
        return self._say_again() if self._heard == task.number else []

    def _say_again(self) -> list[Outgoing]:
        """Return the last message for the masked sum, which may have been lost."""
        masks = self._masks
        return [] if masks is None else [self._mask_message(masks.last)]

    def _take_relay(self, relay: MaskRelay) -> list[Outgoing]:
        """Take what the server passes on for a masked sum; return the answer, and the update that waited for it."""
        masks = self._masks
        if masks is None or relay.number < masks.number:  # of a sum before
            return []
        answer = masks.answer(relay)
        sent = [] if answer is None else [self._mask_message(answer)]
        return sent + self._masked_update()

    def _mask_message(self, part: MaskPart) -> Outgoing:
        return Outgoing(self._topics.training(self.job.run, "mask", self.name), encode_training(part))

    def _take(self, message: Round, task: TrainingTask) -> None:
        """Take a part of the weights, and begin the task when all are here; a task that is under way ends."""
        job, (number, assembly) = self.job, self._assembly
        if number != task.number:
            assembly = VectorAssembly(4 * job.parameters + 64)
            self._assembly = task.number, assembly
        packed = assembly.add(message.weights)
        if packed is None:
            return
        self._assembly, self._heard = (0, VectorAssembly(0)), task.number
        self._task = self._masked = None
        if message.mask is not None and not job.mask:
            raise MessageError("a round with masks came, and the job has none")
        weights = decode(packed, job.parameters)
        optimizer = make_optimizer(message.optimizer, job.parameters) if message.optimizer else None
        blocks, indices = self._samples_of(message, task)
        base = weights.copy() if optimizer is not None else weights
        total = np.zeros(0 if optimizer is not None else job.parameters, np.float32)
        if message.compress not in _PACKINGS.get(job.compress, (job.compress,)):
            raise MessageError(f"updates were to be packed as {message.compress!r}; the job says {job.compress!r}")
        if message.compress != self._compress:
            self._compressor = make_compressor(message.compress, job.parameters)
            self._compress, self._sent = message.compress, SentUpdate(0, None)
        if self._sent.packed is not None and task.after != self._sent.number:
            self._compressor.restore(self._sent.packed)  # it was not counted: the next one carries it
            self._sent = SentUpdate(0, None)
        masks = MaskedTask(job, self.name, message, secrets.token_bytes) if job.mask else None
        self._task = RunningTask(task, message.number, weights, base, optimizer, blocks, indices, total, masks)
        self._masked = self._task if masks is not None else None

    def _samples_of(self, message: Round, task: TrainingTask) -> tuple[Indices, Indices]:
        """Return the block and the index of each sample of a task. Raises MessageError where there are no such."""
        blocks, indices = [], []
        for one in task.ranges:
            size = self._learner.samples(one.block)
            if one.stop > size:
                raise MessageError(f"samples up to {one.stop} of block {one.block} were asked for; it has {size}")
            order = epoch_order(message.seed, message.epoch, one.block, size)
            indices.append(order[one.start : one.stop])
            blocks.append(np.full(one.samples, one.block, np.int64))
        if not blocks:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(blocks), np.concatenate(indices)

    # --- what it does -------------------------------------------------------------------------------------------------

    def step(self, clock: Callable[[], float]) -> list[Outgoing]:
        """Compute one batch; return the update when the task is done or its time is over."""
        running = self._task
        if running is None:
            return []
        began = clock()
        running.began = began if running.began is None else running.began
        stop = min(running.done + self.job.batch, len(running.blocks))
        chosen = _by_block(running.blocks[running.done : stop], running.indices[running.done : stop])
        outcome = self._learner.compute(running.weights, chosen)
        if running.optimizer is None:
            running.total += outcome.gradient
        else:
            running.optimizer.step(running.weights, outcome.gradient / np.float32(stop - running.done))
        running.loss += outcome.loss
        running.correct += outcome.correct
        running.done = stop
        now = clock()
        running.seconds += now - began
        if stop < len(running.blocks) and now - running.began < running.task.budget_s:
            return []
        self._task = None
        self.tasks, self.samples = self.tasks + 1, self.samples + running.done
        self._said_at = now
        return self._update(running)

    def _update(self, running: RunningTask) -> list[Outgoing]:
        problem, packed, samples, masks = "", None, running.done, running.masks
        vector = running.total if running.optimizer is None else running.weights - running.base
        try:
            vector = self._protect(vector, samples)
            if masks is None:
                packed = self._compressor.encode(vector)
            if not math.isfinite(running.loss):
                raise ModelError(f"the loss became {running.loss}; the learning rate may be too high")
            if masks is not None:
                # Under noise loss and right answers would tell of the samples what the noise hides.
                told = (0.0, 0) if self.job.noise else (running.loss, running.correct)
                masks.hold(masks.words.encode(vector, samples, *told))
                return self._masked_update()
        except ModelError as error:
            problem, packed, samples = str(error)[:400], None, 0
        self._sent = SentUpdate(running.task.number, packed)
        parts = split_vector(packed) if packed is not None else [VectorPart("", self.job.parameters, b"")]
        return self._in_parts(running, parts, samples, problem, scored=not (problem or self.job.noise))

    def _masked_update(self) -> list[Outgoing]:
        """Return the update under its masks, once the shares of the others are here."""
        running, masks = self._masked, self._masks
        if running is None or masks is None:
            return []
        try:
            parts = masks.masked()
        except MessageError as error:
            none = [VectorPart("", self.job.parameters, b"")]
            return self._in_parts(running, none, 0, str(error)[:400], scored=False)
        if not parts:
            return []
        self.reasons += [f"shares of {name}: {reason}" for name, reason in masks.unopened.items()]
        return self._in_parts(running, parts, running.done, "", scored=False)

    def _in_parts(
        self, running: RunningTask, parts: list[VectorPart], samples: int, problem: str, *, scored: bool
    ) -> list[Outgoing]:
        """Return an update as one message for each part of its vector."""
        head = Update(
            run=self.job.run,
            author=self.job.author,
            worker=self.name,
            round=running.round,
            task=running.task.number,
            samples=samples,
            vector=parts[0],
            loss=running.loss if scored else 0.0,
            correct=running.correct if scored else 0,
            seconds=max(0.0, running.seconds),
            problem=problem,
        )
        topic = self._topics.training(self.job.run, "update", self.name)
        return [Outgoing(topic, encode_training(msgspec.structs.replace(head, vector=part))) for part in parts]

    def tick(self, now: float) -> list[Outgoing]:
        """Say again that this worker is there, where it has nothing to do for a while."""
        if self._task is not None or now - self._said_at < IDLE_S:
            return []
        self._said_at = now
        return [self.report(WorkerState.READY)]

    def report(self, state: WorkerState, detail: str = "", lacks: str = "") -> Outgoing:
        """Return what the worker says of itself."""
        profile = self._profile
        message = WorkerReport(
            run=self.job.run,
            author=self.job.author,
            worker=self.name,
            instance=self.instance,
            state=state,
            detail=detail[:400],
            software=profile.software,
            step_s=self._learner.step_s,
            samples=self._learner.own_samples,
            heard=self._heard,
            lacks=lacks,
            shape=profile.shape,
            classes=profile.classes,
            key=profile.key,
        )
        return Outgoing(self._topics.training(self.job.run, "worker", self.name), encode_training(message))


def _by_block(blocks: Indices, indices: Indices) -> list[tuple[int, Indices]]:
    """Return consecutive samples of one block together."""
    cuts = np.flatnonzero(np.diff(blocks)) + 1
    starts = [0, *cuts.tolist()]
    return [(int(blocks[start]), part) for start, part in zip(starts, np.split(indices, cuts), strict=True)]
