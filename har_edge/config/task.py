"""The task of a model: the stream that feeds it, the reducers of its sources, and the meaning of its output."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from har_edge.codecs.spec import file_names
from har_edge.data.description import BUILT_IN, StreamDescription, describe_pictures, load_description
from har_edge.data.pictures import MAX_SIDE, AspectRule, PictureShape
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import Text

# Names of fitted files stand in reducer specifications, whose separators are : + , and =.
_FITTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.(npz|tflite)")
_SLICE = re.compile(r"slice-\d+\.tflite")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# The description of a stream of pictures, which the task itself gives.
IMAGES = "images"
MAX_ARRAYS = 64
# The classes of a model that finds anomalies, by number.
VERDICTS = ("normal", "anomaly")
# The heat map of a result: its largest side, at most and by default.
MAX_HEAT_MAP_SIDE, HEAT_MAP_SIDE = 128, 32


class StateRule(Enum):
    """The reaction of a stage to a stateful slice: refuse it, or zero its state before every window."""

    REFUSE = "refuse"
    RESET = "reset"


class StreamTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The windows that a model was trained on: stream description, length and hop in samples, grouping of sources."""

    description: Text
    rate_hz: float
    length: int
    hop: int
    grouping: Text = "location"


class SourceInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The input that the window of one source enters, and the reducer of its sensor.

    `files` maps the name of each file of a fitted reducer to its SHA-256; the files lie beside the pipeline file, or
    beside the model. Raises ValueError, which msgspec reports with its place, for other names and hashes.
    """

    tensor: Text
    reducer: Text = "none"
    files: dict[Text, Text] = {}

    def __post_init__(self) -> None:
        for name, sha256 in self.files.items():
            if not _FITTED.fullmatch(name) or _SLICE.fullmatch(name):
                raise ValueError(
                    f"files names {name!r}; expected a plain file name that ends in .npz or .tflite and is no slice's"
                )
            if not _SHA256.fullmatch(sha256):
                raise ValueError(f"files gives {name} the hash {sha256!r}; expected a SHA-256 as 64 hex digits")


_Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
_Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
_Constants = Annotated[tuple[float, ...], msgspec.Meta(max_length=3)]


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The pictures that a model takes, as uint8 [height, width, channels], and how they become its input.

    `fit` says how a sensor brings a picture of another shape to this one. With `mean` and `std`, one figure or one a
    channel, the input is (byte - mean) / std, in the input's own scale where it is quantised. Without them, a quantised
    input takes the bytes as they are (int8: less 128). Raises ValueError for figures that are no such constants.
    """

    height: _Side
    width: _Side
    channels: Literal[1, 3] = 3
    fit: AspectRule = AspectRule.STRETCH
    mean: _Constants = ()
    std: _Constants = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, 1, self.channels):
            raise ValueError(
                f"mean has {len(self.mean)} figures and std {len(self.std)}; expected one each, {self.channels} each "
                "(one a channel), or none"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(one > 0 for one in self.std):
            raise ValueError(f"mean is {self.mean} and std {self.std}; expected numbers, and std above 0")

    @property
    def shape(self) -> PictureShape:
        """The size of a picture that is sent."""
        return PictureShape(self.height, self.width, self.channels)


class ArrayOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An output that results carry as an array: `scale` * (q - `zero`), or with a scale of 0 the values as they are."""

    tensor: Text
    scale: Annotated[float, msgspec.Meta(ge=0.0)] = 0.0
    zero: int = 0


class AnomalyOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The outputs of a model that says how unusual a picture is.

    A picture whose `score` is above the threshold is an anomaly. The threshold is the value of the output `limit`, if
    one is named, so that it changes with the weights of a new version; else it is the number `threshold`. Results carry
    the `heat_map`, if one is named, with at most `side` cells along each side; a side of 0 leaves it out.
    """

    score: ArrayOutput
    threshold: _Finite = 0.0
    heat_map: ArrayOutput | None = None
    limit: ArrayOutput | None = None
    side: Annotated[int, msgspec.Meta(ge=0, le=MAX_HEAT_MAP_SIDE)] = HEAT_MAP_SIDE

    @property
    def tensors(self) -> tuple[str, ...]:
        """The outputs of the model that results are made of."""
        found = (self.score, self.heat_map if self.side else None, self.limit)
        return tuple(one.tensor for one in found if one is not None)


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The task of a model.

    `inputs` maps each source to its input tensor. `output` is the tensor with one score for each class. `labels` names
    the classes by index, and `label_ids` holds the label of each in the recordings; a pipeline file may leave both out
    when the model itself names its classes. `state` matters only for a stateful model.

    With `image`, the windows of the one source are pictures. With `arrays`, results carry these outputs as arrays; then
    the model may do without classes. With `anomaly`, results say how unusual a picture is, and the labels are VERDICTS.
    Older nodes refuse these keys. Raises ValueError when two sources disagree on a file, for an `image` of another size
    than the windows, and for `anomaly` with other labels or arrays.
    """

    stream: StreamTask
    inputs: dict[Text, SourceInput]
    output: Text
    labels: list[Text] = []
    label_ids: list[int] = []
    state: StateRule = StateRule.REFUSE
    image: ImageInput | None = None
    arrays: Annotated[tuple[ArrayOutput, ...], msgspec.Meta(max_length=MAX_ARRAYS)] = ()
    anomaly: AnomalyOutput | None = None

    def __post_init__(self) -> None:
        if self.image is not None:
            _check_image(self.image, self.stream, len(self.inputs))
        if self.anomaly is not None:
            _check_anomaly(self)
        files = self.files
        for source, enters in self.inputs.items():
            for name, sha256 in enters.files.items():
                if files[name] != sha256:
                    raise ValueError(
                        f"file {name} of source {source!r} has sha256 {sha256}, but {files[name]} for another source; "
                        "expected one file of a name; give each its own name"
                    )

    @property
    def ranked(self) -> bool:
        """Whether results name the best classes, with their scores, and not the best one alone."""
        return bool(self.labels) and self.anomaly is None and (self.image is not None or bool(self.arrays))

    @property
    def gathers(self) -> bool:
        """Whether results are made of several outputs of the model, which may leave different slices."""
        return bool(self.arrays) or self.anomaly is not None

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs of the model that results are made of."""
        tensors = self.anomaly.tensors if self.anomaly is not None else ()
        return tuple(dict.fromkeys((self.output, *(one.tensor for one in self.arrays), *tensors)))

    @property
    def files(self) -> dict[str, str]:
        """The fitted files of all sources: name to SHA-256."""
        return {name: sha256 for enters in self.inputs.values() for name, sha256 in enters.files.items()}


def _check_image(image: ImageInput, stream: StreamTask, sources: int) -> None:
    pixels = image.height * image.width
    if (stream.description, stream.length, stream.hop, sources) != (IMAGES, pixels, pixels, 1):
        raise ValueError(
            f"image is {image.height} x {image.width}, but the stream {stream.description!r} has windows of "
            f"{stream.length} samples every {stream.hop}, and there are {sources} sources; expected one source and the "
            f"stream {IMAGES!r} with length and hop {pixels}, a pixel a sample"
        )


def _check_anomaly(task: Task) -> None:
    assert task.anomaly is not None
    if task.arrays or task.output != task.anomaly.score.tensor or tuple(task.labels) != VERDICTS:
        raise ValueError(
            f"anomaly came with output {task.output!r}, labels {task.labels} and {len(task.arrays)} arrays; expected "
            f"output {task.anomaly.score.tensor!r}, the labels {list(VERDICTS)} and no arrays"
        )


def find_description(task: Task, beside: Path) -> Path | None:
    """Return the file that describes the stream of a task, beside its model or pipeline file; None for a built-in
    stream, and for pictures.

    Raises ConfigError when the file is missing.
    """
    name = task.stream.description
    if name in BUILT_IN or task.image is not None:
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
    if task.image is not None:
        return describe_pictures(IMAGES, next(iter(task.inputs)), task.image.shape)
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
