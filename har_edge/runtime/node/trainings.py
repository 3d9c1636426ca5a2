"""The trainings that a node takes part in: it hears of them from their retained jobs, and a thread each computes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from har_edge.protocol.events import Event, TrainingEvent, Unreadable
from har_edge.protocol.topics import Kind, Topics
from har_edge.protocol.training import TrainingJob, TrainingLevel

_log = logging.getLogger(__name__)
# More at a time would only slow each other down.
MAX_TRAININGS = 4


class TrainingHandle(Protocol):
    """The interface that a node needs of a training (learning/training_thread.py)."""

    job: TrainingJob

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """Ask it to end."""

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""


StartTraining = Callable[[TrainingJob], TrainingHandle]


class Trainings:
    """Starts a training for each job, and ends it when the job is taken away, or another server has made it anew."""

    def __init__(self, topics: Topics, start: StartTraining) -> None:
        self.filter = topics.training("+", TrainingLevel.JOB.value)
        self.handles: dict[str, TrainingHandle] = {}
        self._start = start
        self._ending: list[TrainingHandle] = []

    def handle(self, event: Event) -> None:
        """Take a job, or the empty message that takes it away; all else is passed over."""
        if isinstance(event, Unreadable) and event.kind is Kind.TRAINING:
            _log.warning("dropped a job: %s", event.reason)
        if not isinstance(event, TrainingEvent) or event.topic.levels[1] != TrainingLevel.JOB.value:
            return
        job = event.message
        known = self.handles.get(event.run)
        if known is not None and (not isinstance(job, TrainingJob) or job.author != known.job.author):
            known.stop()
            self._ending.append(self.handles.pop(event.run))
        if not isinstance(job, TrainingJob) or event.run in self.handles:
            return
        if len(self.handles) >= MAX_TRAININGS:
            _log.warning("training %s is left out: %d others run here already", event.run, MAX_TRAININGS)
            return
        self.handles[event.run] = handle = self._start(job)
        _log.info("training %s begins", event.run)
        handle.start()

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
