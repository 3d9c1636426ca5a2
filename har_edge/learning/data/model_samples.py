"""Recorded windows as a listed model takes them: cut, grouped and encoded as its task says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from har_edge.config.task import Task, describe
from har_edge.data.files import read_recordings
from har_edge.data.grouping import regroup_recording
from har_edge.errors import ConfigError, DataError
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.data.datasets import Dataset, check_size
from har_edge.learning.data.input_layout import InputLayout
from har_edge.learning.personal.windows import WindowEncoder, cut_personal


def read_model_windows(
    where: Path, model: Path, task: Task, layout: InputLayout, streams: Sequence[str] | None = None
) -> Dataset:
    """Return the labelled windows of recordings as the inputs of a model, float32 [n, ...].

    The files of the task lie beside the model. `streams` names the persons, all by default. Raises DataError where no
    window has one of the task's labels.
    """
    described = describe(task, model.parent)
    recordings = read_recordings(described, where, streams)
    grouped = [regroup_recording(one, described, task.stream.grouping) for one in recordings]
    cut = [window for one in grouped for window in cut_personal(one, task)]
    if not cut:
        raise DataError(
            f"{where}: no window of {task.stream.length} rows with one of the labels {list(task.label_ids)}; expected "
            "longer recordings of one activity each"
        )
    check_size(len(cut), layout.shape, 4, str(where))
    channels = {source: values.shape[1] for source, values in grouped[0].samples.items()}
    encoder = WindowEncoder(task, Interpreter(model).inputs, channels, FolderFiles(model.parent, task.files))
    encoded = encoder.encode(cut)
    return Dataset(
        layout.join(encoded.inputs),
        encoded.y,
        tuple(task.labels),
        described.name,
        all(one.real for one in recordings) and not described.synthetic,
        sources=sources_of(task, layout),
        groups=np.array([window.stream for window in cut], np.str_),
        overlap=-(-task.stream.length // task.stream.hop) - 1,
    )


def sources_of(task: Task, layout: InputLayout) -> tuple[tuple[str, int], ...]:
    """Return the sources along the last axis of a sample, each with its channels.

    None where a sample is one input, or where the inputs are codes rather than windows.
    """
    by_tensor = {enters.tensor: source for source, enters in task.inputs.items() if enters.reducer == "none"}
    if not set(layout.names) <= set(by_tensor):
        return ()
    return tuple((by_tensor[name], width) for name, width in layout.widths)


def check_own_windows(task: Task, name: str) -> None:
    """Raise ConfigError for a model that takes codes: nodes have windows, and train on these alone."""
    coded = [f"{source} ({enters.reducer})" for source, enters in task.inputs.items() if enters.reducer != "none"]
    if coded and task.image is None:
        raise ConfigError(
            f"{name} takes codes of {', '.join(coded)}, and nodes have windows of their own; take a model of windows, "
            "such as float, or leave --own-data out"
        )
