"""Training windows, by reference and as arrays; no window crosses the boundary of an activity or a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from har_edge.data.recording import Recording, Samples
from har_edge.errors import DataError
from har_edge.evaluation.study import WindowKey

Indices = npt.NDArray[np.int64]

# An epoch takes one window every fifth of its length (1 s of 5 s at 50 Hz), from one of ten phases.
WINDOWS_A_LENGTH = 5
PHASES = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of all sources, float32 [n, length, channels] each, and their classes, int64 [n]."""

    samples: dict[str, Samples]
    classes: Indices

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, slots=True)
class Draw:
    """Windows by reference: the first row of each in `samples`, float32 [rows, channels] of each source."""

    samples: Mapping[str, Samples]
    length: int
    starts: Indices
    classes: Indices

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, chosen: npt.NDArray[np.int64] | slice) -> Draw:
        """Return some of these windows, by index."""
        return Draw(self.samples, self.length, self.starts[chosen], self.classes[chosen])

    def batch(self) -> Batch:
        """Return the windows as arrays."""
        views = {
            source: np.lib.stride_tricks.sliding_window_view(values, self.length, axis=0)
            for source, values in self.samples.items()
        }
        return Batch(
            {source: view.transpose(0, 2, 1)[self.starts] for source, view in views.items()}, self.classes.copy()
        )


class WindowPool:
    """Every training window of some recordings, of which each epoch draws a part.

    `label_ids` gives the label of each class; windows of any other label are left out. With `chosen`, only these
    windows are there: those of the random protocol (evaluation/protocol.py), half overlapping. Raises DataError when a
    class has no window.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        length: int,
        label_ids: Sequence[int],
        *,
        windows_a_length: int = WINDOWS_A_LENGTH,
        chosen: frozenset[WindowKey] | None = None,
    ) -> None:
        self._length = length
        self._hop = max(1, length // windows_a_length)
        self._step = max(1, self._hop // PHASES)
        self._repeats = 1
        known = {label: index for index, label in enumerate(label_ids)}
        starts: list[Indices] = []
        classes: list[Indices] = []
        offset = 0
        for recording in recordings:
            begins = _starts(recording, length, self._step) if chosen is None else _chosen(recording, chosen)
            index = np.array([known.get(int(label), -1) for label in recording.labels[begins]], np.int64)
            starts.append(begins[index >= 0] + offset)
            classes.append(index[index >= 0])
            offset += len(recording)
        self._starts = np.concatenate(starts) if starts else np.empty(0, np.int64)
        self._classes = np.concatenate(classes) if classes else np.empty(0, np.int64)
        missing = [label for label, index in known.items() if index not in self._classes]
        if missing or not known:
            streams = ", ".join(recording.stream for recording in recordings)
            raise DataError(
                f"labels {missing} have no window of {length} samples in {streams or 'no stream'}; a model needs "
                "windows of every class: train on more streams"
            )
        if chosen is not None:
            self._step, self._repeats = self._hop, max(1, round(length / 2 / self._hop))
        self._samples = {
            source: np.ascontiguousarray(np.concatenate([recording.samples[source] for recording in recordings]))
            for source in recordings[0].samples
        }

    @property
    def phases(self) -> int:
        """How many draws share out all windows."""
        return max(1, self._hop // self._step)

    def draw(self, phase: int = 0) -> Draw:
        """Return the windows of one epoch, from the phase-th (0-based) on.

        Chosen windows come all at once, as often as makes an epoch as long as any other.
        """
        if not 0 <= phase < self.phases:
            raise ValueError(f"phase {phase}: expected 0 to {self.phases - 1}")
        at = np.tile(np.arange(phase, len(self._starts), self.phases), self._repeats)
        return Draw(self._samples, self._length, self._starts[at], self._classes[at])


def _starts(recording: Recording, length: int, step: int) -> Indices:
    """Return the first rows of the windows that `windows(..., within_activity=True)` gives, one every `step`."""
    changes = np.flatnonzero(np.diff(recording.labels)) + 1
    bounds = sorted({*recording.starts, *changes.tolist(), len(recording)})
    found = [np.arange(begin, end - length + 1, step, dtype=np.int64) for begin, end in pairwise(bounds)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _chosen(recording: Recording, chosen: frozenset[WindowKey]) -> Indices:
    return np.array(sorted(start for stream, start in chosen if stream == recording.stream), np.int64)
