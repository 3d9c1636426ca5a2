"""The workers of a training as the server knows them: their speed, their task, and what they have cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from har_edge.learning.updates.vector_parts import VectorAssembly
from har_edge.protocol.training import TrainingTask, WorkerProgress, WorkerReport

# A speed counts this much of the newest measurement: devices change it in jumps, and shares must follow within a few.
_NEWEST = 0.5
# Shares stay equal until a worker's speed differs from the median by so much: measurements scatter, and with equal
# shares the same members give the same numbers.
UNEQUAL = 0.25
# The most samples a second that a worker is believed: a time of almost nothing is no measurement.
_FASTEST = 1e9
# The most that a share may differ from an equal one, each way.
_MOST = 8.0
# Updates of no use in a row after which a worker is left out until it starts again.
MAX_STRIKES = 3


@dataclass(slots=True)
class PendingTask:
    """A task under way: its round, until when what comes of it is waited for, and how often it was said again."""

    task: TrainingTask
    round: int
    deadline: float
    assembly: VectorAssembly
    repeats: int = 0

    @property
    def number(self) -> int:
        """The task's number."""
        return self.task.number


@dataclass(slots=True)
class WorkerRecord:
    """One worker. It is `absent` from a missed deadline until it is heard again, `refused` until it starts again.

    `heartbeat_at` is when its node was heard last, None before. `held` are blocks that it has fetched.
    """

    name: str
    instance: str
    samples_per_s: float
    own_samples: int = 0
    absent: bool = False
    refused: str = ""
    pending: PendingTask | None = None
    last_task: int = 0
    strikes: int = 0
    heartbeat_at: float | None = None
    held: set[int] = field(default_factory=set)
    samples: int = 0
    received_bytes: int = 0
    dropped: int = 0
    key: bytes = b""

    @property
    def active(self) -> bool:
        """Whether it may be given a task."""
        return not self.absent and not self.refused

    def measured(self, samples: int, seconds: float) -> None:
        """Take the speed of an update into account."""
        if samples and seconds > 0 and math.isfinite(seconds):
            newest = _speed(samples, seconds)
            self.samples_per_s += _NEWEST * (newest - self.samples_per_s) if self.samples_per_s else newest

    def progress(self) -> WorkerProgress:
        """Return what the progress says of it."""
        detail = self.refused or ("not heard" if self.absent else "")
        return WorkerProgress(
            self.name,
            self.active,
            self.samples,
            round(self.samples_per_s, 1),
            self.received_bytes,
            self.dropped,
            detail[:400],
        )


def member_of(report: WorkerReport, batch: int) -> WorkerRecord:
    """Return the member that a report introduces."""
    speed = _speed(batch, report.step_s) if report.step_s > 0 else 0.0
    return WorkerRecord(report.worker, report.instance, speed, report.samples, key=report.key)


def _speed(samples: int, seconds: float) -> float:
    return min(_FASTEST, samples / max(seconds, samples / _FASTEST))


def relative_speeds(members: Iterable[WorkerRecord]) -> dict[str, float]:
    """Return each worker's share against an equal one, by measured speed; 1 for all while they are about equal."""
    speeds = {one.name: one.samples_per_s for one in members}
    known = sorted(speed for speed in speeds.values() if speed > 0)
    if not known:
        return dict.fromkeys(speeds, 1.0)
    median = known[(len(known) - 1) // 2]
    ratios = {name: speed / median if speed > 0 else 1.0 for name, speed in speeds.items()}
    if all(1 / (1 + UNEQUAL) <= ratio <= 1 + UNEQUAL for ratio in ratios.values()):
        return dict.fromkeys(speeds, 1.0)
    return {name: min(_MOST, max(1 / _MOST, ratio)) for name, ratio in ratios.items()}


def apportion(total: int, weights: Mapping[str, float], unit: int = 1) -> dict[str, int]:
    """Divide `total` by weights in multiples of `unit`, the rest of the last unit included (largest remainder).

    Ties go by name, so that the same weights always give the same parts.
    """
    whole, rest = divmod(total, unit)
    scale = sum(weights.values())
    if not weights or scale <= 0:
        return dict.fromkeys(weights, 0)
    exact = {name: whole * weight / scale for name, weight in weights.items()}
    parts = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    order: Sequence[str] = sorted(weights, key=lambda name: (parts[name] - exact[name], name))
    for name in order[: whole - sum(parts.values())]:
        parts[name] += 1
    samples = {name: part * unit for name, part in parts.items()}
    if rest:
        least = min(samples, key=lambda name: (samples[name] / weights[name], name))
        samples[least] += rest
    return samples
