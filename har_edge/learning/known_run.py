"""Another training of a name: whether one is alive, and what one that died left at the broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import CheckpointNote, RunState, TrainingFile, TrainingJob, TrainingProgress
from har_edge.timing import TRAINING_LISTEN_S


@dataclass(frozen=True, slots=True)
class KnownRun:
    """The traces of a run at the broker: the author of one that is alive, the last checkpoint, and its job's start.

    `files` are those that its job and its checkpoint name.
    """

    alive: str
    note: CheckpointNote | None
    started: float = 0.0
    files: tuple[TrainingFile, ...] = field(default=(), compare=False)


def look_for_run(bus: Bus, topics: Topics, run: str, clock: Callable[[], float] = time.monotonic) -> KnownRun:
    """Listen for another training of this name: one that is alive says how far it is once a second."""
    bus.subscribe([topics.training(run, level) for level in ("job", "progress", "checkpoint")])
    until, quiet = clock() + TRAINING_LISTEN_S, clock() + TRAINING_LISTEN_S / 4
    alive, heard, started = "", False, 0.0
    note: CheckpointNote | None = None
    files: tuple[TrainingFile, ...] = ()
    while clock() < (until if heard else quiet) and not alive:
        for delivery in bus.poll(0.05):
            bus.acknowledge(delivery)
            match decode(delivery, topics):
                case TrainingEvent(message=TrainingJob() as job):
                    heard, started, files = True, job.started, files_of(job)
                case TrainingEvent(message=CheckpointNote() as said):
                    note = said
                case TrainingEvent(message=TrainingProgress(author=author, state=state), retained=False):
                    alive = author if state in (RunState.WAITING, RunState.RUNNING) else alive
    return KnownRun(alive, note, started, files + ((note.file,) if note is not None else ()))


def files_of(job: TrainingJob) -> tuple[TrainingFile, ...]:
    """Return the files that workers of a job fetch."""
    return (job.graph, job.spec, *(one.file for one in job.blocks))


def refuse_second(found: KnownRun, run: str) -> None:
    """Raise ConfigError where a training of this name is alive."""
    if found.alive:
        raise ConfigError(
            f"a training {run!r} is running already (by {found.alive}); wait for it, stop it, or choose another "
            "--run-name"
        )


def look_session(run: str, instance: str) -> Session:
    """Return a session for looking at a run, and for fetching its checkpoint."""
    return Session(f"look-{run[:40]}-{instance}", clean_start=True)
