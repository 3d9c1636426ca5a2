"""A model for one person: adapted to some of the person's windows, measured on others, listed in a catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from har_edge.config.catalog import FoundModel, ModelEntry
from har_edge.config.task import Task
from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup_recording
from har_edge.data.recording import Recording
from har_edge.errors import ModelError
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.model_entry import TrainingOrigin, kept_purpose, store_model
from har_edge.learning.personal.adaptation import AdaptationRecipe, AdaptedModel, Adapter, answers
from har_edge.learning.personal.windows import WindowEncoder, cut_personal, share_out
from har_edge.tflite.model import read_model


@dataclass(frozen=True, slots=True)
class PersonalModel:
    """An adapted model, with the answers of both models on windows of the person that were not trained on.

    `y`, `before` and `after` are classes of the held-out windows, int64 [n]. `activities` counts the classes that the
    person has windows of, `labelled` the windows adapted to.
    """

    person: str
    real: bool
    activities: int
    labelled: int
    y: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    adapted: AdaptedModel

    @property
    def accuracy_before(self) -> float:
        """The share of held-out windows that the model answered rightly."""
        return float((self.before == self.y).mean())

    @property
    def accuracy_after(self) -> float:
        """The share of held-out windows that the adapted model answers rightly."""
        return float((self.after == self.y).mean())


def check_trainable(found: FoundModel) -> None:
    """Raise ModelError for a model with inputs that are not float32, with its float master where one is known."""
    name = found.entry.name if found.entry else str(found.path)
    wrong = [port.name for port in Interpreter(found.path).inputs if port.dtype != np.float32]
    if not wrong:
        return
    master = found.entry.master if found.entry else None
    hint = f"take its float master: {master}" if master else "take the float file of this model"
    raise ModelError(f"{name} takes no float32 at {', '.join(wrong)}; expected a float model to train on: {hint}")


def adapt_to_person(
    found: FoundModel,
    task: Task,
    described: StreamDescription,
    recording: Recording,
    recipe: AdaptationRecipe,
    *,
    windows: int,
    early_stopping: bool | None = None,
) -> PersonalModel:
    """Adapt a model to the first windows of each activity of a person, and answer all others with both models.

    `described` is the stream as recordings have it. Raises ModelError for a model that is not float32, and DataError
    where the person has too few windows.
    """
    check_trainable(found)
    grouped = regroup_recording(recording, described, task.stream.grouping)
    parts = share_out(cut_personal(grouped, task), task.stream.length, windows)
    channels = {source: values.shape[1] for source, values in grouped.samples.items()}
    files = FolderFiles(found.path.parent, task.files)
    encoder = WindowEncoder(task, Interpreter(found.path).inputs, channels, files)
    labelled, held_out = encoder.encode(parts.labelled), encoder.encode(parts.held_out)
    model = read_model(found.path)
    adapter = Adapter(model, len(task.labels), recipe.trained)
    adapted = adapter.adapt(labelled, recipe, early_stopping=early_stopping)
    return PersonalModel(
        recording.stream,
        recording.real and not described.synthetic,
        len(np.unique(labelled.y)),
        len(labelled),
        held_out.y,
        answers(model.data, task.output, held_out),
        answers(adapted.content, task.output, held_out),
        adapted,
    )


def store_personal(personal: PersonalModel, found: FoundModel, task: Task, out: Path, *, command: str) -> ModelEntry:
    """Write the adapted model, the files of its reducers and its entry in the manifest.json beside it.

    Raises DataError where the disk is full or the folder cannot be written, ModelError for a manifest of another kind.
    """
    base = found.entry
    kind = "" if personal.real else ", SYNTHETIC"
    origin = TrainingOrigin(
        f"{base.data if base else 'unknown'}; adapted to {personal.labelled} windows of {personal.person}{kind}",
        personal.real and (base is None or base.real),
        tuple({*(base.trained_on if base else ()), personal.person}),
        command,
    )
    return store_model(personal.adapted.content, kept_purpose(found, task, out.parent), origin, out)
