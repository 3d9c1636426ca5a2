"""Recordings and live streams to windows of `length` samples, one every `hop`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from har_edge.data.recording import Recording, Samples, Window
from har_edge.data.tabular import UNKNOWN_LABEL
from har_edge.errors import ConfigError, DataError

# Windows of 5.12 s with half overlap (256 samples at 50 Hz) are those of Ravi et al., "Activity recognition from
# accelerometer data", IAAI 2005; half overlap is that of Bao and Intille, Pervasive 2004. Banos et al., "Window size
# impact in human activity recognition", Sensors 14(4), 2014, compare 0.25 to 7 s. Rounded to 5 s: 250 samples here.
DEFAULT_LENGTH_S = 5.0
DEFAULT_OVERLAP = 0.5


def default_window(rate_hz: float) -> tuple[int, int]:
    """Return length and hop in samples of the default window at this rate (250 and 125 at 50 Hz)."""
    length = max(1, round(DEFAULT_LENGTH_S * rate_hz))
    return length, max(1, round(length * (1 - DEFAULT_OVERLAP)))


def windows(recording: Recording, length: int, hop: int, *, within_activity: bool) -> Iterator[Window]:
    """Yield the windows of a recording; their samples are views of it.

    With `within_activity`, as for training, windows start anew at each segment's start, no window crosses the boundary
    of an activity or a gap, and segments of unknown activity are left out. Without, as on a live stream, one window
    starts every `hop` samples from the last gap on, and a window of mixed activities has no label.
    """
    _check_window(length, hop)
    changes = np.flatnonzero(np.diff(recording.labels)) + 1
    starts = sorted({*recording.starts, *(changes.tolist() if within_activity else ())})
    stops = np.append(changes, len(recording))
    seq = 0
    for begin, end in zip(starts, [*starts[1:], len(recording)], strict=True):
        if within_activity and begin < end and recording.labels[begin] == UNKNOWN_LABEL:
            continue
        for start in range(begin, end - length + 1, hop):
            stop = start + length
            uniform = stop <= stops[np.searchsorted(stops, start, side="right")]
            label = int(recording.labels[start]) if uniform else UNKNOWN_LABEL
            samples = {source: values[start:stop] for source, values in recording.samples.items()}
            yield Window(recording.stream, seq, start, samples, None if label == UNKNOWN_LABEL else label)
            seq += 1


class Windower:
    """Cuts a live stream into windows, in constant memory: one window of samples, whatever is pushed.

    Gives the same windows as `windows(..., within_activity=False)`; their samples are copies.
    """

    def __init__(self, stream: str, length: int, hop: int) -> None:
        """Start a stream at row 0; ConfigError for a length or hop below 1."""
        _check_window(length, hop)
        self._stream = stream
        self._length = length
        self._hop = hop
        self._buffer: dict[str, Samples] = {}
        self._labels = np.full(length, UNKNOWN_LABEL, np.int16)
        self._filled = 0
        self._skip = 0
        self._slip = 0
        self._row = 0
        self._seq = 0

    @property
    def seq(self) -> int:
        """The number of the next window."""
        return self._seq

    @property
    def missing(self) -> int:
        """How many samples the next window still needs."""
        return self._skip + self._length - self._filled

    def push(self, samples: Mapping[str, Samples], labels: npt.NDArray[np.int16] | None = None) -> list[Window]:
        """Take the next samples, float32 [n, channels] of each source, and return the windows they complete.

        `labels` is int16 [n], or None where nobody knows the activity. Raises DataError where the sources, their
        channels or their numbers of samples do not agree with each other or with what came before.
        """
        count = self._check(samples, labels)
        made: list[Window] = []
        row = min(self._skip, count)
        self._skip -= row
        while row < count:
            taken = min(count - row, self._length - self._filled)
            place = slice(self._filled, self._filled + taken)
            for source, values in samples.items():
                self._buffer[source][place] = values[row : row + taken]
            self._labels[place] = UNKNOWN_LABEL if labels is None else labels[row : row + taken]
            self._filled += taken
            row += taken
            if self._filled == self._length:
                made.append(self._take(self._row + row - self._length))
                skipped = min(self._skip, count - row)
                self._skip -= skipped
                row += skipped
        self._row += count
        return made

    def gap(self, skip: int = 0, seq: int | None = None) -> None:
        """Start anew: samples were lost, so no window holds samples from before and after.

        The next window begins after `skip` more samples, and is number `seq` where one is given.
        """
        self._filled = 0
        self._skip = skip
        self._slip = 0
        self._seq = self._seq if seq is None else seq

    def slip(self, samples: int) -> None:
        """Let the window after the next begin so many samples later than one hop on, or earlier; once."""
        self._slip = max(samples, 1 - self._hop)

    def _take(self, start: int) -> Window:
        samples = {source: values.copy() for source, values in self._buffer.items()}
        label = int(self._labels[0])
        known = label != UNKNOWN_LABEL and bool((self._labels == label).all())
        window = Window(self._stream, self._seq, start, samples, label if known else None)
        self._seq += 1
        hop, self._slip = self._hop + self._slip, 0
        kept = max(0, self._length - hop)
        for values in self._buffer.values():
            values[:kept] = values[self._length - kept :].copy()
        self._labels[:kept] = self._labels[self._length - kept :].copy()
        self._filled = kept
        self._skip = max(0, hop - self._length)
        return window

    def _check(self, samples: Mapping[str, Samples], labels: npt.NDArray[np.int16] | None) -> int:
        came = {source: values.shape for source, values in samples.items()}
        counts = {shape[0] if len(shape) == 2 else -1 for shape in came.values()}
        if len(counts) != 1 or -1 in counts or (labels is not None and labels.shape != (min(counts),)):
            known = "" if labels is None else f" and labels {labels.shape}"
            raise DataError(f"samples of {self._stream} have shapes {came}{known}, expected [n, channels] with one n")
        if not self._buffer:
            self._buffer = {source: np.zeros((self._length, shape[1]), np.float32) for source, shape in came.items()}
        expected = {source: values.shape[1] for source, values in self._buffer.items()}
        channels = {source: shape[1] for source, shape in came.items()}
        if channels != expected:
            raise DataError(f"samples of {self._stream} have channels {channels}, expected {expected} as before")
        return min(counts)


def _check_window(length: int, hop: int) -> None:
    if length < 1 or hop < 1:
        raise ConfigError(f"windows of {length} samples every {hop}, expected both to be at least 1")
