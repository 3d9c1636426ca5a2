"""The trainings that a node takes part in: it hears of them from their retained jobs, and a thread each computes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from har_edge.protocol.events import Event, TrainingEvent, Unreadable
from har_edge.protocol.split_training import SplitJob, SplitLevel
from har_edge.protocol.topics import Kind, Topics
from har_edge.protocol.training import TrainingJob, TrainingLevel

_log = logging.getLogger(__name__)
# More at a time would only slow each other down.
MAX_TRAININGS = 4
AnyJob: TypeAlias = TrainingJob | SplitJob


class TrainingHandle(Protocol):
    """The interface that a node needs of a training (learning/worker/thread.py, learning/split/thread.py)."""

    @property
    def job(self) -> AnyJob:
        """The job that it takes part in."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""

    def start(self, after: TrainingHandle | None = None) -> None:
        """Begin, as soon as another one of the same run has ended."""

    def stop(self) -> None:
        """Ask it to end."""

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""


StartTraining = Callable[[AnyJob], TrainingHandle]
# A job, and the level of its topic.
_LEVELS = {TrainingLevel.JOB.value: TrainingJob, SplitLevel.SPLIT.value: SplitJob}


class Trainings:
    """Starts a training for each job, and ends it when the job is taken away, or another server has made it anew."""

    def __init__(self, topics: Topics, start: StartTraining, levels: Iterable[str] = tuple(_LEVELS)) -> None:
        self.filters = [topics.training("+", level) for level in levels]
        self.handles: dict[str, TrainingHandle] = {}
        self._start = start
        self._ending: list[TrainingHandle] = []

    def handle(self, event: Event) -> None:
        """Take a job, or the empty message that takes it away; all else is passed over."""
        if isinstance(event, Unreadable) and event.kind is Kind.TRAINING:
            _log.warning("dropped a job: %s", event.reason)
        if not isinstance(event, TrainingEvent) or event.topic.levels[1] not in _LEVELS:
            return
        job, level = event.message, event.topic.levels[1]
        key = _key_of(event.run, level)
        known = self.handles.get(key)
        if known is not None and (not isinstance(job, _LEVELS[level]) or job.author != known.job.author):
            known.stop()
            self._ending.append(self.handles.pop(key))
        if not isinstance(job, TrainingJob | SplitJob) or key in self.handles:
            return
        if len(self.handles) >= MAX_TRAININGS:
            _log.warning("training %s is left out: %d others run here already", event.run, MAX_TRAININGS)
            return
        # It still has the session of this run while it computes, and would take it back from the new one.
        self._ending = [one for one in self._ending if one.alive]
        before = next((one for one in reversed(self._ending) if _key(one.job) == key), None)
        self.handles[key] = handle = self._start(job)
        _log.info("training %s begins", event.run)
        handle.start(before)

    def leave(self, timeout_s: float) -> None:
        """End all trainings, and wait until they have."""
        self._ending += self.handles.values()
        self.handles.clear()
        deadline = time.monotonic() + timeout_s
        for handle in self._ending:
            handle.stop()
        for handle in self._ending:
            handle.join(max(0.0, deadline - time.monotonic()))
            if handle.alive:
                _log.warning("training %s did not end in time", handle.job.run)
        self._ending.clear()


def _key_of(run: str, level: str) -> str:
    return run if level == TrainingLevel.JOB.value else f"{run}/{level}"


def _key(job: AnyJob) -> str:
    return _key_of(job.run, next(level for level, kind in _LEVELS.items() if isinstance(job, kind)))
