"""Runs the command's part of a split training on a bus: moves bytes, stores checkpoints, has epochs scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from har_edge.errors import ConfigError
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.server.checkpoints import store_checkpoint
from har_edge.learning.server.held_out import EvaluationThread
from har_edge.learning.server.run_record import EvaluationRequest
from har_edge.learning.server.service import CHECKPOINT_PART, TURN_S
from har_edge.learning.split.checkpoint import encode_split_checkpoint, save_whole
from har_edge.learning.split.record import EpochScore
from har_edge.learning.split.server import SplitServer
from har_edge.learning.split.state import WholeState, hash_of
from har_edge.learning.updates.vectors import WeightLike, flatten
from har_edge.mqtt.bus import Bus, Outgoing
from har_edge.protocol.split_training import SplitLevel
from har_edge.protocol.text import escape
from har_edge.protocol.training import (
    CheckpointNote,
    RunState,
    TrainingFile,
    TrainingProgress,
    encode_progress,
    encode_training,
)
from har_edge.runtime.sender import drain
from har_edge.runtime.stop import Stop
from har_edge.timing import TRAINING_PROGRESS_S


class SplitService:
    """One server on one bus. `show` gets the progress several times a second, `say` lines for people."""

    def __init__(
        self,
        bus: Bus,
        server: SplitServer,
        files: PublishedFiles,
        evaluation: EvaluationThread,
        weights: tuple[WeightLike, ...],
        checkpoint: Path,
        say: Callable[[str], None],
        show: Callable[[TrainingProgress], None],
    ) -> None:
        self._bus, self._server, self._files, self._evaluation = bus, server, files, evaluation
        self._weights, self._checkpoint, self._say, self._show = weights, checkpoint, say, show
        self._reconnects, self._due, self._disk_problem = -1, 0.0, ""
        self._scored, self._contents = 0, dict[str, bytes]()
        self._published, self._published_at = "", -float("inf")
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
        self._take_scores()
        for line in server.lines:
            self._say(escape(line))  # it may hold words of a node
        server.lines.clear()
        self._announce(now)

    def _store(self, now: float) -> None:
        """Store the last checkpoint on the disk, and have its epoch scored where one ends with it."""
        server = self._server
        if not server.checkpoints:
            return
        whole = server.checkpoints[-1]
        server.checkpoints.clear()
        settings = server.settings
        content = encode_split_checkpoint(save_whole(whole, server.record, settings.hash, settings.job.run, now))
        try:
            store_checkpoint(self._checkpoint, content)
            problem = ""
        except OSError as error:
            problem = f"checkpoint {self._checkpoint}: {error.strerror or error}; the run goes on without it"
        if problem and problem != self._disk_problem:
            self._say(problem)
        self._disk_problem = problem
        if server.ended or now - self._published_at >= len(content) / settings.link_bytes_per_s / CHECKPOINT_PART:
            self._published_at = now
            self._publish(whole, content)
        self._score(whole)

    def _publish(self, whole: WholeState, content: bytes) -> None:
        """Bring a checkpoint to the broker, then name it, then remove the one before."""
        settings, old = self._server.settings, self._published
        job, file = settings.job, TrainingFile(hash_of(content), len(content))
        if file.sha256 == old:
            return
        self._contents = {file.sha256: content}
        self._files.add([file])
        note = CheckpointNote(
            run=job.run,
            author=job.author,
            file=file,
            settings=settings.hash,
            round=whole.step,
            epoch=settings.order.epoch(whole.step),
        )
        topic = settings.topics.training(job.run, "checkpoint")
        self._send([Outgoing(topic, encode_training(note), retain=True), *self._files.remove([old])])
        self._published = file.sha256

    def _score(self, whole: WholeState) -> None:
        epochs, rest = divmod(whole.step, self._server.settings.order.steps_an_epoch)
        if rest == 0 and epochs > self._scored:
            self._scored = epochs
            self._evaluation.ask(EvaluationRequest(epochs, flatten(whole.weights, self._weights)))

    def _take_scores(self) -> None:
        for score in self._evaluation.poll():
            row = EpochScore(score.epoch, score.accuracy, score.loss, score.samples)
            self._server.record.scores.append(row)
            self._say(
                f"epoch {score.epoch}: accuracy {score.accuracy:.4f}, loss {score.loss:.4f} on {score.samples} "
                "held-out samples"
            )

    def _announce(self, now: float) -> None:
        progress = self._server.progress(time.time())
        self._show(progress)
        if now >= self._due or self._server.ended:
            self._due = now + TRAINING_PROGRESS_S
            topic = self._server.settings.topics.training(progress.run, "progress")
            self._send([Outgoing(topic, encode_progress(progress), retain=True)])

    def _send(self, messages: list[Outgoing]) -> None:
        for one in messages:
            self._bus.publish(one.topic, one.payload, retain=one.retain)

    def finish(self) -> None:
        """Wait for the last score, and take away what workers need no more."""
        server = self._server
        self._store(time.monotonic())
        while self._evaluation.busy:
            self._take_scores()
            self._bus.poll(TURN_S)
        self._evaluation.close()
        topics, run = server.settings.topics, server.settings.job.run
        gone = [topics.training(run, SplitLevel.SPLIT.value), topics.training(run, SplitLevel.STAGES.value)]
        keep = {self._published} if server.state is RunState.STOPPED else set()
        if not keep:
            gone.append(topics.training(run, "checkpoint"))
        self._send([Outgoing(topic, b"", retain=True) for topic in gone])
        self._send(self._files.remove([one for one in list(self._files.sizes) if one not in keep]))
        until = time.monotonic() + 30
        while not self._files.done and keep and time.monotonic() < until:
            self._files.pump(self._bus)
            self._bus.poll(TURN_S)
        self._announce(time.monotonic())
        for line in server.lines:
            self._say(escape(line))  # it may hold words of a node
        server.lines.clear()
        drain(self._bus)


def run_split_training(service: SplitService, server: SplitServer, stop: Stop) -> None:
    """Run a split training until it has ended, or until `stop`; ConfigError when another of its name took over."""
    while not server.ended:
        if stop.asked:
            server.halt("stopped by a signal", time.monotonic())
        service.step()
    service.finish()
