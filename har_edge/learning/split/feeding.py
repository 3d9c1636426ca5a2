"""Micro-batches on their way: which were given, whose loss has come, and which stages have done which step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from har_edge.learning.split.batches import BatchFeed
from har_edge.learning.split.server_settings import SplitSettings
from har_edge.learning.split.tensors import split_bytes
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.split_training import TENSORS, MicroBatch, MicroLoss, SplitAssignment, SplitLevel, StageDone
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import encode_training

# Micro-batches beyond those that the first stage holds: they wait there, so that it never waits for the command.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class StepFlags:
    """Whether all states are copied after a step, and whether the command gets them, too."""

    snapshot: bool = False
    save: bool = False


@dataclass(slots=True)
class CopySchedule:
    """After which steps states are copied, and sent to the command.

    `replan_at` is the step after which there is to be a new plan, `save_asked` that of the state that is on its way to
    the command; -1 for none.
    """

    settings: SplitSettings
    copied_at: int
    saved_at_s: float
    save_asked: int = -1
    replan_at: int = -1

    def begin(self, step: int) -> None:
        """Begin with a step of which all have the state."""
        self.copied_at, self.save_asked, self.replan_at = step, -1, -1

    def stop_at(self, last: int) -> int:
        """Return the step before which to stop for now."""
        return last if self.replan_at < 0 else min(last, self.replan_at)

    def flags(self, step: int, now: float, committed: int, last: int, *, replan: bool) -> StepFlags:
        """Return what follows a step. A copy waits until the one before is held twice, a state until it has come."""
        after, settings = step + 1, self.settings
        if replan and self.replan_at < 0 and self.save_asked < 0:
            self.replan_at = after
        needed = after >= last or after == self.replan_at
        wanted = after % settings.order.steps_an_epoch == 0 or now - self.saved_at_s >= settings.checkpoint_s
        save = needed or (wanted and self.save_asked < 0)
        copy = save or (after - self.copied_at >= settings.replicate_every and committed >= self.copied_at)
        if save:
            self.save_asked, self.saved_at_s = after, now
        if copy:
            self.copied_at = after
        return StepFlags(copy, save)


@dataclass(slots=True)
class StepFeed:
    """The steps of one generation. `counted` steps are done by all; `step` and `micro` are given next."""

    topics: Topics
    assignment: SplitAssignment
    feed: BatchFeed
    counted: int
    step: int
    micro: int = 0
    flags: StepFlags = StepFlags()
    done: dict[tuple[int, str], int] = field(default_factory=dict)
    losses: dict[int, dict[int, MicroLoss]] = field(default_factory=dict)
    _open: int = 0

    def __post_init__(self) -> None:
        stages = self.assignment.stages
        self.done = {(number, name): self.counted for number, one in enumerate(stages) for name in one.stage.workers}

    @property
    def at_start(self) -> bool:
        """Whether the next micro-batch is the first one of its step."""
        return self.micro == 0

    def ready(self) -> bool:
        """Whether another micro-batch may be given."""
        first = self.assignment.stages[0].stage
        return self.step <= self.counted + 1 and self._open < first.in_flight * len(first.workers) + _AHEAD

    def give(self, committed: int) -> list[Outgoing]:
        """Return the next micro-batch: the samples for the first stage, and the labels for the last one."""
        stages, step, micro = self.assignment.stages, self.step, self.micro
        sent = [
            *self._parts(SplitLevel.LABELS, len(stages) - 1, self.feed.labels(step, micro), committed),
            *self._parts(SplitLevel.FORWARD, 0, self.feed.inputs(step, micro), committed),
        ]
        self._open += 1
        self.micro += 1
        if self.micro == self.feed.micros(step):
            self.step, self.micro, self.flags = step + 1, 0, StepFlags()
        return sent

    def _parts(self, level: SplitLevel, number: int, content: bytes, committed: int) -> Iterator[Outgoing]:
        assignment, stage = self.assignment, self.assignment.stages[number].stage
        topic = self.topics.training(assignment.run, level.value, stage.workers[stage.replica(self.micro)])
        for part in split_bytes(TENSORS, content):
            message = MicroBatch(
                run=assignment.run,
                author=assignment.author,
                sender=assignment.author,
                generation=assignment.generation,
                stage=number,
                step=self.step,
                part=part,
                micro=self.micro,
                micros=self.feed.micros(self.step),
                samples=self.feed.order.count(self.step),
                snapshot=self.flags.snapshot,
                save=self.flags.save,
                committed=committed,
            )
            yield Outgoing(topic, encode_training(message))

    def take_loss(self, message: MicroLoss) -> bool:
        """Take the loss of a micro-batch; return whether it is new."""
        if not self.counted <= message.step <= self.step or message.micro >= self.feed.micros(message.step):
            return False
        known = self.losses.setdefault(message.step, {})
        if message.micro in known:
            return False
        known[message.micro] = message
        self._open = max(0, self._open - 1)
        return True

    def take_done(self, message: StageDone) -> bool:
        """Take that a worker has done a step of a stage; return whether it is new."""
        key = (message.stage, message.worker)
        if message.step <= self.done.get(key, message.step):
            return False
        self.done[key] = message.step
        return True

    def take_counted(self) -> Iterator[tuple[int, list[MicroLoss]]]:
        """Yield each step that all have done by now, once, with the losses of its micro-batches in order."""
        while self.counted < min(self.done.values()):
            losses = self.losses.get(self.counted, {})
            if len(losses) < self.feed.micros(self.counted):
                return
            step = self.counted
            self.counted += 1
            yield step, [losses[micro] for micro in sorted(losses)]
            self.losses.pop(step, None)
