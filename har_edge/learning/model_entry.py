"""A model that was trained here: its file, and its entry in the manifest.json beside it, which says what it is for."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from har_edge import __version__
from har_edge.config.catalog import FoundModel, ModelEntry, merge_catalog, store_catalog
from har_edge.config.image_task import Normalization, derive_image_task
from har_edge.config.task import Task, find_description
from har_edge.config.unlisted_model import derive_task
from har_edge.data.description import BUILT_IN, load_description
from har_edge.data.grouping import Grouping, regroup
from har_edge.data.pictures import AspectRule
from har_edge.errors import ConfigError, DataError
from har_edge.files import write_atomic
from har_edge.inference.codecs import FolderFiles
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.inference.port_task import describe_images, image_task
from har_edge.learning.data.datasets import Dataset
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import Model


@dataclass(frozen=True, slots=True)
class TrainingOrigin:
    """The origin of a trained model: its data in words, whether all of it is real, its persons, and the command."""

    data: str
    real: bool
    trained_on: tuple[str, ...]
    command: str
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Purpose:
    """The task of a model, and the contents that lie beside the model for it, by the name of their file."""

    task: Task
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def store_model(content: bytes | memoryview, purpose: Purpose, origin: TrainingOrigin, out: Path) -> ModelEntry:
    """Write a model, what lies beside it, and its entry in the manifest.json of the folder.

    Raises DataError where the disk is full or the folder cannot be written, ModelError for a manifest of another kind.
    """
    ports = Interpreter(bytes(content))
    entry = ModelEntry(
        name=out.stem,
        file=out.name,
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=[_spec(port) for port in ports.inputs],
        outputs=[_spec(port) for port in ports.outputs],
        task=purpose.task,
        data=origin.data,
        real=origin.real,
        trained_on=sorted(origin.trained_on),
        split=None,
        baselines=[],
        command=origin.command,
        seed=origin.seed,
        versions={"har_edge": __version__, "numpy": np.__version__, "python": platform.python_version()},
    )
    catalog = merge_catalog(out.parent, [entry])
    try:
        for name, beside in purpose.beside.items():
            write_atomic(out.parent / name, beside)
        write_atomic(out, content)
        store_catalog(catalog, out.parent)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make room, or take another folder with --out") from error
    return entry


def kept_purpose(found: FoundModel, task: Task, out: Path) -> Purpose:
    """Return the purpose of a model that keeps its task, with the files that must lie beside its new place."""
    home = found.path.parent
    if out.resolve() == home.resolve():
        return Purpose(task)
    beside = {name: FolderFiles(home, {name: sha256}).read(name) for name, sha256 in task.files.items()}
    description = find_description(task, home)
    if description is not None:
        beside[description.name] = description.read_bytes()
        stream = msgspec.structs.replace(task.stream, description=description.name)
        task = msgspec.structs.replace(task, stream=stream)
    return Purpose(task, beside)


def purpose_of(
    model: Model, data: Dataset, found: FoundModel | None, description: str | Path | None, out: Path
) -> Purpose:
    """Return the purpose of a model that was trained on some data.

    Pictures (bytes) say how bytes become the values of its input. Windows of recordings are what its manifest says, or
    else what `windows` says: how the recordings were cut. Other samples are windows of values as they are. Raises
    ConfigError where none of this fits the model.
    """
    entry = found.entry if found is not None else None
    if data.x.dtype == np.uint8:
        return Purpose(_picture_task(model, data, entry))
    if found is not None and entry is not None and entry.task.image is None and data.groups is not None:
        return kept_purpose(found, entry.task, out)
    if description is not None:
        return _recorded_purpose(model, data, description)
    ports = Interpreter(bytes(model.data))
    if len(ports.inputs) != 1 or len(ports.outputs) != 1 or not data.classes:
        raise ConfigError("its inputs and outputs are several, or no classes, and no manifest says what they mean")
    task = image_task(ports.inputs[0], ports.outputs[0], data.classes)
    name = f"samples-{ports.inputs[0].shape[-1]}.toml"
    stream = msgspec.structs.replace(task.stream, description=name)
    return Purpose(
        msgspec.structs.replace(task, stream=stream), {name: describe_images(ports.inputs[0]).encode("utf-8")}
    )


def _picture_task(model: Model, data: Dataset, entry: ModelEntry | None) -> Task:
    """Return the task of a model that learned from bytes: its input is `byte * scale + offset` of the data."""
    fit = entry.task.image.fit if entry is not None and entry.task.image is not None else AspectRule.STRETCH
    normalization = Normalization((0.0 - data.offset / data.scale,), (1 / data.scale,))
    return derive_image_task(
        model, labels=data.classes or None, asked=bool(data.classes), normalization=normalization, fit=fit
    )


def _recorded_purpose(model: Model, data: Dataset, description: str | Path) -> Purpose:
    """Return the purpose of a model of recorded windows; one input takes the channels of all sources."""
    described = load_description(description)
    single = len(model.main.inputs) == 1 and len(described.sources) > 1
    grouping = Grouping.ALL if single else Grouping.LOCATION
    name = str(description) if description in BUILT_IN else Path(description).name
    beside = {} if description in BUILT_IN else {name: Path(description).read_bytes()}
    grouped = regroup(described, grouping)
    task = derive_task(model, grouped, name, inputs={}, labels=data.classes or None, asked=bool(data.classes))
    stream = msgspec.structs.replace(task.stream, grouping=grouping.value)
    return Purpose(msgspec.structs.replace(task, stream=stream), beside)


def check_folder(folder: Path) -> None:
    """Raise ModelError where the manifest.json of a folder is none of models, before anything is trained."""
    merge_catalog(folder, [])


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.shape, port.dtype.name)
