"""Runs the command's part of a split training on a bus: its checkpoints, its scores, and what it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.run_service import TURN_S, RunService
from har_edge.learning.server.held_out import EvaluationThread
from har_edge.learning.server.run_record import EvaluationRequest
from har_edge.learning.split.checkpoint import encode_split_checkpoint, save_whole
from har_edge.learning.split.record import EpochScore
from har_edge.learning.split.server import SplitServer
from har_edge.learning.split.state import WholeState
from har_edge.learning.updates.vectors import WeightLike, flatten
from har_edge.mqtt.bus import Bus
from har_edge.protocol.split_training import SplitLevel
from har_edge.protocol.training import RunState, TrainingProgress
from har_edge.runtime.sender import drain
from har_edge.runtime.stop import Stop


class SplitService(RunService[SplitServer]):
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
        super().__init__(bus, server, files, evaluation, checkpoint, say, show)
        self._weights, self._scored = weights, 0

    def _store(self, now: float) -> None:
        """Store the last checkpoint, and have its epoch scored where one ends with it."""
        server = self._server
        if not server.checkpoints:
            return
        whole = server.checkpoints[-1]
        server.checkpoints.clear()
        settings = server.settings
        content = encode_split_checkpoint(save_whole(whole, server.record, settings.hash, settings.job.run, now))
        self._keep(content, whole.step, settings.order.epoch(whole.step), now)
        self._score(whole)

    def _score(self, whole: WholeState) -> None:
        epochs, rest = divmod(whole.step, self._server.settings.order.steps_an_epoch)
        if rest == 0 and epochs > self._scored:
            self._scored = epochs
            self._evaluation.ask(EvaluationRequest(epochs, flatten(whole.weights, self._weights)))

    def _evaluate(self) -> None:
        for score in self._evaluation.poll():
            row = EpochScore(score.epoch, score.accuracy, score.loss, score.samples)
            self._server.record.scores.append(row)
            self._tell_score(score)

    def finish(self) -> None:
        """Wait for the last score, and take away what workers need no more; the checkpoint of a stopped run stays."""
        self._store(time.monotonic())
        while self._evaluation.busy:
            self._evaluate()
            self._bus.poll(TURN_S)
        self._evaluation.close()
        keep = {self._published} if self._server.state is RunState.STOPPED else set[str]()
        self._remove_messages((SplitLevel.SPLIT.value, SplitLevel.STAGES.value), keep)
        self._remove_files(keep)
        if keep:
            self._wait_for_files()
        self._announce(time.monotonic())
        self._tell()
        drain(self._bus)


def run_split_training(service: SplitService, stop: Stop) -> None:
    """Run a split training until it has ended, or until `stop`; ConfigError when another of its name took over."""
    service.run(stop)
    service.finish()
