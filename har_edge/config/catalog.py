"""The trained models: one entry for each file in `manifest.json`, and the way from a name or a path to a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.config.task import Task
from har_edge.errors import ModelError
from har_edge.files import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, inside, read_regular, write_atomic
from har_edge.resources import find_folder
from har_edge.tflite.manifest import TensorSpec

FILE_NAME = "manifest.json"
VERSION = 1


class SplitScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The score of a model of this kind, trained on `train` alone, on the windows of `test`, which it never saw.

    `model` is the hash of the file that was scored.
    """

    train: list[str]
    test: list[str]
    windows: int
    accuracy: float
    macro_f1: float
    model: str


class BaselineScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The score of another method on the same split in the same run."""

    method: str
    accuracy: float
    macro_f1: float


class LosoScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The score of models of this kind in leave-one-subject-out: each stream in turn is tested, all others train.

    `accuracy` and `macro_f1` are means over streams (and seeds); `deviation` is the standard deviation of the accuracy
    over streams. `wire_bytes_per_s` counts the bytes of all sensors of a stream, packets included. `command` made the
    study.
    """

    protocol: str
    streams: int
    seeds: list[int]
    accuracy: float
    deviation: float
    macro_f1: float
    wire_bytes_per_s: float
    command: str


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model file: its task, training data and scores, and the command that makes it again.

    `trained_on` names the streams behind the weights; `split` was measured on streams outside its own `train`. Random
    weights have neither. Files of fitted reducers lie beside the model, and the task holds their hashes. `master` names
    the entry with the float32 weights that an int8 model was rounded from: the one to train on.
    """

    name: str
    file: str
    sha256: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    task: Task
    data: str
    real: bool
    trained_on: list[str]
    split: SplitScore | None
    baselines: list[BaselineScore]
    command: str
    seed: int
    versions: dict[str, str]
    loso: LosoScore | None = None
    master: str | None = None


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All models of one folder."""

    version: int
    models: list[ModelEntry]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model file that exists, its hash, and its entry, None where no catalogue knows the file."""

    path: Path
    sha256: str
    entry: ModelEntry | None


def load_catalog(path: Path | None = None) -> Catalog:
    """Read a catalogue: a manifest.json, the folder that holds it, or by default the models shipped with har_edge.

    Raises ModelError when it is missing or malformed, of another version, or names a file outside its folder.
    """
    path = find_folder("models") if path is None else path
    file = inside(path, FILE_NAME)
    try:
        catalog = msgspec.json.decode(read_regular(file, MAX_MANIFEST_BYTES), type=Catalog)
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}; make it with 'har-edge train --out DIR'") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is no manifest of models: {error}; make it with 'har-edge train'") from error
    if catalog.version != VERSION:
        raise ModelError(f"{file} has version {catalog.version}, expected {VERSION}; make it with 'har-edge train'")
    for entry in catalog.models:
        if Path(entry.file).name != entry.file or entry.file in ("", ".", "..") or "\0" in entry.file:
            raise ModelError(f"{file} names the file {entry.file!r}, expected one beside the manifest")
    return catalog


def merge_catalog(folder: Path, entries: Sequence[ModelEntry]) -> Catalog:
    """Return the catalogue of a folder with these entries, which replace entries of the same name; new ones go to the
    end.

    Raises ModelError for a malformed manifest.
    """
    known = load_catalog(folder).models if (folder / FILE_NAME).is_file() else []
    fresh = {entry.name: entry for entry in entries}
    merged = [fresh.pop(entry.name, entry) for entry in known]
    return Catalog(VERSION, [*merged, *fresh.values()])


def store_catalog(catalog: Catalog, folder: Path) -> Path:
    """Write a catalogue as readable JSON and return its path."""
    path = folder / FILE_NAME
    write_atomic(path, msgspec.json.format(msgspec.json.encode(catalog), indent=2) + b"\n")
    return path


def find_model(name_or_path: str, folder: Path | None = None) -> FoundModel:
    """Return the model with a name in the catalogue (shipped ones by default: `float`, `int8`), or else at a path.

    A file given by its path keeps its entry when the manifest beside it, or that of the shipped models, lists its hash.
    Raises ModelError when there is neither, and for a shipped file whose bytes differ from its entry.
    """
    place = find_folder("models") if folder is None else folder
    models = load_catalog(place).models
    for entry in models:
        if entry.name == name_or_path:
            return FoundModel(place / entry.file, _verify(place / entry.file, entry), entry)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(entry.name for entry in models)
        raise ModelError(f"no model {name_or_path!r}: expected one of {known}, or the path of a .tflite file")
    sha256 = _hash(path)
    if (path.parent / FILE_NAME).is_file() and _is_catalog(path.parent / FILE_NAME):
        models = [*load_catalog(path.parent).models, *models]
    return FoundModel(path, sha256, next((entry for entry in models if entry.sha256 == sha256), None))


def _is_catalog(file: Path) -> bool:
    """Return whether a manifest is a catalogue; a folder of slices has a manifest of the same name."""
    try:
        content = msgspec.json.decode(read_regular(file, MAX_MANIFEST_BYTES))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(content, dict) and "models" in content


def _verify(path: Path, entry: ModelEntry) -> str:
    if not path.is_file():
        raise ModelError(f"model {entry.name}: {path} is missing; make it again with: {entry.command}")
    found = _hash(path)
    if found != entry.sha256:
        raise ModelError(
            f"model {entry.name}: {path} has sha256 {found}, expected {entry.sha256}; restore the file, or make it "
            f"again with: {entry.command}"
        )
    return found


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path, MAX_MODEL_BYTES)).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror}; give the path of a .tflite file") from error
