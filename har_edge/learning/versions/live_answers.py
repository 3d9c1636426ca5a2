"""The live answers of the versions of a model, by generation: how many are right, where the truth is known."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from har_edge.protocol.events import Event, ResultsEvent
from har_edge.runtime.sink import Sink

# Windows of a generation that count: the last ones. And generations that are remembered.
RECENT, MOST_EPOCHS = 1000, 16
_ERRORS = 2.0


@dataclass(slots=True)
class LiveCount:
    """The last windows of one generation with a known truth, right or wrong, and how many others came."""

    right: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    others: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right answers; 0 without any."""
        return sum(self.right) / len(self.right) if self.right else 0.0


class LiveAnswers:
    """Counts results by generation, each window once."""

    def __init__(self) -> None:
        self._sink, self._counts = Sink(), OrderedDict[int, LiveCount]()

    def take(self, event: Event) -> None:
        """Count the results of a message."""
        for result in self._sink.take(event) if isinstance(event, ResultsEvent) else ():
            count = self._counts.setdefault(result.epoch, LiveCount())
            if result.truth is None:
                count.others += 1
            else:
                count.right.append(result.truth == result.label_id)
            while len(self._counts) > MOST_EPOCHS:
                self._counts.popitem(last=False)

    def of(self, epoch: int) -> LiveCount:
        """Return the count of a generation."""
        return self._counts.get(epoch, LiveCount())


def judge_live(older: LiveCount, newer: LiveCount, least: int) -> str | None:
    """Return what speaks against a new version by its live answers: "" for nothing, None while too few came.

    Both need `least` windows with a known truth. The new one must be worse by more than two standard errors of the
    difference of two shares: fewer right answers may be chance.
    """
    if len(newer.right) < least:
        return None
    if len(older.right) < least:
        return ""
    known = len(older.right) + len(newer.right)
    share = (sum(older.right) + sum(newer.right)) / known
    error = math.sqrt(share * (1 - share) * (1 / len(older.right) + 1 / len(newer.right)))
    if newer.accuracy >= older.accuracy - _ERRORS * error:
        return ""
    return (
        f"live accuracy {newer.accuracy:.4f} of {len(newer.right)} windows, against {older.accuracy:.4f} of "
        f"{len(older.right)} of the version before"
    )
