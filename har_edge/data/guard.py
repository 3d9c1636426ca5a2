"""What devices do wrong, and what is done about it (docs/reference/device-faults.md). No clock: times are given."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from har_edge.data.recording import Samples
from har_edge.units import duration

_log = logging.getLogger(__name__)
_Flags = npt.NDArray[np.bool_]


class Fault(Enum):
    """What may be wrong; the value names its counter."""

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
class Limits:
    """Where behaviours change; docs/reference/device-faults.md says what each does.

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
class Journal:
    """Counts faults; logs each kind when it first occurs, and then at most once every `repeat_s` seconds.

    `last` has the last text of each kind.
    """

    repeat_s: float = 60.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    last: dict[Fault, str] = field(default_factory=dict)
    _said: dict[Fault, float] = field(default_factory=dict)
    _unsaid: dict[Fault, int] = field(default_factory=dict)

    def note(self, fault: Fault, now: float, text: str, *, count: int = 1) -> None:
        """Count a fault, and log the text unless this kind was logged a moment ago."""
        self.add(fault.value, count)
        self.last[fault] = text
        if fault in self._said and 0 <= now - self._said[fault] < self.repeat_s:
            self._unsaid[fault] = self._unsaid.get(fault, 0) + 1
            return
        since = self._unsaid.pop(fault, 0)
        self._said[fault] = now
        _log.warning("%s%s", text, f" ({since} more of the kind since the last such line)" if since else "")

    def add(self, name: str, count: int = 1) -> None:
        """Count something that needs no word."""
        self.counts[name] = self.counts.get(name, 0) + count


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of all channels, float32 [channels], all finite; `fresh` where a segment starts with it."""

    time_s: float
    values: Samples
    fresh: bool


class Guard:
    """Takes what a device sends, line by line, and gives samples that may be put into windows.

    `stamped` says that times are those of the samples; otherwise they are those of the lines' arrival.
    """

    def __init__(
        self, channels: Sequence[str], rate_hz: float, journal: Journal, *, stamped: bool, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._channels, self._rate_hz, self._journal, self._stamped = tuple(channels), rate_hz, journal, stamped
        self._time: float | None = None
        self._unreadable = 0
        self._last: Samples | None = None  # None between two segments
        self._age = np.zeros(len(channels), np.int64)  # samples in a row for which the last value stood
        self._holding = False  # whether any age is not 0
        self._stuck = _Stuck(self._channels, max(1, math.ceil(self._limits.stuck_s * rate_hz)))
        self._rate = _RateMeter(rate_hz, self._limits, stamped)

    @property
    def refuses(self) -> bool:
        """Whether the measured rate is so far off that windows would mislead the model."""
        return self._stamped and self._rate.deviation > self._limits.refuse

    def miss(self, now: float, reason: str, fault: Fault = Fault.UNREADABLE) -> None:
        """Note a line that is no sample."""
        self._unreadable += 1
        self._journal.note(fault, now, f"dropped a line: {reason}")

    def end_segment(self) -> None:
        """Let the next sample start a segment: the device or the connection to it is new."""
        self._time, self._unreadable = None, 0
        self._break()

    def take(self, time_s: float, values: Samples, now: float) -> list[Sample]:
        """Return the samples that this reading makes: none, itself, or itself after readings that were unreadable.

        `values` is float32 [channels] and may hold NaN and infinity; `now` is the time for the log.
        """
        before = self._time
        self._report_clock(time_s, now)
        filled = self._place(time_s, now)
        if filled is None:
            return []
        finite = np.isfinite(values)
        if finite.all():
            self._report_stuck(self._stuck.update(values), now)
            if not filled and before is not None and self._last is not None and not self._holding:
                self._last = values
                return [Sample(time_s, values, fresh=False)]
        else:
            self._report_stuck(self._stuck.update(np.where(finite, values, np.nan)), now)
        return self._mend(time_s, values, ~finite, before, filled, now)

    def _mend(
        self, time_s: float, values: Samples, missing: _Flags, before: float | None, filled: int, now: float
    ) -> list[Sample]:
        """Fill in what is missing, or start or end a segment."""
        if missing.any():
            names = ", ".join(name for name, one in zip(self._channels, missing, strict=True) if one)
            self._journal.note(Fault.NOT_FINITE, now, f"no finite number came for {names}; holding the last ones")
        dropped = filled + bool(missing.any())
        held = max(int((self._age + filled + 1)[missing].max(initial=0)), int(self._age.max()) + filled)
        if self._last is None:
            self._journal.add("lost_samples", dropped)
        elif held > self._limits.held:
            self._gap(now, dropped, f"no value for {held} in a row, and at most {self._limits.held} are held")
        else:
            return self._go_on(before, time_s, values, missing, filled)
        return [] if missing.any() else self._start(time_s, values)

    def _start(self, time_s: float, values: Samples) -> list[Sample]:
        self._last, self._age, self._holding = values, np.zeros_like(self._age), False
        return [Sample(time_s, values, fresh=True)]

    def _go_on(
        self, before: float | None, time_s: float, values: Samples, missing: _Flags, filled: int
    ) -> list[Sample]:
        assert self._last is not None and before is not None
        self._journal.add("held_samples", filled + bool(missing.any()))
        step = (time_s - before) / (filled + 1)
        samples = [Sample(before + step * (row + 1), self._last, fresh=False) for row in range(filled)]
        self._last = np.where(missing, self._last, values)
        self._age = np.where(missing, self._age + filled + 1, 0)
        self._holding = bool(missing.any())
        return [*samples, Sample(time_s, self._last, fresh=False)]

    def _place(self, time_s: float, now: float) -> int | None:
        """Return how many readings are to be filled in before this one; None where it is too late itself."""
        limits, before = self._limits, self._time
        if before is None:
            self._time, self._unreadable = time_s, 0
            return 0
        apart = time_s - before
        jumped = apart <= -limits.back_s or (self._stamped and apart > limits.forward_s)
        if self._stamped and not jumped and apart <= 0:
            self.miss(now, f"its time {time_s:.6f} is not after {before:.6f} of the one before", Fault.LATE)
            return None
        unreadable, self._unreadable, self._time = self._unreadable, 0, time_s
        if jumped or apart < 0:
            self._journal.note(Fault.JUMP, now, f"times jumped by {apart:+.3f} s; starting a new segment")
            self._break()
            return 0
        self._report_rate(apart, now)
        lost = self._lost(apart, unreadable)
        if lost > unreadable or unreadable > limits.held:
            between = f"{duration(apart)} and {unreadable} dropped lines between two samples"
            self._gap(now, max(lost, unreadable), f"{between}, expected {duration(1 / self._rate_hz)} and none")
            return 0
        return lost

    def _lost(self, apart: float, unreadable: int) -> int:
        """Return how many samples are missing between two readings, of which so many lines were unreadable."""
        periods, limits = apart * self._rate_hz, self._limits
        if self._stamped:
            return max(1, round(periods) - 1) if periods > limits.gap_periods else 0
        longest = max(limits.silence_s * self._rate_hz, limits.silence_periods)
        return max(unreadable, round(periods) - 1) if periods > longest else unreadable

    def _gap(self, now: float, lost: int, reason: str) -> None:
        self._journal.add("lost_samples", lost)
        if self._last is not None:
            self._journal.note(Fault.GAP, now, f"a gap ({lost} lost): {reason}")
        self._break()

    def _break(self) -> None:
        self._last, self._age = None, np.zeros_like(self._age)

    def _report_stuck(self, fresh: list[str], now: float) -> None:
        if not fresh:
            return
        for name in fresh:
            self._journal.add(f"stuck {name}")
        others = "while others moved" if self._stuck.moving else "in any channel; is the device alive"
        text = f"no change for {self._limits.stuck_s:g} s {others}: {', '.join(fresh)}"
        self._journal.note(Fault.STUCK, now, text, count=len(fresh))

    def _report_clock(self, time_s: float, now: float) -> None:
        """Name time stamps that do not agree with the clock here; samples go on."""
        ahead_s = time_s - now
        uptime = time_s < EARLIEST_S <= now
        if not self._stamped or not (uptime or abs(ahead_s) > self._limits.skew_s):
            return
        if uptime:
            what = f"its times count from some start of the device ({time_s:.10g} s came), not from 1970"
            mend = "send seconds since 1970, or leave out --timestamps"
        else:
            way = "ahead of" if ahead_s > 0 else "behind"
            what = f"its times are {_span(abs(ahead_s))} {way} the clock here"
            mend = "`timedatectl set-ntp true` on both"
        effect = "its windows do not join those of other devices, and latencies are wrong"
        self._journal.note(Fault.CLOCK, now, f"{what}: {effect}; {mend}")

    def _report_rate(self, apart: float, now: float) -> None:
        if not self._rate.add(apart) or self._rate.deviation <= self._limits.warn:
            return
        what = "time stamps" if self._stamped else "arrival of lines, as they have no --timestamps"
        then = "; windows are withheld" if self.refuses else ""
        self._journal.note(
            Fault.RATE,
            now,
            f"{self._rate.measured_hz:.4g} samples a second came by the {what}; expected {self._rate_hz:g}{then}",
        )


def _span(seconds: float) -> str:
    """Return a time as people say it, from seconds to days."""
    for length, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * length or (seconds >= length and unit != "days"):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


class _Stuck:
    """Finds channels that have not changed for `limit` samples."""

    def __init__(self, channels: Sequence[str], limit: int) -> None:
        self._channels, self._limit = channels, limit
        self._seen = np.full(len(channels), np.nan, np.float32)
        self._same = np.zeros(len(channels), np.int64)

    @property
    def moving(self) -> bool:
        return bool((self._same < self._limit).any())

    def update(self, values: Samples) -> list[str]:
        """Return the names of channels that are stuck since this reading; NaN, and what follows it, is a change."""
        self._same += 1
        self._same[values != self._seen] = 0
        self._seen = values
        if self._limit not in self._same:
            return []
        return [name for name, same in zip(self._channels, self._same, strict=True) if same == self._limit]


class _RateMeter:
    """Measures the rate of samples over one stretch of time after another.

    By time stamps, intervals of more than 1.5 times the median hold gaps and are left out; by arrival, where lines come
    in bunches, intervals that are silences.
    """

    def __init__(self, rate_hz: float, limits: Limits, stamped: bool) -> None:
        self._rate_hz, self._limits, self._stamped = rate_hz, limits, stamped
        self._count = max(20, math.ceil((limits.rate_s if stamped else limits.arrival_s) * rate_hz))
        self._apart: list[float] = []
        self.measured_hz = rate_hz

    @property
    def deviation(self) -> float:
        """How far the rate measured last is from the expected one, as a share of it."""
        return abs(self.measured_hz / self._rate_hz - 1)

    def add(self, apart: float) -> bool:
        """Add the time between two lines; tell whether that completes a measurement."""
        self._apart.append(apart)
        if len(self._apart) < self._count:
            return False
        intervals = np.array(self._apart)
        self._apart.clear()
        silence_s = max(self._limits.silence_s, self._limits.silence_periods / self._rate_hz)
        longest = self._limits.gap_periods * float(np.median(intervals)) if self._stamped else silence_s
        kept = intervals[intervals <= longest]
        total = float(kept.sum())
        self.measured_hz = len(kept) / total if total > 0 else math.inf
        return True
