"""Runs a training server on a bus: its checkpoints, its scores, the ranges for int8, and what it leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from har_edge.errors import HarEdgeError
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.quantization.tensor_ranges import RangeCollection
from har_edge.learning.run_service import TURN_S, RunService
from har_edge.learning.server.checkpoints import encode_checkpoint
from har_edge.learning.server.held_out import EvaluationThread
from har_edge.learning.server.server import TrainingServer
from har_edge.mqtt.bus import Bus, Outgoing
from har_edge.protocol.artifacts import MAX_CHUNKS, count_chunks
from har_edge.protocol.topics import TrainingTopics
from har_edge.protocol.training import RunState, TrainingFile, TrainingProgress
from har_edge.runtime.artifacts import clear
from har_edge.runtime.sender import drain
from har_edge.runtime.stop import Stop


class TrainingService(RunService[TrainingServer]):
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
        super().__init__(bus, server, files, evaluation, checkpoint, say, show)
        self._inherited = {one.sha256: one.size for one in inherited}
        self._measuring = False

    def _evaluate(self) -> None:
        for request in self._server.evaluations:
            self._evaluation.ask(request)
        self._server.evaluations.clear()
        for score in self._evaluation.poll():
            self._server.record.note_evaluation(score.epoch, score.accuracy, score.loss, score.samples)
            self._tell_score(score)

    def _store(self, now: float) -> None:
        if not self._server.checkpoints:
            return
        checkpoint = self._server.checkpoints[-1]
        self._server.checkpoints.clear()
        self._keep(encode_checkpoint(checkpoint), checkpoint.round, checkpoint.epoch, now)

    def _publish(self, content: bytes, round_: int, epoch: int) -> None:
        super()._publish(content, round_, epoch)
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

    def _progress(self) -> TrainingProgress:
        progress = super()._progress()
        if self._measuring:  # its workers are still needed
            detail = "workers measure the ranges of tensors, for int8"
            progress = structs.replace(progress, state=RunState.RUNNING, detail=detail)
        return progress

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
        if keep:
            self._wait_for_files()
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
        self._remove_messages(("job",), keep)
        if self._published or not keep:  # else a run that goes on still needs the checkpoint of the one before
            self._send(self._remove_inherited())
        self._remove_files(keep)


def run_training(
    service: TrainingService, server: TrainingServer, stop: Stop, measure: Callable[[], None] = lambda: None
) -> None:
    """Run a training until it has ended, or until `stop`; ConfigError when another one of its name took over.

    `measure` is called at the end of one that has finished, while its workers are still there.
    """
    try:
        service.run(stop)
        if server.state is RunState.FINISHED:
            measure()
        service.finish()
    except Exception:
        if not server.rival:  # the other one has the topics of this run now
            service.abandon()
        raise
