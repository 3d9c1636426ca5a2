"""What a folder of slices holds: which model was cut, and what every slice takes and gives."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import msgspec

from har_edge.errors import ModelError

FILE_NAME = "manifest.json"
VERSION = 1


class State(Enum):
    """What a slice remembers from one run to the next: nothing, variable tensors (the runtime can zero them), or
    variables that it assigns (only loading it anew brings back their first values)."""

    NONE = "none"
    TENSORS = "tensors"
    RESOURCES = "resources"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that enters or leaves a slice; -1 in `shape` is a dynamic dimension, `dtype` is NumPy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class SliceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One slice: its file, the hash of that file, the operators [start, stop) of the model that it runs, its state."""

    file: str
    sha256: str
    start: int
    stop: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: State = State.NONE

    @property
    def stateful(self) -> bool:
        """Whether a run changes what the next one gives."""
        return self.state is not State.NONE


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
        if Path(entry.file).name != entry.file or entry.file in ("", ".", "..") or "\0" in entry.file:
            raise ModelError(f"{file} names slice {entry.file!r}, expected a plain file name in the same folder")
    return manifest


def encode_manifest(manifest: SliceManifest) -> bytes:
    """Return the manifest as JSON for people to read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
