"""The record of a split run: a row a step, a row a step of each stage, and what each loss has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import msgspec


class StepRow(msgspec.Struct, frozen=True, array_like=True):
    """One step: mean loss and accuracy over its samples, and when it was done, in seconds since the run began."""

    step: int
    epoch: int
    samples: int
    loss: float
    accuracy: float
    seconds: float


class StageRow(msgspec.Struct, frozen=True, array_like=True):
    """A step of one stage on one worker: seconds that it computed, and waited."""

    step: int
    stage: int
    worker: str
    forward_s: float
    backward_s: float
    update_s: float
    idle_s: float
    sent_bytes: int
    peak_bytes: int


class RecoveryRow(msgspec.Struct, frozen=True, array_like=True):
    """A loss: why, at which step, back to which, and the seconds until a step was counted again (-1: none yet)."""

    reason: str
    step: int
    back_to: int
    seconds: float
    recovered_s: float

    @property
    def lost_steps(self) -> int:
        """How many steps that had been counted are computed again."""
        return self.step - self.back_to


class EpochScore(msgspec.Struct, frozen=True, array_like=True):
    """Accuracy and mean loss on held-out samples after an epoch."""

    epoch: int
    accuracy: float
    loss: float
    samples: int


@dataclass(slots=True)
class SplitRecord:
    """The rows of a run. `before_s` is the time that it took before it was restarted."""

    steps: list[StepRow] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    recoveries: list[RecoveryRow] = field(default_factory=list)
    scores: list[EpochScore] = field(default_factory=list)
    before_s: float = 0.0
    began: float | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    dropped: int = 0

    def seconds(self, now: float) -> float:
        """Return how long the run has trained."""
        return self.before_s + (now - self.began if self.began is not None else 0.0)

    def count(self, row: StepRow) -> None:
        """Count a step, once; a run that went back counts its steps from there anew."""
        assert not self.steps or row.step == self.steps[-1].step + 1
        self.steps.append(row)
        if self.recoveries and self.recoveries[-1].recovered_s < 0:
            last = self.recoveries[-1]
            self.recoveries[-1] = RecoveryRow(
                last.reason, last.step, last.back_to, last.seconds, row.seconds - last.seconds
            )

    def go_back(self, step: int) -> None:
        """Take back what was counted after `step` steps."""
        self.steps = [row for row in self.steps if row.step < step]
        self.stages = [row for row in self.stages if row.step < step]

    @property
    def idle_share(self) -> float:
        """The bubble: the part of the time that workers waited, over the steps that are counted; 0 without any."""
        busy = sum(row.forward_s + row.backward_s + row.update_s for row in self.stages)
        idle = sum(row.idle_s for row in self.stages)
        return idle / (busy + idle) if busy + idle else 0.0

    def step_s(self, last: int = 10) -> float:
        """Return the median seconds between two steps of the last ones; 0 before there are two."""
        times = [row.seconds for row in self.steps[-last - 1 :]]
        return median(b - a for a, b in pairwise(times)) if len(times) > 1 else 0.0
