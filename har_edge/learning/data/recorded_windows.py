"""Windows of recordings as a labelled data set, with the person behind each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.config.task import Task, describe
from har_edge.data.description import StreamDescription, load_description
from har_edge.data.files import read_recordings
from har_edge.data.grouping import Grouping, regroup_recording
from har_edge.data.recording import Recording
from har_edge.data.windows import default_window, windows
from har_edge.errors import DataError
from har_edge.learning.data.datasets import Dataset, check_size


@dataclass(frozen=True, slots=True)
class WindowFormat:
    """How recordings become samples: their description, length and hop in rows, and the label of each class."""

    description: StreamDescription
    length: int
    hop: int
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    grouping: str = Grouping.LOCATION.value

    @classmethod
    def of_task(cls, task: Task, beside: Path) -> WindowFormat:
        """Return the windows that a model was trained on; `beside` is the folder of the model."""
        stream = task.stream
        labels = tuple(task.label_ids) or tuple(range(len(task.labels)))
        return cls(describe(task, beside), stream.length, stream.hop, tuple(task.labels), labels, stream.grouping)

    @classmethod
    def of_description(cls, name: str | Path, length: int | None = None) -> WindowFormat:
        """Return the windows of a data set, with a class for each of its labels but the null label.

        They have the default length, or another one with half overlap.
        """
        description = load_description(name)
        kept = [number for number in range(len(description.labels)) if number != description.null_label]
        usual, hop = default_window(description.rate_hz)
        length, hop = (usual, hop) if length is None else (length, max(1, length // 2))
        return cls(description, length, hop, tuple(description.labels[number] for number in kept), tuple(kept))


def read_windows(where: Path, layout: WindowFormat, streams: Sequence[str] | None = None) -> Dataset:
    """Return the labelled windows of recordings in a folder, zip or file; `streams` names the persons, all by default.

    Raises DataError where there are none.
    """
    return cut_windows(read_recordings(layout.description, where, streams), layout, str(where))


def cut_windows(recordings: Sequence[Recording], layout: WindowFormat, name: str) -> Dataset:
    """Return the windows of one activity each, float32 [n, length, channels of all sources], in order of time.

    `name` says in errors where the recordings are from; the data set is called after its description.
    """
    classes = {label: number for number, label in enumerate(layout.label_ids)}
    taken = []
    for recording in recordings:
        grouped = regroup_recording(recording, layout.description, layout.grouping)
        cut = windows(grouped, layout.length, layout.hop, within_activity=True)
        taken += [window for window in cut if window.label in classes]
    if not taken:
        raise DataError(
            f"{name}: no window of {layout.length} rows with one of the labels {list(layout.label_ids)}; expected "
            "longer recordings of one activity each"
        )
    sources = tuple((source, samples.shape[1]) for source, samples in taken[0].samples.items())
    shape = (layout.length, sum(width for _, width in sources))
    check_size(len(taken), shape, 4, name)
    x = np.empty((len(taken), *shape), np.float32)
    for number, window in enumerate(taken):
        np.concatenate(list(window.samples.values()), axis=1, out=x[number])
    return Dataset(
        x,
        np.array([classes[window.label] for window in taken if window.label is not None], np.int64),
        layout.labels,
        layout.description.name,
        all(recording.real for recording in recordings) and not layout.description.synthetic,
        sources=sources,
        groups=np.array([window.stream for window in taken], np.str_),
        overlap=-(-layout.length // layout.hop) - 1,
    )
