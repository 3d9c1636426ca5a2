"""Runs a training server on a bus: moves bytes, stores checkpoints, has epochs scored, tells people how far it is."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import structs

from har_edge.errors import ConfigError, HarEdgeError
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.quantization.tensor_ranges import RangeCollection
from har_edge.learning.server.checkpoints import Checkpoint, encode_checkpoint, store_checkpoint
from har_edge.learning.server.held_out import EvaluationThread
from har_edge.learning.server.server import TrainingServer
from har_edge.mqtt.bus import Bus, Outgoing, Session
from har_edge.protocol.artifacts import MAX_CHUNKS, count_chunks
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.text import escape
from har_edge.protocol.topics import Topics, TrainingTopics
from har_edge.protocol.training import (
    CheckpointNote,
    RunState,
    TrainingFile,
    TrainingJob,
    TrainingProgress,
    encode_progress,
    encode_training,
)
from har_edge.runtime.artifacts import clear
from har_edge.runtime.sender import drain
from har_edge.runtime.stop import Stop
from har_edge.timing import TRAINING_LISTEN_S, TRAINING_PROGRESS_S

TURN_S = 0.05
# A checkpoint takes at most this part of the link's time.
CHECKPOINT_PART = 0.05


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


class TrainingService:
    """One server on one bus. `show` gets the progress several times a second, `say` lines for people.

    `inherited` are the files that an earlier server of this run left: they go once a checkpoint of this one stands.
    """

    def __init__(
        self,
        bus: Bus,
        server: TrainingServer,
        files: PublishedFiles,
        evaluation: EvaluationThread,
        checkpoint: Path,
        say: Callable[[str], None],
        show: Callable[[TrainingProgress], None],
        inherited: tuple[TrainingFile, ...] = (),
    ) -> None:
        self._bus, self._server, self._files, self._evaluation = bus, server, files, evaluation
        self._checkpoint, self._say, self._show = checkpoint, say, show
        self._contents: dict[str, bytes] = {}
        self._reconnects, self._due, self._disk_problem = -1, 0.0, ""
        self._published_at, self._published = -float("inf"), ""
        self._inherited = {one.sha256: one.size for one in inherited}
        self._measuring = False
        bus.subscribe(server.filters)

    def content(self, sha256: str) -> bytes | None:
        """Return the content of the last checkpoint by its hash; None for another file."""
        return self._contents.get(sha256)

    def step(self) -> None:
        """Wait a moment for messages, and do what they and the time have made due."""
        bus, server = self._bus, self._server
        came = bus.poll(TURN_S)
        now = time.monotonic()
        for delivery in came:
            bus.acknowledge(delivery)
            self._send(server.handle(delivery, now))
        if bus.connected and bus.traffic.reconnects != self._reconnects:
            self._reconnects = bus.traffic.reconnects
            self._send([server.job_message(), *server.again()])
        self._send(server.tick(now))
        if server.rival:
            raise ConfigError(f"another training of this name took over (by {server.rival}); choose another --run-name")
        for sha256 in server.lacking:
            self._files.again(sha256)
        server.lacking.clear()
        self._files.pump(bus)
        self._store(now)
        self._evaluate()
        for line in server.lines:
            self._say(escape(line))  # it may hold words of a node
        server.lines.clear()
        self._announce(now)

    def _evaluate(self) -> None:
        for request in self._server.evaluations:
            self._evaluation.ask(request)
        self._server.evaluations.clear()
        for score in self._evaluation.poll():
            self._server.record.note_evaluation(score.epoch, score.accuracy, score.loss, score.samples)
            self._say(
                f"epoch {score.epoch}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f} on {score.samples} "
                "held-out samples"
            )

    def _store(self, now: float) -> None:
        """Store the last checkpoint on the disk and at the broker."""
        if not self._server.checkpoints:
            return
        checkpoint = self._server.checkpoints[-1]
        self._server.checkpoints.clear()
        content = encode_checkpoint(checkpoint)
        try:
            store_checkpoint(self._checkpoint, content)
            problem = ""
        except OSError as error:
            problem = f"checkpoint {self._checkpoint}: {error.strerror or error}; the run goes on without it"
        if problem and problem != self._disk_problem:
            self._say(problem)
        self._disk_problem = problem
        cost_s = len(content) / self._server.settings.link_bytes_per_s / CHECKPOINT_PART
        if self._server.ended or now - self._published_at >= cost_s:
            self._published_at = now
            self._publish(checkpoint, content)

    def _publish(self, checkpoint: Checkpoint, content: bytes) -> None:
        """Bring a checkpoint to the broker, then name it, then remove the one before."""
        job, old = self._server.settings.job, self._published
        file = TrainingFile(hashlib.sha256(content).hexdigest(), len(content))
        if file.sha256 == old:
            return
        self._contents = {file.sha256: content}
        self._files.add([file])
        note = CheckpointNote(
            run=job.run,
            author=job.author,
            file=file,
            settings=checkpoint.settings,
            round=checkpoint.round,
            epoch=checkpoint.epoch,
        )
        topic = self._server.settings.topics.training(job.run, "checkpoint")
        self._send([Outgoing(topic, encode_training(note), retain=True), *self._files.remove([old])])
        self._published = file.sha256
        self._send(self._remove_inherited())

    def _remove_inherited(self) -> list[Outgoing]:
        """Return the messages that remove what an earlier server of this run left, and this one does not need."""
        topics, left = self._server.settings.topics, self._inherited
        self._inherited = {}
        if sum(map(count_chunks, left.values())) > MAX_CHUNKS:  # whoever wrote that job; `doctor --clear` asks a person
            return []
        files = TrainingTopics(topics.base, topics.pipeline)
        return [
            one
            for sha256, size in left.items()
            if sha256 not in self._files.sizes
            for one in clear(files, sha256, count_chunks(size))
        ]

    def _announce(self, now: float) -> None:
        progress = self._server.progress(time.time())
        if self._measuring:  # its workers are still needed
            detail = "workers measure the ranges of tensors, for int8"
            progress = structs.replace(progress, state=RunState.RUNNING, detail=detail)
        self._show(progress)
        if now >= self._due or (self._server.ended and not self._measuring):
            self._due = now + TRAINING_PROGRESS_S
            topic = self._server.settings.topics.training(progress.run, "progress")
            self._send([Outgoing(topic, encode_progress(progress), retain=True)])

    def _send(self, messages: list[Outgoing]) -> None:
        for one in messages:
            self._bus.publish(one.topic, one.payload, retain=one.retain)

    def measure_ranges(self, collection: RangeCollection, file: TrainingFile, stop: Stop) -> None:
        """Let workers measure ranges with a file of the store, until all have answered or the time is over."""
        bus, server, now = self._bus, self._server, time.monotonic()
        bus.subscribe(collection.filters)
        self._files.add([file])
        self._measuring = True
        while not collection.ended(now) and not stop.asked:
            came = bus.poll(TURN_S)
            now = time.monotonic()
            for delivery in came:
                bus.acknowledge(delivery)
                collection.handle(delivery)
                self._send(server.handle(delivery, now))
            self._files.pump(bus)
            if self._files.done:
                self._send(collection.tick(now))
            self._evaluate()
            self._announce(now)
        self._measuring = False

    def finish(self) -> None:
        """Wait for the last score, and take away what workers need no more; the checkpoint of a stopped run stays."""
        server = self._server
        self._store(time.monotonic())
        while self._evaluation.busy or server.evaluations:
            self._evaluate()
            self._bus.poll(TURN_S)
        self._evaluation.close()
        keep = {self._published} if server.state is RunState.STOPPED else set[str]()
        until = time.monotonic() + 30
        while not self._files.done and keep and time.monotonic() < until:
            self._files.pump(self._bus)
            self._bus.poll(TURN_S)
        self._leave(keep)
        self._announce(time.monotonic())
        drain(self._bus)

    def abandon(self) -> None:
        """Take away what workers need no more after an error, where the broker can still be reached."""
        with contextlib.suppress(HarEdgeError):
            self._leave({self._published})
            drain(self._bus)

    def _leave(self, keep: set[str]) -> None:
        """Remove the job and the files of this run, and the note of its checkpoint where no file is to be kept."""
        topics, run = self._server.settings.topics, self._server.settings.job.run
        gone = [topics.training(run, "job"), *([] if keep else [topics.training(run, "checkpoint")])]
        self._send([Outgoing(topic, b"", retain=True) for topic in gone])
        if self._published or not keep:  # else a run that goes on still needs the checkpoint of the one before
            self._send(self._remove_inherited())
        self._send(self._files.remove([one for one in list(self._files.sizes) if one not in keep]))


def run_training(
    service: TrainingService, server: TrainingServer, stop: Stop, measure: Callable[[], None] = lambda: None
) -> None:
    """Run a training until it has ended, or until `stop`; ConfigError when another one of its name took over.

    `measure` is called at the end of one that has finished, while its workers are still there.
    """
    try:
        while not server.ended:
            if stop.asked:
                server.halt("stopped by a signal", time.monotonic())
            service.step()
        if server.state is RunState.FINISHED:
            measure()
        service.finish()
    except Exception:
        if not server.rival:  # the other one has the topics of this run now
            service.abandon()
        raise
