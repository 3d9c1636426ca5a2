"""The record of a run: rows for a table, figures for the progress, evaluations to be made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from har_edge.learning.server.aggregation import Contribution
from har_edge.learning.server.checkpoints import MAX_ROWS, EpochRow, RoundRow
from har_edge.learning.updates.vectors import Vector


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Weights whose accuracy on held-out samples is to be measured: those after an epoch."""

    epoch: int
    weights: Vector


# Samples a second are a mean over about so many seconds.
_SPEED_S = 5.0


@dataclass(slots=True)
class RunRecord:
    """The rows of a run, and its totals. `before_s` is the time that the run took before it was restarted."""

    rounds: list[RoundRow] = field(default_factory=list)
    epochs: list[EpochRow] = field(default_factory=list)
    total: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped: int = 0
    before_s: float = 0.0
    began: float | None = None
    samples_per_s: float = 0.0
    loss: float | None = None
    train_accuracy: float | None = None
    _marked: tuple[float, int] = (0.0, 0)

    def begin(self, now: float) -> None:
        """Note that the first round begins."""
        if self.began is None:
            self.began = now
            self._marked = (now, self.total)

    def seconds(self, now: float) -> float:
        """Return how long the run has trained."""
        return self.before_s + (now - self.began if self.began is not None else 0.0)

    def add_round(
        self, number: int, epoch: int, contributions: Iterable[Contribution], now: float, *, scored: bool = True
    ) -> None:
        """Note a round that has ended; without `scored`, its workers told neither loss nor right answers."""
        parts = [one for one in contributions if one.samples]
        samples = sum(one.samples for one in parts)
        self.total += samples
        if samples and scored:
            self.loss = sum(one.loss for one in parts) / samples
            self.train_accuracy = sum(one.correct for one in parts) / samples
        since, before = self._marked
        if now - since >= _SPEED_S or not self.samples_per_s:
            self.samples_per_s = (self.total - before) / (now - since) if now > since else 0.0
            self._marked = (now, self.total)
        row = RoundRow(
            number,
            epoch,
            round(self.seconds(now), 3),
            samples,
            self.loss if samples and scored else None,
            self.train_accuracy if samples and scored else None,
            sum(len(one.shares) for one in parts),
            self.sent_bytes,
            self.received_bytes,
            self.dropped,
        )
        self.rounds.append(row)
        del self.rounds[:-MAX_ROWS]

    def add_epoch(self, epoch: int, samples: int, skipped: int, now: float) -> None:
        """Note an epoch that has ended; its accuracy comes later."""
        self.epochs.append(EpochRow(epoch, round(self.seconds(now), 3), samples, skipped, None, None, 0))
        del self.epochs[:-MAX_ROWS]

    def note_evaluation(self, epoch: int, accuracy: float, loss: float, held_out: int) -> None:
        """Add what was measured on held-out samples to the row of an epoch."""
        for index, row in enumerate(self.epochs):
            if row.epoch == epoch:
                self.epochs[index] = EpochRow(epoch, row.seconds, row.samples, row.skipped, accuracy, loss, held_out)

    @property
    def evaluated(self) -> EpochRow | None:
        """The last epoch whose accuracy is known."""
        return next((row for row in reversed(self.epochs) if row.accuracy is not None), None)
