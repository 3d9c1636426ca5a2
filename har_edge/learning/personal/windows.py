"""The windows of one person: a few that are labelled for training, and those that share no row with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.files import NO_FILES, ReducerFiles
from har_edge.codecs.packing import pack
from har_edge.config.task import Task
from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.errors import DataError, ModelError
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Port
from har_edge.learning.personal.adaptation import LabelledInputs


@dataclass(frozen=True, slots=True)
class PersonalWindows:
    """Windows to train on and windows to test with; no row of a recording is in both."""

    labelled: list[Window]
    held_out: list[Window]


def cut_personal(recording: Recording, task: Task) -> list[Window]:
    """Return the windows of one activity each that the task has as a class."""
    cut = windows(recording, task.stream.length, task.stream.hop, within_activity=True)
    return [window for window in cut if window.label in set(task.label_ids)]


def share_out(
    cut: Sequence[Window], length: int, count: int, generator: np.random.Generator | None = None
) -> PersonalWindows:
    """Return `count` labelled windows of each activity that do not overlap each other, and all that overlap none.

    The labelled ones are the first of each activity, as when a person begins to use the device; with a generator they
    are drawn. Raises DataError where an activity has too few windows, or nothing is left to test with.
    """
    labelled: list[Window] = []
    for label in sorted({window.label for window in cut if window.label is not None}):
        own = [window for window in cut if window.label == label]
        order = own if generator is None else [own[at] for at in generator.permutation(len(own))]
        chosen: list[Window] = []
        for window in order:
            if len(chosen) < count and not any(overlap(window, other, length) for other in chosen):
                chosen.append(window)
        if len(chosen) < count:
            raise DataError(
                f"label {label} has {len(own)} windows of {length} rows, of which {len(chosen)} do not overlap; "
                f"expected {count}: record more of it, or ask for fewer"
            )
        labelled += chosen
    held_out = [window for window in cut if not any(overlap(window, other, length) for other in labelled)]
    if not held_out:
        raise DataError("all windows overlap with those to train on, and none is left to test with; record more")
    return PersonalWindows(labelled, held_out)


def overlap(one: Window, other: Window, length: int) -> bool:
    """Return whether two windows of a recording share a row."""
    return one.stream == other.stream and abs(one.start - other.start) < length


class WindowEncoder:
    """Makes of windows what a float model takes, through the reducers of its task: codes, restored windows, or all."""

    def __init__(
        self, task: Task, ports: Sequence[Port], channels: Mapping[str, int], files: ReducerFiles = NO_FILES
    ) -> None:
        known = {port.name: port for port in ports}
        self._classes = {label: number for number, label in enumerate(task.label_ids)}
        self._encoders = []
        for source, entry in task.inputs.items():
            port = known.get(entry.tensor)
            if port is None or port.dtype != np.float32:
                kind = "has no such input" if port is None else f"takes {port.dtype.name} there"
                raise ModelError(f"input {entry.tensor!r} of source {source}: the model {kind}; expected float32")
            reducer = make_reducer(entry.reducer, task.stream.length, channels[source], files)
            adapt = make_input_adapter(source, reducer, port, task.stream.length, channels[source])
            self._encoders.append((source, port, reducer, adapt))

    def encode(self, cut: Sequence[Window]) -> LabelledInputs:
        """Return the windows as the model takes them, with the class of each."""
        inputs = {
            port.name: np.concatenate([adapt(pack(reducer, [reducer.encode(one.samples[source])])) for one in cut])
            for source, port, reducer, adapt in self._encoders
        }
        y = [self._classes[window.label] for window in cut if window.label is not None]
        return LabelledInputs(inputs, np.array(y, np.int64))
