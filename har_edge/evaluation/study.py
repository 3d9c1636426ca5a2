"""The parts of a study of data reduction: variants to compare, training data, and the systems that come out.

A study fits one system for each variant and fold, and scores it through the code that a live pipeline runs. How systems
are fitted is not known here: a `Trainer` is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from har_edge.config.task import Task
from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows

# A window of a recording: the name of its stream and its first row.
WindowKey = tuple[str, int]

NO_REDUCTION = "none"


class Downstream(Enum):
    """The input of the classifier: the codes themselves, or windows restored from them."""

    CODES = "codes"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to reduce and to classify, compared with others by a study.

    `reducer` is a specification that may be a recipe (`pca:3`, to be fitted on the training streams); `grouping` says
    which channels are reduced together; `precision` is `int8` or `float`, that of the classifier.
    """

    reducer: str
    downstream: Downstream
    grouping: str = "location"
    precision: str = "int8"

    @property
    def unreduced(self) -> Variant:
        """The variant whose model restored windows enter: the same without reduction."""
        return Variant(NO_REDUCTION, Downstream.CODES, self.grouping, self.precision)

    @property
    def needs_unreduced(self) -> bool:
        """Whether fitting takes the system of the unreduced variant of the same fold."""
        return self.downstream is Downstream.RESTORE and self.reducer != NO_REDUCTION

    def __str__(self) -> str:
        return f"{self.reducer} ({self.downstream.value}, {self.grouping}, {self.precision})"


@dataclass(frozen=True, slots=True)
class Training:
    """The data that a system may be fitted to: recordings, already regrouped, and nothing else.

    `chosen` holds the windows that may be used, by stream and first row, and is there for the random protocol alone;
    None stands for every window of the recordings.
    """

    recordings: Sequence[Recording]
    chosen: frozenset[WindowKey] | None = None

    def windows(self, length: int, hop: int) -> Iterator[Window]:
        """Yield the windows to train on, one every `hop` samples; none crosses the boundary of an activity or a gap.

        If windows were chosen, yield exactly those; `hop` then has no effect.
        """
        for recording in self.recordings:
            if self.chosen is None:
                cut = windows(recording, length, hop, within_activity=True)
                yield from (window for window in cut if window.label is not None)
                continue
            starts = sorted(start for stream, start in self.chosen if stream == recording.stream)
            for seq, start in enumerate(starts):
                samples = {source: values[start : start + length] for source, values in recording.samples.items()}
                yield Window(recording.stream, seq, start, samples, int(recording.labels[start]))


@dataclass(frozen=True, slots=True)
class System:
    """All that a pipeline folder holds: the task, the model (.tflite), and the files of its reducers by name."""

    task: Task
    model: bytes
    files: Mapping[str, bytes]


class Trainer(Protocol):
    """Fits systems; the same variant, training and seed give the same bytes."""

    def fit(self, variant: Variant, training: Training, seed: int, unreduced: System | None) -> System:
        """Return a system that can be deployed.

        For RESTORE `unreduced` is the system of reducer `none` in the same fold: its model is taken over, and only the
        reducers are fitted, where they need it. For CODES it is None, and a model is trained on the codes.
        """
