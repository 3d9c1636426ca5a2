"""Lines of numbers from a device to windows, as they come. No clock and no file: bytes and times are given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.data.description import StreamDescription
from har_edge.data.faults import Fault, FaultLog, ValidationLimits
from har_edge.data.recording import Samples, Window
from har_edge.data.validation import Sample, StreamValidator
from har_edge.data.windows import Windower
from har_edge.units import plural

MAX_TIME_S = 1e11  # the year 5138; what is larger is no time in seconds
# Lines without a time: a window may begin a hop / ARRIVAL_PARTS off its place before it is corrected.
ARRIVAL_PARTS = 8


@dataclass(frozen=True, slots=True)
class LineLayout:
    """The meaning of the fields of a line.

    `channels` names them as `<source>.<channel>`; `columns` holds, for each source that windows have, the fields of its
    channels. With `stamped`, a time in seconds since 1970 comes before them.
    """

    channels: tuple[str, ...]
    columns: Mapping[str, tuple[int, ...]]
    delimiter: str
    stamped: bool

    @property
    def width(self) -> int:
        """How many fields a line has."""
        return len(self.channels) + self.stamped


def lay_out(
    described: StreamDescription, grouped: StreamDescription, sources: Sequence[str], *, stamped: bool
) -> LineLayout:
    """Return the layout of a device's lines: the channels of these sources, in the order in which `described` has them.

    `grouped` is the same description with the sources that windows have (data/grouping.py). Raises ConfigError for
    a source that it lacks.
    """
    taken = {source: grouped.files.columns[grouped.sources.index(grouped.source(source))] for source in sources}
    wanted = {column for columns in taken.values() for column in columns}
    names = {
        column: f"{source.name}.{channel}"
        for source, columns in zip(described.sources, described.files.columns, strict=True)
        for channel, column in zip(source.channels, columns, strict=True)
        if column in wanted
    }
    place = {column: index for index, column in enumerate(names)}
    columns = {source: tuple(place[column] for column in own) for source, own in taken.items()}
    return LineLayout(tuple(names.values()), columns, described.files.delimiter, stamped)


class LineSplitter:
    """Cuts bytes, as they come, into lines; holds at most one line of `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._overlong = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines that are complete, without their ends; None stands for one that was too long."""
        *lines, rest = (self._rest + data).split(b"\n")
        made: list[bytes | None] = [line.rstrip(b"\r") if len(line) <= self._limit else None for line in lines]
        if made and self._overlong:
            made[0] = None
        self._overlong = len(rest) > self._limit or (self._overlong and not lines)
        self._rest = b"" if self._overlong else rest
        return made

    def finish(self) -> list[bytes | None]:
        """Return the last line where it did not end; the next bytes begin a line."""
        return self.feed(b"\n") if self._rest or self._overlong else []


class LiveStream:
    """A device's stream: bytes in, windows out, each with the time at which its last sample was captured.

    All sensors of a stream cut windows at the same moments: window k begins at the first sample after k hops since
    1970. So windows of several devices join, whenever each was started, as far as their clocks agree; a rate that is a
    little off moves the begin of a window by whole samples now and then.
    """

    def __init__(
        self,
        stream: str,
        layout: LineLayout,
        rate_hz: float,
        length: int,
        hop: int,
        limits: ValidationLimits | None = None,
    ) -> None:
        """Start a stream; ConfigError for a length or hop below 1."""
        self._limits = limits or ValidationLimits()
        self._layout, self._rate_hz, self._length, self._hop = layout, rate_hz, length, hop
        self._faults = FaultLog(self._limits.repeat_s)
        self._validator = StreamValidator(
            layout.channels, rate_hz, self._faults, stamped=layout.stamped, limits=self._limits
        )
        self._windower = Windower(stream, length, hop)
        self._lines = LineSplitter(64 * (layout.width + 1))
        self._run = self._longest = 0  # samples without a gap: now, and at most
        self._heard: float | None = None
        self._silent = False
        self._tolerance = 1 if layout.stamped else max(1, hop // ARRIVAL_PARTS)

    @property
    def counts(self) -> Mapping[str, int]:
        """Lines, faults by kind, and what was lost, held and withheld, since the start."""
        return self._faults.counts

    def feed(self, data: bytes, now: float) -> list[tuple[float, Window]]:
        """Take what the device sent, which came at `now` (seconds since 1970); return the windows that are complete."""
        return [made for line in self._lines.feed(data) for made in self._take(line, now)]

    def finish(self, now: float) -> list[tuple[float, Window]]:
        """Take an unended last line; what comes next starts a new segment."""
        made = [made for line in self._lines.finish() for made in self._take(line, now)]
        self._validator.end_segment()
        return made

    def explain(self) -> str:
        """Say why no window was made, or what became of those that were."""
        counts, last = self.counts, self._faults.last
        if not counts["lines"]:
            return "no line came; expected one a sample, each with an end of line: is the device connected?"
        if not self._longest:
            dropped = last.get(Fault.UNREADABLE) or last.get(Fault.NOT_FINITE) or last.get(Fault.LATE, "")
            return f"{plural(counts['lines'], 'line')} came, and none is a sample; {dropped}"
        if counts["withheld_windows"]:
            return (
                f"{plural(counts['withheld_windows'], 'window')} withheld: {last.get(Fault.RATE, 'their rate is off')}"
            )
        if counts[Fault.DROPPED.value]:
            return f"{plural(counts[Fault.DROPPED.value], 'window')} dropped, since none could leave"
        most = f"{plural(counts['lines'], 'line')} came, with {plural(self._longest, 'sample')} at most without a gap"
        return (
            f"{most}; a window needs {self._length}, and up to {self._hop - 1} more before it begins "
            "(docs/how-to/live-devices.md)"
        )

    def tick(self, now: float) -> None:
        """Say, once, when the device has been silent for long; call it now and then."""
        if self._heard is None or now < self._heard:
            self._heard = now
        elif not self._silent and now - self._heard > self._limits.quiet_s:
            self._silent = True
            self._faults.record(Fault.SILENCE, now, f"no line for {self._limits.quiet_s:g} s: is the device connected?")

    def drop(self, waiting: int, now: float) -> None:
        """Note that a window was dropped because so many wait to be sent."""
        self._faults.record(Fault.DROPPED, now, f"dropped the oldest of {waiting} windows that wait to be sent")

    def _take(self, line: bytes | None, now: float) -> list[tuple[float, Window]]:
        self._heard, self._silent = now, False
        self._faults.count("lines")
        try:
            time_s, values = self._read(line, now)
        except ValueError as error:
            self._validator.reject(now, str(error))
            return []
        return [made for sample in self._validator.validate(time_s, values, now) for made in self._push(sample)]

    def _read(self, line: bytes | None, now: float) -> tuple[float, Samples]:
        """Return the time and the values of a line; ValueError says what is wrong with it."""
        layout = self._layout
        if line is None:
            raise ValueError(f"it is too long; expected {layout.width} numbers and an end of line")
        fields = line.split(layout.delimiter.encode())
        if len(fields) != layout.width:
            raise ValueError(_misfit(line, len(fields), layout))
        try:
            numbers = [float(field) for field in fields]
        except ValueError:
            raise ValueError(f"{_shown(line)} holds something that is no number") from None
        if b"_" in line:
            raise ValueError(f"{_shown(line)} holds something that is no number")
        time_s = numbers.pop(0) if layout.stamped else now
        if MAX_TIME_S <= time_s < 1000 * MAX_TIME_S:
            raise ValueError(f"its time is {time_s:.0f}, which looks like milliseconds; expected seconds since 1970")
        if not 0 <= time_s < MAX_TIME_S:
            raise ValueError(f"its time is {time_s}, expected seconds from 0 to {MAX_TIME_S:g}")
        with np.errstate(over="ignore"):
            return time_s, np.array(numbers, np.float64).astype(np.float32)

    def _push(self, sample: Sample) -> list[tuple[float, Window]]:
        self._run = 1 if sample.fresh else self._run + 1
        self._longest = max(self._longest, self._run)
        if sample.fresh:
            self._begin(sample.time_s)
        if self._windower.missing == 1:
            self._windower.slip(self._drift(sample.time_s))
        values = {source: sample.values[None, list(columns)] for source, columns in self._layout.columns.items()}
        made = [(sample.time_s, window) for window in self._windower.push(values)]
        if made and self._validator.refuses:
            self._faults.count("withheld_windows", len(made))
            return []
        return made

    def _begin(self, time_s: float) -> None:
        """Start a segment: the first window begins at the next multiple of the hop, half a sample early at most."""
        row = time_s * self._rate_hz
        seq = max(0, math.ceil((row - 0.5) / self._hop))
        if not self._layout.stamped and seq < self._windower.seq:  # lines come faster than in real time
            self._windower.gap()
        else:
            self._windower.gap(max(0, round(seq * self._hop - row)), seq)

    def _drift(self, time_s: float) -> int:
        """Return by how many samples the window after the one that ends at this time is to begin later than by count.

        A window that is more than half a hop off does not come in real time, and stays as it is.
        """
        due = (self._windower.seq + 1) * self._hop - time_s * self._rate_hz
        late = round(due - (self._hop - self._length + 1))
        return late if self._tolerance < abs(late) <= self._hop // 2 else 0


def _misfit(line: bytes, count: int, layout: LineLayout) -> str:
    """Say how many columns a line has, and by which other delimiter it would have as many as expected."""
    text = f"{plural(count, 'column')} ({_shown(line)}), expected {layout.width} with {layout.delimiter!r} between them"
    for name, pieces in (("white space", line.split()), *((repr(one), line.split(one.encode())) for one in ",;\t|")):
        if len(pieces) == layout.width:
            return (
                f"{text}; it has {layout.width} by {name}: set `delimiter` in the stream description, or at the device"
            )
    return text


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return repr(text if len(text) <= 40 else text[:37] + "...")
