"""Check the readings of a device, and fill in what is missing. No clock: times are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.data.faults import EARLIEST_S, Fault, FaultLog, ValidationLimits
from har_edge.data.recording import Samples
from har_edge.units import duration

_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of all channels, float32 [channels], all finite; `fresh` where a segment starts with it."""

    time_s: float
    values: Samples
    fresh: bool


class StreamValidator:
    """Takes what a device sends, line by line, and gives samples that may be put into windows.

    `stamped` says that times are those of the samples; otherwise they are those of the lines' arrival.
    """

    def __init__(
        self,
        channels: Sequence[str],
        rate_hz: float,
        faults: FaultLog,
        *,
        stamped: bool,
        limits: ValidationLimits | None = None,
    ) -> None:
        self._limits = limits or ValidationLimits()
        self._channels, self._rate_hz, self._faults, self._stamped = tuple(channels), rate_hz, faults, stamped
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

    def reject(self, now: float, reason: str, fault: Fault = Fault.UNREADABLE) -> None:
        """Note a line that is no sample."""
        self._unreadable += 1
        self._faults.record(fault, now, f"dropped a line: {reason}")

    def end_segment(self) -> None:
        """Let the next sample start a segment: the device or the connection to it is new."""
        self._time, self._unreadable = None, 0
        self._break()

    def validate(self, time_s: float, values: Samples, now: float) -> list[Sample]:
        """Return the samples that this reading makes: none, itself, or itself after readings that were unreadable.

        `values` is float32 [channels] and may hold NaN and infinity; `now` is the time for the log.
        """
        before = self._time
        self._report_clock(time_s, now)
        filled = self._check_time(time_s, now)
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
        return self._impute(time_s, values, ~finite, before, filled, now)

    def _impute(
        self, time_s: float, values: Samples, missing: _Flags, before: float | None, filled: int, now: float
    ) -> list[Sample]:
        """Fill in what is missing, or start or end a segment."""
        if missing.any():
            names = ", ".join(name for name, one in zip(self._channels, missing, strict=True) if one)
            self._faults.record(Fault.NOT_FINITE, now, f"no finite number came for {names}; holding the last ones")
        dropped = filled + bool(missing.any())
        held = max(int((self._age + filled + 1)[missing].max(initial=0)), int(self._age.max()) + filled)
        if self._last is None:
            self._faults.count("lost_samples", dropped)
        elif held > self._limits.held:
            self._gap(now, dropped, f"no value for {held} in a row, and at most {self._limits.held} are held")
        else:
            return self._hold(before, time_s, values, missing, filled)
        return [] if missing.any() else self._start(time_s, values)

    def _start(self, time_s: float, values: Samples) -> list[Sample]:
        self._last, self._age, self._holding = values, np.zeros_like(self._age), False
        return [Sample(time_s, values, fresh=True)]

    def _hold(self, before: float | None, time_s: float, values: Samples, missing: _Flags, filled: int) -> list[Sample]:
        assert self._last is not None and before is not None
        self._faults.count("held_samples", filled + bool(missing.any()))
        step = (time_s - before) / (filled + 1)
        samples = [Sample(before + step * (row + 1), self._last, fresh=False) for row in range(filled)]
        self._last = np.where(missing, self._last, values)
        self._age = np.where(missing, self._age + filled + 1, 0)
        self._holding = bool(missing.any())
        return [*samples, Sample(time_s, self._last, fresh=False)]

    def _check_time(self, time_s: float, now: float) -> int | None:
        """Return how many readings are to be filled in before this one; None where it is too late itself."""
        limits, before = self._limits, self._time
        if before is None:
            self._time, self._unreadable = time_s, 0
            return 0
        apart = time_s - before
        jumped = apart <= -limits.back_s or (self._stamped and apart > limits.forward_s)
        if self._stamped and not jumped and apart <= 0:
            self.reject(now, f"its time {time_s:.6f} is not after {before:.6f} of the one before", Fault.LATE)
            return None
        unreadable, self._unreadable, self._time = self._unreadable, 0, time_s
        if jumped or apart < 0:
            self._faults.record(Fault.JUMP, now, f"times jumped by {apart:+.3f} s; starting a new segment")
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
        self._faults.count("lost_samples", lost)
        if self._last is not None:
            self._faults.record(Fault.GAP, now, f"a gap ({lost} lost): {reason}")
        self._break()

    def _break(self) -> None:
        self._last, self._age = None, np.zeros_like(self._age)

    def _report_stuck(self, fresh: list[str], now: float) -> None:
        if not fresh:
            return
        for name in fresh:
            self._faults.count(f"stuck {name}")
        others = "while others moved" if self._stuck.moving else "in any channel; is the device alive"
        text = f"no change for {self._limits.stuck_s:g} s {others}: {', '.join(fresh)}"
        self._faults.record(Fault.STUCK, now, text, count=len(fresh))

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
        self._faults.record(Fault.CLOCK, now, f"{what}: {effect}; {mend}")

    def _report_rate(self, apart: float, now: float) -> None:
        if not self._rate.add(apart) or self._rate.deviation <= self._limits.warn:
            return
        what = "time stamps" if self._stamped else "arrival of lines, as they have no --timestamps"
        then = "; windows are withheld" if self.refuses else ""
        self._faults.record(
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

    def __init__(self, rate_hz: float, limits: ValidationLimits, stamped: bool) -> None:
        self._rate_hz, self._limits, self._stamped = rate_hz, limits, stamped
        self._count = max(20, math.ceil((limits.rate_s if stamped else limits.arrival_s) * rate_hz))
        self._apart: list[float] = []
        self.measured_hz = rate_hz

    @property
    def deviation(self) -> float:
        """How far the rate measured last is from the expected one, as a share of it."""
        return abs(self.measured_hz / self._rate_hz - 1)

    def add(self, apart: float) -> bool:
        """Add the time between two lines; return whether that completes a measurement."""
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
