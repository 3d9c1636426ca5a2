"""The manifest of a folder of slices: the model that was cut, and the inputs and outputs of every slice."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec

from har_edge.errors import ModelError
from har_edge.files import MAX_MANIFEST_BYTES, inside, read_regular

FILE_NAME = "manifest.json"
# Version 2 adds the keys wire, id, batched and labels, which a reader of version 1 refuses; written where one is set.
VERSIONS = (1, 2)
# The newest version of messages that this program writes and reads (har_edge/protocol/wire.py).
NEWEST_WIRE = 3
MAX_TENSOR_ID = 2**32 - 1
_Operator = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]  # a model's vector of operators holds no more
# Limit of messages below wire version 3.
MAX_PLAIN_NAME = 1024
# Limits of all messages (har_edge/protocol/wire.py).
MAX_RANK = 8
MAX_TENSORS = 4096
# Windows of sensors are real numbers. They enter inputs of these types as they are, rounded to the type, and inputs of
# the quantised types by the scale and zero point of the tensor.
REAL = ("float32", "float16", "float64")
QUANTISED = ("int8", "int16", "uint8")
# All types of tensors that enter or leave slices: those that tflite/schema.py and messages have.
DTYPES = (*REAL, *QUANTISED, "int32", "int64", "uint16", "uint32", "uint64", "bool", "complex64")
MAX_PLAIN_TENSORS = 64


class ModelState(Enum):
    """The state that a slice keeps from one run to the next.

    NONE: no state. TENSORS: variable tensors, which the runtime can zero. RESOURCES: variables that the slice assigns;
    only loading it anew brings back their first values.
    """

    NONE = "none"
    TENSORS = "tensors"
    RESOURCES = "resources"


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor that enters or leaves a slice; -1 in `shape` is a dynamic dimension, `dtype` is NumPy's name.

    `id` replaces the name in messages of wire version 3. A tensor has the same id in every slice and every cut of its
    model. Without `batched`, the first dimension is not the batch: each message carries the tensor of one window.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TENSOR_ID)] | None = None
    batched: bool = True


class SliceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One slice: its file, the hash of that file, its operators [start, stop) of the model, its inputs, outputs and
    state.
    """

    file: str
    sha256: str
    start: _Operator
    stop: _Operator
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: ModelState = ModelState.NONE

    @property
    def stateful(self) -> bool:
        """Whether a run changes the results of the next one."""
        return self.state is not ModelState.NONE


class SliceManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All slices of one model, in the order in which they run.

    `wire` is the newest version of messages that senders of this model's windows and activations may use. `labels` are
    the names that the model itself gives the classes of an output, by index.
    """

    version: int
    model: str
    model_sha256: str
    slices: tuple[SliceEntry, ...]
    wire: Annotated[int, msgspec.Meta(ge=1)] = 1
    labels: dict[str, tuple[str, ...]] = {}

    @property
    def tensors(self) -> Iterable[TensorSpec]:
        """Every tensor that enters or leaves a slice; a tensor that does both comes more than once."""
        return (spec for entry in self.slices for spec in (*entry.inputs, *entry.outputs))

    @property
    def ids(self) -> dict[str, int]:
        """The short ids of tensors by name; empty where messages carry names."""
        if self.wire < NEWEST_WIRE:
            return {}
        return {spec.name: spec.id for spec in self.tensors if spec.id is not None}


def versioned(manifest: SliceManifest) -> SliceManifest:
    """Return the manifest with the lowest version that has all its keys."""
    extended = (
        manifest.wire > 1
        or bool(manifest.labels)
        or any(spec.id is not None or not spec.batched for spec in manifest.tensors)
    )
    return msgspec.structs.replace(manifest, version=VERSIONS[extended])


def find_flaw(manifest: SliceManifest) -> str:
    """Return the first error in a manifest that could be read, an empty text where there is none."""
    if manifest.version not in VERSIONS:
        return f"has version {manifest.version}, expected {' or '.join(map(str, VERSIONS))}; cut the model again"
    if manifest.wire > NEWEST_WIRE:
        return (
            f"asks for messages of wire version {manifest.wire}, expected at most {NEWEST_WIRE}; update this node, or "
            f"cut the model again with `har-edge slice --wire {NEWEST_WIRE}`"
        )
    names, ids = dict[int, str](), dict[str, int | None]()
    for spec in manifest.tensors:
        if ids.setdefault(spec.name, spec.id) != spec.id:
            return f"gives tensor {spec.name[:64]!r} the ids {ids[spec.name]} and {spec.id}, expected one"
        if spec.dtype not in DTYPES:
            return f"gives tensor {spec.name[:64]!r} the type {spec.dtype[:64]!r}, expected one of {', '.join(DTYPES)}"
        if spec.id is not None and names.setdefault(spec.id, spec.name) != spec.name:
            return f"gives the id {spec.id} to {names[spec.id][:64]!r} and {spec.name[:64]!r}, expected it once"
    for entry in manifest.slices:
        if Path(entry.file).name != entry.file or entry.file in ("", ".", "..") or "\0" in entry.file:
            return f"names slice {entry.file!r}, expected a plain file name in the same folder"
    return _find_gap(manifest.slices)


def _find_gap(slices: tuple[SliceEntry, ...]) -> str:
    """Return which slice does not begin where the one before it ends, or runs no operator; an empty text where none."""
    if not slices:
        return "names no slice, expected one or more; cut the model again"
    at = slices[0].start
    for index, entry in enumerate(slices):
        if entry.start != at or entry.stop <= at:
            return (
                f"gives slice {index} the operators [{entry.start}, {entry.stop}), expected some from {at} on; cut the "
                "model again"
            )
        at = entry.stop
    return ""


def load_manifest(path: Path) -> SliceManifest:
    """Read a manifest; `path` is the file or the folder that holds it.

    Raises ModelError when it is missing, malformed, of another version, or names a file outside its folder.
    """
    file = inside(path, FILE_NAME)
    try:
        manifest = msgspec.json.decode(read_regular(file, MAX_MANIFEST_BYTES), type=SliceManifest)
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}; make it with 'har-edge slice'") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is no manifest of slices: {error}; make it anew with 'har-edge slice'") from error
    flaw = find_flaw(manifest)
    if flaw:
        raise ModelError(f"{file} {flaw}")
    return manifest


def encode_manifest(manifest: SliceManifest) -> bytes:
    """Return the manifest as JSON for people to read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
