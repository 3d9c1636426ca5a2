"""The faults of a device's lines, the limits from which they count, and their log (docs/reference/device-faults.md)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum

_log = logging.getLogger(__name__)


class Fault(Enum):
    """A kind of fault; the value names its counter."""

    UNREADABLE = "unreadable_lines"
    LATE = "late_lines"
    NOT_FINITE = "not_finite_samples"
    GAP = "gaps"
    JUMP = "clock_jumps"
    STUCK = "stuck_channels"
    RATE = "off_rate"
    SILENCE = "silences"
    CLOCK = "off_clock_samples"
    DROPPED = "dropped_windows"


# 2001-09-09; what is earlier is no time since 1970 of a device that runs now, but one since its start.
EARLIEST_S = 1e9
COUNTED = ("lines", *(fault.value for fault in Fault), "lost_samples", "held_samples", "withheld_windows")


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """The limits from which a fault counts; docs/reference/device-faults.md says what follows from each.

    `held`: samples in a row that the last value may stand for. `gap_periods`: time between two samples that is a gap.
    `back_s`, `forward_s`: a clock that moves so far was set. `silence_s`, `silence_periods`: time without a line (the
    longer of both) that is a gap where lines carry no time. `stuck_s`: time without change. `rate_s`, `arrival_s`: time
    over which the rate is measured by time stamps and by arrival. `warn`, `refuse`: deviation of the rate, as a share.
    `quiet_s`: silence that is said while it lasts. `skew_s`: how far time stamps may be from the clock here.
    `repeat_s`: time between two lines in the log about the same fault.
    """

    held: int = 5
    gap_periods: float = 1.5
    back_s: float = 1.0
    forward_s: float = 60.0
    silence_s: float = 1.0
    silence_periods: float = 10.0
    stuck_s: float = 60.0
    rate_s: float = 10.0
    arrival_s: float = 30.0
    warn: float = 0.02
    refuse: float = 0.10
    quiet_s: float = 10.0
    skew_s: float = 5.0
    repeat_s: float = 60.0


@dataclass(slots=True)
class FaultLog:
    """Counts faults; logs each kind when it first occurs, and then at most once every `repeat_s` seconds.

    `last` has the last text of each kind.
    """

    repeat_s: float = 60.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    last: dict[Fault, str] = field(default_factory=dict)
    _said: dict[Fault, float] = field(default_factory=dict)
    _unsaid: dict[Fault, int] = field(default_factory=dict)

    def record(self, fault: Fault, now: float, text: str, *, count: int = 1) -> None:
        """Count a fault, and log the text unless this kind was logged a moment ago."""
        self.count(fault.value, count)
        self.last[fault] = text
        if fault in self._said and 0 <= now - self._said[fault] < self.repeat_s:
            self._unsaid[fault] = self._unsaid.get(fault, 0) + 1
            return
        since = self._unsaid.pop(fault, 0)
        self._said[fault] = now
        _log.warning("%s%s", text, f" ({since} more of the kind since the last such line)" if since else "")

    def count(self, name: str, count: int = 1) -> None:
        """Count something that needs no word."""
        self.counts[name] = self.counts.get(name, 0) + count
