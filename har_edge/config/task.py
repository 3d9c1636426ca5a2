"""The task of a model: the stream that feeds it, the reducers of its sources, and the meaning of its output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import msgspec

from har_edge.codecs.spec import file_names
from har_edge.data.description import BUILT_IN, StreamDescription, load_description
from har_edge.errors import ConfigError

# Names of fitted files stand in reducer specifications, whose separators are : + , and =.
_FITTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(npz|tflite)")
_SLICE = re.compile(r"slice-\d+\.tflite")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StateRule(Enum):
    """The reaction of a stage to a stateful slice: refuse it, or zero its state before every window."""

    REFUSE = "refuse"
    RESET = "reset"


class StreamTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The windows that a model was trained on: stream description, length and hop in samples, grouping of sources."""

    description: str
    rate_hz: float
    length: int
    hop: int
    grouping: str = "location"


class SourceInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The input that the window of one source enters, and the reducer of its sensor.

    `files` maps the name of each file of a fitted reducer to its SHA-256; the files lie beside the pipeline file, or
    beside the model. Raises ValueError, which msgspec reports with its place, for other names and hashes.
    """

    tensor: str
    reducer: str = "none"
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name, sha256 in self.files.items():
            if not _FITTED.fullmatch(name) or _SLICE.fullmatch(name):
                raise ValueError(
                    f"files names {name!r}; expected a plain file name that ends in .npz or .tflite and is no slice's"
                )
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"files gives {name} the hash {sha256!r}; expected a SHA-256 as 64 hex digits")


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The task of a model.

    `inputs` maps each source to its input tensor. `output` is the tensor with one score for each class. `labels` names
    the classes by index, and `label_ids` holds the label of each in the recordings; a pipeline file may leave both out
    when the model itself names its classes. `state` matters only for a stateful model. Raises ValueError when two
    sources disagree on a file.
    """

    stream: StreamTask
    inputs: dict[str, SourceInput]
    output: str
    labels: list[str] = []
    label_ids: list[int] = []
    state: StateRule = StateRule.REFUSE

    def __post_init__(self) -> None:
        files = self.files
        for source, enters in self.inputs.items():
            for name, sha256 in enters.files.items():
                if files[name] != sha256:
                    raise ValueError(
                        f"file {name} of source {source!r} has sha256 {sha256}, but {files[name]} for another source; "
                        "expected one file of a name; give each its own name"
                    )

    @property
    def files(self) -> dict[str, str]:
        """The fitted files of all sources: name to SHA-256."""
        return {name: sha256 for enters in self.inputs.values() for name, sha256 in enters.files.items()}


def find_description(task: Task, beside: Path) -> Path | None:
    """Return the file that describes the stream of a task, beside its model or pipeline file; None for a built-in
    stream.

    Raises ConfigError when the file is missing.
    """
    name = task.stream.description
    if name in BUILT_IN:
        return None
    path = beside / name
    if not path.is_file():
        raise ConfigError(
            f"no stream description {str(path)!r}: the task names {name!r}; expected {' or '.join(BUILT_IN)}, or a "
            "TOML file beside the model or pipeline file; copy it there"
        )
    return path


def describe(task: Task, beside: Path) -> StreamDescription:
    """Return the description of a task's stream, ungrouped. Raises ConfigError for a missing or malformed file."""
    return load_description(find_description(task, beside) or task.stream.description)


def with_reducers(task: Task, reducers: Mapping[str, str]) -> Task:
    """Return the task with other reducers for some sources; hashes of files that these name are kept.

    Raises ConfigError for a source that the model does not take, and for a text that is no specification.
    """
    unknown = sorted(set(reducers) - set(task.inputs))
    if unknown:
        raise ConfigError(
            f"a reducer came for source {', '.join(unknown)}; expected sources that the model takes: "
            f"{', '.join(task.inputs)}"
        )
    inputs = dict(task.inputs)
    for source, spec in reducers.items():
        files = {name: task.files[name] for name in file_names(spec) if name in task.files}
        inputs[source] = msgspec.structs.replace(inputs[source], reducer=spec, files=files)
    return msgspec.structs.replace(task, inputs=inputs)


def with_hashes(task: Task, hashes: Mapping[str, str]) -> Task:
    """Return the task with the hashes of files that its reducers name and that have none yet."""
    inputs = {
        source: msgspec.structs.replace(
            enters,
            files={name: hashes[name] for name in file_names(enters.reducer) if name in hashes} | enters.files,
        )
        for source, enters in task.inputs.items()
    }
    return msgspec.structs.replace(task, inputs=inputs)
