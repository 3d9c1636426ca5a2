"""What a folder of slices holds: which model was cut, and what every slice takes and gives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from har_edge.errors import ModelError

FILE_NAME = "manifest.json"
VERSION = 1
_CHUNK_BYTES = 1 << 20


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that enters or leaves a slice; -1 in `shape` is a dynamic dimension, `dtype` is NumPy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class SliceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One slice: its file, the hash of that file, and the operators [start, stop) of the model that it runs."""

    file: str
    sha256: str
    start: int
    stop: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class SliceManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All slices of one model, in the order in which they run."""

    version: int
    model: str
    model_sha256: str
    slices: tuple[SliceEntry, ...]


def load_manifest(path: Path) -> SliceManifest:
    """Read a manifest; `path` is the file or the folder that holds it.

    Raises ModelError when it is missing, malformed, of another version, or names a file outside its folder.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=SliceManifest)
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}; make it with 'har-edge slice'") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is no manifest of slices: {error}; make it anew with 'har-edge slice'") from error
    if manifest.version != VERSION:
        raise ModelError(f"{file} has version {manifest.version}, expected {VERSION}; cut the model again")
    for entry in manifest.slices:
        if Path(entry.file).name != entry.file or entry.file in ("", ".", ".."):
            raise ModelError(f"{file} names slice {entry.file!r}, expected a plain file name in the same folder")
    return manifest


def verify_hashes(manifest: SliceManifest, folder: Path) -> None:
    """Raise ModelError unless every slice in `folder` has the hash that the manifest says."""
    for entry in manifest.slices:
        path = folder / entry.file
        try:
            found = file_sha256(path)
        except OSError as error:
            raise ModelError(f"cannot read slice {path}: {error.strerror}; cut the model again") from error
        if found != entry.sha256:
            raise ModelError(f"slice {path} has sha256 {found}, expected {entry.sha256}; cut the model again")


def file_sha256(path: Path) -> str:
    """Return the hash of a file as hexadecimal text, without holding the file in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def encode_manifest(manifest: SliceManifest) -> bytes:
    """Return the manifest as JSON for people to read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
