"""Write slices and their manifest into a folder."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from har_edge.errors import ConfigError, CutError, ModelError
from har_edge.files import DRAFT, write_atomic
from har_edge.tflite.manifest import (
    FILE_NAME,
    MAX_PLAIN_NAME,
    MAX_PLAIN_TENSORS,
    NEWEST_WIRE,
    SliceEntry,
    SliceManifest,
    TensorSpec,
    encode_manifest,
    load_manifest,
    versioned,
)
from har_edge.tflite.metadata import read_labels
from har_edge.tflite.model import Model
from har_edge.tflite.packed_cuts import with_packings
from har_edge.tflite.packing import TensorPacking
from har_edge.tflite.slices import Slice, write_slice

_SLICE = re.compile(r"slice-\d+\.tflite")
# Drafts of a cut that was killed, by their present names and by the earlier one.
_UNFINISHED = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(DRAFT)}|slice-\d+\.tflite{re.escape(DRAFT)}")


def write_folder(
    model: Model,
    slices: Sequence[Slice],
    folder: Path,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    *,
    wire: int | None = None,
    packings: Mapping[str, TensorPacking] = MappingProxyType({}),
) -> SliceManifest:
    """Write `slice-0.tflite` ..., `manifest.json` and the files `beside` them; each file appears whole or not at all.

    Slices of an earlier cut in the same folder are replaced. For `wire` see `make_manifest`; `packings` say how tensors
    travel that do not travel as they are. Raises ConfigError when the folder holds other files.
    """
    planned, entries = with_packings(make_manifest(model, slices, wire=wire), packings), []
    with replaced_folder(folder, beside) as draft:
        for piece, entry in zip(slices, planned.slices, strict=True):
            made = write_slice(model, piece)
            write_atomic(folder / entry.file, made)
            entries.append(msgspec.structs.replace(entry, sha256=hashlib.sha256(made).hexdigest()))
            del made  # or the next slice would be built while this one is still in memory
        draft.manifest = msgspec.structs.replace(planned, slices=tuple(entries))
    return draft.manifest


@dataclass(slots=True)
class FolderDraft:
    """The manifest of a folder that is being written; the writer sets it."""

    manifest: SliceManifest


@contextmanager
def replaced_folder(folder: Path, beside: Mapping[str, bytes]) -> Iterator[FolderDraft]:
    """Let the caller write slices into a folder and set their manifest; then write it and the files `beside` it, and
    remove what an earlier cut left.

    A new folder that is not finished is removed. Raises ConfigError when the folder holds other files.
    """
    stale, there, made_whole = check_folder(folder), folder.exists(), False
    draft = FolderDraft(SliceManifest(0, "", "", ()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield draft
        write_atomic(folder / FILE_NAME, encode_manifest(draft.manifest))
        for name, content in beside.items():  # after the manifest, by which a later cut knows the folder as its own
            write_atomic(folder / name, content)
        for name in stale - {file for entry in draft.manifest.slices for file in entry.files}:
            (folder / name).unlink(missing_ok=True)
        made_whole = True
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}; give another --out") from error
    finally:
        if not (made_whole or there):  # half a folder would look like one to run
            shutil.rmtree(folder, ignore_errors=True)


def make_manifest(model: Model, slices: Sequence[Slice], *, wire: int | None = None) -> SliceManifest:
    """Return the manifest of these slices, without the hashes of files that are not written yet.

    `wire` is the version of messages that nodes may send, 1 for fleets with older nodes. The default is the lowest
    version that can carry the crossing tensors. Raises CutError when that is higher than the requested version.
    """
    reason = newer_wire_reason(slices)
    if wire is not None and wire < NEWEST_WIRE and reason:
        raise CutError(f"wire version {wire} came, but {reason}; expected wire version {NEWEST_WIRE}")
    if wire is None:
        wire = NEWEST_WIRE if reason else 1
    short = wire >= NEWEST_WIRE
    entries = (
        SliceEntry(
            file=f"slice-{number}.tflite",
            sha256="",
            start=piece.start,
            stop=piece.stop,
            inputs=_numbered(piece.inputs, piece.part.inputs) if short else piece.inputs,
            outputs=_numbered(piece.outputs, piece.part.outputs) if short else piece.outputs,
            state=piece.state,
        )
        for number, piece in enumerate(slices)
    )
    labels = read_labels(model) if short else {}
    return versioned(SliceManifest(0, model.name, model.sha256, tuple(entries), wire, labels))


def _numbered(specs: Sequence[TensorSpec], indices: Sequence[int]) -> tuple[TensorSpec, ...]:
    """Give each tensor its index in the model as id, which is the same in every cut of the model."""
    return tuple(msgspec.structs.replace(spec, id=index) for spec, index in zip(specs, indices, strict=True))


def newer_wire_reason(slices: Sequence[Slice]) -> str:
    """Return why messages of wire version 1 cannot carry the crossing tensors, an empty text when they can."""
    for number, piece in enumerate(slices):
        if len(piece.outputs) > MAX_PLAIN_TENSORS:
            return (
                f"{len(piece.outputs)} tensors leave slice {number}, and a message of wire version 1 has at most "
                f"{MAX_PLAIN_TENSORS}"
            )
        for spec in piece.outputs:
            if len(spec.name) > MAX_PLAIN_NAME:
                return (
                    f"the name of tensor {spec.name[:64]}... has {len(spec.name)} characters, and a message of wire "
                    f"version 1 holds {MAX_PLAIN_NAME}"
                )
    return ""


def check_folder(folder: Path) -> set[str]:
    """Return the slices, whole or not, that an earlier cut left in `folder`; ConfigError when it holds other files."""
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder for the slices; give another --out")
    names = {path.name for path in folder.iterdir()}
    unfinished = {name for name in names if _UNFINISHED.fullmatch(name)}
    if FILE_NAME not in names and all(_SLICE.fullmatch(name) for name in names - unfinished):
        return names
    try:
        return unfinished | {file for entry in load_manifest(folder).slices for file in entry.files}
    except ModelError as error:
        raise ConfigError(
            f"{folder} is not empty and holds no manifest of slices, so nothing is written there; "
            "give a new folder with --out, or empty this one"
        ) from error
