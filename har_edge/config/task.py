"""What a model is for: which stream feeds it, through which reducers, and what its answer means."""

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
    """What a stage does about a slice that remembers: refuse it, or set its state back to zero before every window."""

    REFUSE = "refuse"
    RESET = "reset"


class StreamTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The windows a model was trained on: a stream description, length and hop in samples, how sources are grouped."""

    description: str
    rate_hz: float
    length: int
    hop: int
    grouping: str = "location"


class SourceInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the window of one source enters the model, and the reducer its sensor uses.

    `files` maps the name of each file that the reducer was fitted into to its SHA-256; they lie beside the pipeline
    file, or beside the model. Raises ValueError, which msgspec reports with its place, for other names and hashes.
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
    """What a model is for.

    `inputs` maps each source to its input tensor; `output` is the tensor with one score a class; `labels` names the
    classes by index, and `label_ids` holds the label that the recordings use for each; a pipeline file may leave both
    out where the model itself names its classes. `state` only
    matters for a model that remembers from one run to the next. ValueError where two sources disagree on a file.
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
    """Return the file that describes the stream of a task, beside its model or pipeline file; None for a built-in one.

    Raises ConfigError when it is missing.
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
    """Return the description of a task's stream, ungrouped; ConfigError where its file is missing or malformed."""
    return load_description(find_description(task, beside) or task.stream.description)


def with_reducers(task: Task, reducers: Mapping[str, str]) -> Task:
    """Return the task with other reducers for some sources; hashes of files that these name are kept.

    Raises ConfigError for a source that the model does not take, and for what is no specification.
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
