"""Training windows as arrays, from recordings; no window crosses the boundary of an activity or a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError
from har_edge.streams.recording import Recording, Samples, Window
from har_edge.streams.windows import windows

# Windows can start every tenth of a second at 50 Hz; each epoch takes a part of them.
STEP = 5


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of all sources, float32 [n, length, channels] each, and their classes, int64 [n]."""

    samples: Mapping[str, Samples]
    classes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.classes)


class WindowPool:
    """Every training window of some recordings, of which each epoch draws a part.

    `label_ids` gives the label of each class; windows of any other label are left out. Raises DataError when a class
    has no window.
    """

    def __init__(self, recordings: Sequence[Recording], length: int, label_ids: Sequence[int]) -> None:
        self._classes = {label: index for index, label in enumerate(label_ids)}
        self._windows: list[Window] = [
            window
            for recording in recordings
            for window in windows(recording, length, STEP, within_activity=True)
            if window.label in self._classes
        ]
        missing = sorted(set(self._classes) - {window.label for window in self._windows if window.label is not None})
        if missing:
            streams = ", ".join(recording.stream for recording in recordings)
            raise DataError(
                f"labels {missing} have no window of {length} samples in {streams or 'no stream'}; a model needs "
                "windows of every class: train on more streams"
            )

    def draw(self, hop: int, phase: int = 0) -> Batch:
        """Return one window every `hop` samples (a multiple of STEP), from the phase-th (0-based) on."""
        if hop % STEP or not 0 <= phase < hop // STEP:
            raise ValueError(f"hop {hop}, phase {phase}: expected a multiple of {STEP} and a phase below hop / {STEP}")
        drawn = self._windows[phase :: hop // STEP]
        samples = {
            source: np.stack([window.samples[source] for window in drawn]) for source in self._windows[0].samples
        }
        classes = np.array([self._classes[window.label] for window in drawn if window.label is not None], np.int64)
        return Batch(samples, classes)
