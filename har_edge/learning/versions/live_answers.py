"""The live answers of the versions of a model, by generation: how many are right, where the truth is known.

Nobody knows the truth of live pictures: of detectors of anomalies it counts how many pictures each calls anomalous.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from har_edge.protocol.events import Event, ResultsEvent
from har_edge.runtime.sink import Sink

# Windows of a generation that count: the last ones. And generations that are remembered.
RECENT, MOST_EPOCHS = 1000, 16
_ERRORS = 2.0


@dataclass(slots=True)
class LiveCount:
    """The last windows of one generation with a known truth, right or wrong, and how many others came.

    `alarms` says of the last of these others that a detector judged whether it called them anomalous.
    """

    right: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    others: int = 0
    alarms: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def accuracy(self) -> float:
        """The share of right answers; 0 without any."""
        return sum(self.right) / len(self.right) if self.right else 0.0

    @property
    def alarm_share(self) -> float:
        """The share of pictures that were called anomalous; 0 without any."""
        return sum(self.alarms) / len(self.alarms) if self.alarms else 0.0


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
                if result.anomaly is not None:
                    count.alarms.append(result.anomaly.anomaly)
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
    difference of two shares: fewer right answers may be chance. Detectors are judged by the pictures that they call
    anomalous where no truth is known: most pictures are normal, so many more of these are false alarms.
    """
    if not newer.right and len(newer.alarms) >= least:
        return _judge_alarms(older, newer, least)
    if len(newer.right) < least:
        return None
    if len(older.right) < least or _excess(newer.right, older.right) >= -_ERRORS:
        return ""
    return (
        f"live accuracy {newer.accuracy:.4f} of {len(newer.right)} windows, against {older.accuracy:.4f} of "
        f"{len(older.right)} of the version before"
    )


def _judge_alarms(older: LiveCount, newer: LiveCount, least: int) -> str:
    if len(older.alarms) < least or _excess(newer.alarms, older.alarms) <= _ERRORS:
        return ""
    return (
        f"it calls {newer.alarm_share:.1%} of {len(newer.alarms)} live pictures anomalous, against "
        f"{older.alarm_share:.1%} of {len(older.alarms)} of the version before"
    )


def _excess(newer: Collection[bool], older: Collection[bool]) -> float:
    """Return how much larger the share of the newer one is, in standard errors of the difference; 0 for equal ones."""
    share = (sum(older) + sum(newer)) / (len(older) + len(newer))
    error = math.sqrt(share * (1 - share) * (1 / len(older) + 1 / len(newer)))
    return (sum(newer) / len(newer) - sum(older) / len(older)) / error if error else 0.0
