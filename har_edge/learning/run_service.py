"""The turns of a training's server on a bus, whatever it trains: messages, files, checkpoints, scores and progress."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from har_edge.errors import ConfigError
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.server.checkpoints import store_checkpoint
from har_edge.learning.server.held_out import EvaluationThread, HeldOutScore
from har_edge.mqtt.bus import Bus, Delivery, Outgoing
from har_edge.protocol.text import escape
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import (
    CheckpointNote,
    RunState,
    TrainingFile,
    TrainingProgress,
    encode_progress,
    encode_training,
)
from har_edge.runtime.stop import Stop
from har_edge.timing import TRAINING_PROGRESS_S

TURN_S = 0.05
# A checkpoint takes at most this part of the link's time.
_CHECKPOINT_PART = 0.05
# The files that a stopped run leaves at the broker are sent for so long at most.
_LEAVE_S = 30.0


class RunJob(Protocol):
    """The names in the job of a run."""

    @property
    def run(self) -> str:
        """The name of the run."""

    @property
    def author(self) -> str:
        """The server that made the job."""


class RunSettings(Protocol):
    """The settings that every run has."""

    @property
    def topics(self) -> Topics:
        """The topics of the deployment."""

    @property
    def job(self) -> RunJob:
        """The job of the run."""

    @property
    def link_bytes_per_s(self) -> float:
        """The rate of the link."""

    @property
    def hash(self) -> str:
        """The hash of what has to be the same to go on from a checkpoint."""


class RunServer(Protocol):
    """A server as its service sees it: a pure machine that takes messages and the time."""

    rival: str

    @property
    def settings(self) -> RunSettings:
        """The settings of the run."""

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""

    @property
    def lines(self) -> list[str]:
        """The news, for people; who tells them empties it."""

    @property
    def lacking(self) -> list[str] | set[str]:
        """The files that a worker did not get; who sends them again empties it."""

    def handle(self, delivery: Delivery, now: float) -> list[Outgoing]:
        """Take a message; return what is to be sent."""

    def tick(self, now: float) -> list[Outgoing]:
        """Return what the time has made due."""

    def job_message(self) -> Outgoing:
        """Return the retained job."""

    def again(self) -> list[Outgoing]:
        """Return what is to be said again after the connection was made anew."""

    def halt(self, problem: str, now: float) -> None:
        """End the run before its last epoch."""

    def progress(self, time: float) -> TrainingProgress:
        """Return how far the run is; `time` is that of the wall clock."""


ServerT = TypeVar("ServerT", bound=RunServer)


class RunService(ABC, Generic[ServerT]):
    """One server on one bus. `show` gets the progress several times a second, `say` lines for people."""

    def __init__(
        self,
        bus: Bus,
        server: ServerT,
        files: PublishedFiles,
        evaluation: EvaluationThread,
        checkpoint: Path,
        say: Callable[[str], None],
        show: Callable[[TrainingProgress], None],
    ) -> None:
        self._bus, self._server, self._files, self._evaluation = bus, server, files, evaluation
        self._checkpoint, self._say, self._show = checkpoint, say, show
        self._contents: dict[str, bytes] = {}
        self._reconnects, self._due, self._disk_problem = -1, 0.0, ""
        self._published, self._published_at = "", -float("inf")
        bus.subscribe(server.filters)

    def content(self, sha256: str) -> bytes | None:
        """Return the content of the last checkpoint by its hash; None for another file."""
        return self._contents.get(sha256)

    def run(self, stop: Stop) -> None:
        """Take turns until the run has ended, or until `stop`; ConfigError when another one of its name took over."""
        while not self._server.ended:
            if stop.asked:
                self._server.halt("stopped by a signal", time.monotonic())
            self.step()

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
        self._tell()
        self._announce(now)

    # --- of each kind of training -------------------------------------------------------------------------------------

    @abstractmethod
    def _store(self, now: float) -> None:
        """Store the last checkpoint of the server, where there is a new one."""

    @abstractmethod
    def _evaluate(self) -> None:
        """Have weights scored, and take the scores that are done."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for the last score, and take away what workers need no more; the checkpoint of a stopped run stays."""

    def _progress(self) -> TrainingProgress:
        """Return how far the run is."""
        return self._server.progress(time.time())

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _keep(self, content: bytes, round_: int, epoch: int, now: float) -> None:
        """Keep a checkpoint on the disk, and at the broker as often as the link has time for it."""
        try:
            store_checkpoint(self._checkpoint, content)
            problem = ""
        except OSError as error:
            problem = f"checkpoint {self._checkpoint}: {error.strerror or error}; the run goes on without it"
        if problem and problem != self._disk_problem:
            self._say(problem)
        self._disk_problem = problem
        cost_s = len(content) / self._server.settings.link_bytes_per_s / _CHECKPOINT_PART
        if self._server.ended or now - self._published_at >= cost_s:
            self._published_at = now
            self._publish(content, round_, epoch)

    def _publish(self, content: bytes, round_: int, epoch: int) -> None:
        """Bring a checkpoint to the broker, then name it, then remove the one before."""
        settings, old = self._server.settings, self._published
        job, file = settings.job, TrainingFile(hashlib.sha256(content).hexdigest(), len(content))
        if file.sha256 == old:
            return
        self._contents = {file.sha256: content}
        self._files.add([file])
        note = CheckpointNote(
            run=job.run, author=job.author, file=file, settings=settings.hash, round=round_, epoch=epoch
        )
        topic = settings.topics.training(job.run, "checkpoint")
        self._send([Outgoing(topic, encode_training(note), retain=True), *self._files.remove([old])])
        self._published = file.sha256

    # --- what people and the broker hear ------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the news of the server; it may hold words of a node."""
        for line in self._server.lines:
            self._say(escape(line))
        self._server.lines.clear()

    def _tell_score(self, score: HeldOutScore) -> None:
        self._say(
            f"epoch {score.epoch}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f} on {score.samples} "
            "held-out samples"
        )

    def _announce(self, now: float) -> None:
        """Show the progress, and publish it once a second and at the end."""
        progress = self._progress()
        self._show(progress)
        if now >= self._due or progress.state in (RunState.FINISHED, RunState.STOPPED):
            self._due = now + TRAINING_PROGRESS_S
            topic = self._server.settings.topics.training(progress.run, "progress")
            self._send([Outgoing(topic, encode_progress(progress), retain=True)])

    def _send(self, messages: list[Outgoing]) -> None:
        for one in messages:
            self._bus.publish(one.topic, one.payload, retain=one.retain)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _wait_for_files(self) -> None:
        """Send the files that a run leaves at the broker."""
        until = time.monotonic() + _LEAVE_S
        while not self._files.done and time.monotonic() < until:
            self._files.pump(self._bus)
            self._bus.poll(TURN_S)

    def _remove_messages(self, levels: tuple[str, ...], keep: set[str]) -> None:
        """Remove retained messages of the run, and the note of its checkpoint where no file is to be kept."""
        topics, run = self._server.settings.topics, self._server.settings.job.run
        gone = [*levels, *([] if keep else ["checkpoint"])]
        self._send([Outgoing(topics.training(run, level), b"", retain=True) for level in gone])

    def _remove_files(self, keep: set[str]) -> None:
        """Remove the files of the run from the broker, but for those to be kept."""
        self._send(self._files.remove([one for one in list(self._files.sizes) if one not in keep]))
