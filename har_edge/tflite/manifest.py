"""The manifest of a folder of slices: the model that was cut, and the inputs and outputs of every slice."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec

from har_edge.errors import ModelError
from har_edge.files import MAX_MANIFEST_BYTES, inside, read_regular
from har_edge.tflite.packing import find_packing_flaw

FILE_NAME = "manifest.json"
# Version 2 adds the keys wire, id, batched and labels, version 3 steps, region, flow and packing, version 4 the key
# parity of a region. A reader of an earlier version refuses them, so each is written only where one of its keys is set.
VERSIONS = (1, 2, 3, 4)
# The newest version of messages that this program writes and reads (har_edge/protocol/wire.py).
NEWEST_WIRE = 3
MAX_TENSOR_ID = 2**32 - 1
_Operator = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]  # a model's vector of operators holds no more
# Limit of messages below wire version 3.
MAX_PLAIN_NAME = 1024
# Any text of a manifest, as it may come over the network: names of converted models have thousands of characters.
Text = Annotated[str, msgspec.Meta(max_length=2**16)]
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
# Limits of shards.
MAX_SHARDS = 64
MAX_STEPS = 1024
MAX_FLOWS = 1024


class ModelState(Enum):
    """The state that a slice keeps from one run to the next.

    NONE: no state. TENSORS: variable tensors, which the runtime can zero. RESOURCES: variables that the slice assigns;
    only loading it anew brings back their first values.
    """

    NONE = "none"
    TENSORS = "tensors"
    RESOURCES = "resources"


class TensorRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A region of a tensor: elements [start, stop) along `axis` of the tensor named `of`.

    With `summands`, it is one of so many arrays of that region whose sum is the tensor, counted by `summand` from 0.
    With `parity`, it is the sum of the shares between these bounds, each from its first element on, shorter ones ended
    by zeros: together with all shares but one it stands for the missing one.
    """

    of: Annotated[str, msgspec.Meta(min_length=1, max_length=2**16)]
    axis: Annotated[int, msgspec.Meta(ge=0, lt=MAX_RANK)]
    start: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    stop: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    summand: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SHARDS)] = 0
    summands: Annotated[int, msgspec.Meta(ge=0, le=MAX_SHARDS)] = 0
    parity: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, lt=2**31)], ...], msgspec.Meta(max_length=MAX_SHARDS + 1)
    ] = ()

    @property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """The shares that a parity stands for, [start, stop)."""
        return tuple(pairwise(self.parity))


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor that enters or leaves a slice; -1 in `shape` is a dynamic dimension, `dtype` is NumPy's name.

    `id` replaces the name in messages of wire version 3. A tensor has the same id in every slice and every cut of its
    model. Without `batched`, the first dimension is not the batch: each message carries the tensor of one window.

    `region` says which region of a tensor of the model this is; without it, it is a whole tensor. `flow` is the number
    of the message, among those that a slice sends for a window, that carries the tensor. `packing` says how it travels
    (tflite/packing.py), as it is where that is empty; `shape` and `dtype` are those in the slices.
    """

    name: Text
    shape: tuple[int, ...]
    dtype: Text
    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TENSOR_ID)] | None = None
    batched: bool = True
    region: TensorRegion | None = None
    flow: Annotated[int, msgspec.Meta(ge=0, lt=MAX_FLOWS)] = 0
    packing: Text = ""

    @property
    def of(self) -> str:
        """The name of the model's tensor of which this is a piece, or which it is."""
        return self.region.of if self.region else self.name


class ShardStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One run of a sub-model within a slice: its file, and the regions of tensors that it takes and makes.

    The names of `inputs` and `outputs` are those of the file's own inputs and outputs. Several steps may have the same
    file, and give it inputs of other sizes.
    """

    file: Text
    sha256: Text
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]


class SliceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One slice: its file, the hash of that file, its operators [start, stop) of the model, its inputs, outputs and
    state.

    A slice with `steps` is a shard: it computes a share of these operators, and other slices with the same operators
    the rest. `inputs` come from other slices and from sources, `outputs` go to other slices or are the result. A step
    runs once the regions that it takes are there, from messages or from earlier steps, and what it makes leaves at
    once. `file` and `sha256` are those of the first step.
    """

    file: Text
    sha256: Text
    start: _Operator
    stop: _Operator
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: ModelState = ModelState.NONE
    steps: Annotated[tuple[ShardStep, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of every file that the slice runs, by name."""
        return {self.file: self.sha256} | {step.file: step.sha256 for step in self.steps}

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
    model: Text
    model_sha256: Text
    slices: tuple[SliceEntry, ...]
    wire: Annotated[int, msgspec.Meta(ge=1)] = 1
    labels: dict[Text, tuple[Text, ...]] = {}

    @property
    def tensors(self) -> Iterable[TensorSpec]:
        """Every tensor that enters or leaves a slice; a tensor that does both comes more than once."""
        return (spec for entry in self.slices for spec in (*entry.inputs, *entry.outputs))

    @property
    def coded(self) -> dict[str, str]:
        """The type of each tensor whose shares have a parity, by name; it may leave no shard."""
        made = (spec for entry in self.slices for step in entry.steps for spec in step.outputs)
        return {spec.of: spec.dtype for spec in made if parity_of(spec)}

    @property
    def spared(self) -> list[int]:
        """The slices of which any one may be missing: all that they send has a parity, or is one."""
        coded = self.coded
        return [k for k, entry in enumerate(self.slices) if coded and all(spec.of in coded for spec in entry.outputs)]

    @property
    def ids(self) -> dict[str, int]:
        """The short ids of tensors by name; empty where messages carry names."""
        if self.wire < NEWEST_WIRE:
            return {}
        return {spec.name: spec.id for spec in self.tensors if spec.id is not None}


def versioned(manifest: SliceManifest) -> SliceManifest:
    """Return the manifest with the lowest version that has all its keys."""
    if manifest.coded:
        return msgspec.structs.replace(manifest, version=VERSIONS[3])
    if any(entry.steps for entry in manifest.slices) or any(
        spec.region or spec.flow or spec.packing for spec in manifest.tensors
    ):
        return msgspec.structs.replace(manifest, version=VERSIONS[2])
    extended = (
        manifest.wire > 1
        or bool(manifest.labels)
        or any(spec.id is not None or not spec.batched for spec in manifest.tensors)
    )
    return msgspec.structs.replace(manifest, version=VERSIONS[extended])


def find_flaw(manifest: SliceManifest) -> str:
    """Return the first error in a manifest that could be read, an empty text where there is none."""
    if manifest.version not in VERSIONS:
        return f"has version {manifest.version}, expected {', '.join(map(str, VERSIONS))}; cut the model again"
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
    flaw = _find_packing_flaw(manifest)
    if flaw:
        return flaw
    hashes = dict[str, str]()
    for entry in manifest.slices:
        for file, sha256 in entry.files.items():
            if Path(file).name != file or file in ("", ".", "..") or "\0" in file:
                return f"names slice {file!r}, expected a plain file name in the same folder"
            if entry.steps and hashes.setdefault(file, sha256) != sha256:
                return f"gives file {file!r} two hashes, expected one"
    return (
        _find_gap(manifest.slices)
        or _find_parity_flaw(manifest)
        or _find_region_flaw(manifest)
        or find_shard_flaw(manifest)
    )


def _find_region_flaw(manifest: SliceManifest) -> str:
    """Return which tensor its taker sees in another way than its maker, an empty text where all agree.

    Each message with it would be dropped, or a parity not be taken for one.
    """
    known = dict[str, TensorSpec]()
    for spec in manifest.tensors:
        name, region = spec.name[:64], spec.region
        if any(not -1 <= size < 2**31 for size in spec.shape):
            return f"gives tensor {name!r} the shape {list(spec.shape)}, expected sizes from 0 on, or -1 for any"
        if region is not None and not region.parity:
            size = spec.shape[region.axis] if region.axis < len(spec.shape) else 0
            if size not in (-1, region.stop - region.start):
                return (
                    f"gives tensor {name!r} {size} elements along axis {region.axis}, expected those from "
                    f"{region.start} to {region.stop}"
                )
        first = known.setdefault(spec.name, spec)
        fits = len(first.shape) == len(spec.shape) and all(
            one in (-1, other) or other == -1 for one, other in zip(first.shape, spec.shape, strict=True)
        )
        if not fits or (first.dtype, first.region) != (spec.dtype, region):
            return f"describes tensor {name!r} in two ways, expected one; cut the model again"
    return ""


def _find_packing_flaw(manifest: SliceManifest) -> str:
    """Return which tensor cannot travel as it is packed, an empty text where all can."""
    sent = {spec.name for entry in manifest.slices for spec in entry.outputs}
    packings = dict[str, str]()
    for spec in manifest.tensors:
        if packings.setdefault(spec.name, spec.packing) != spec.packing:
            return f"gives tensor {spec.name[:64]!r} two packings, expected one"
        if spec.packing and (manifest.wire < NEWEST_WIRE or spec.name not in sent):
            why = f"in wire version {manifest.wire}" if spec.name in sent else "which no slice sends"
            return f"gives a packing to tensor {spec.name[:64]!r} {why}, expected none; cut the model again"
        flaw = find_packing_flaw(spec.packing, spec.dtype) if spec.packing else ""
        if flaw:
            return f"has a flaw at tensor {spec.name[:64]!r}: {flaw}"
    return ""


def _find_parity_flaw(manifest: SliceManifest) -> str:
    """Return which parity does not stand for the shares of its tensor, an empty text where all do."""
    shares = dict[str, tuple[int, ...]]()
    specs = (spec for entry in manifest.slices for step in entry.steps for spec in (*step.inputs, *step.outputs))
    for spec in (*manifest.tensors, *specs):
        region = spec.region
        if region is None or not region.parity:
            continue
        bounds, sizes = region.parity, [stop - start for start, stop in region.shares]
        if len(sizes) < 2 or bounds[0] or min(sizes) < 1 or region.summands:
            return f"gives {spec.name[:64]!r} shares with the bounds {list(bounds)}, expected three or more from 0 on"
        if shares.setdefault(spec.of, bounds) != bounds:
            return f"gives tensor {spec.of[:64]!r} two parities, expected one"
        size = spec.shape[region.axis] if region.axis < len(spec.shape) else 0
        if (region.start, region.stop) != (0, max(sizes)) or size != region.stop:
            return f"gives {spec.name[:64]!r} {size} elements, expected {max(sizes)}, as the largest share has"
    return ""


def _find_gap(slices: tuple[SliceEntry, ...]) -> str:
    """Return which slice does not begin where the one before it ends, or runs no operator; an empty text where none."""
    if not slices:
        return "names no slice, expected one or more; cut the model again"
    at, before = slices[0].start, None
    for index, entry in enumerate(slices):
        if before is not None and before.steps and entry.steps and entry.start == before.start:
            at = before.start  # a further shard of the same operators
        before = entry
        if entry.start != at or entry.stop <= at:
            return (
                f"gives slice {index} the operators [{entry.start}, {entry.stop}), expected some from {at} on; cut the "
                "model again"
            )
        at = entry.stop
    return ""


def find_shard_flaw(manifest: SliceManifest) -> str:
    """Return why the shards of a manifest could not run to their end, an empty text where they can.

    Every region that a step takes must come from a source, from a message of another slice or from an earlier step, and
    no two steps may wait for each other.
    """
    shards = [entry for entry in manifest.slices if entry.steps]
    if not shards:
        return ""
    if any(entry.file != entry.steps[0].file or entry.sha256 != entry.steps[0].sha256 for entry in shards):
        return "has a shard whose file is not that of its first step; cut the model again"
    made = {spec.name for entry in manifest.slices if not entry.steps for spec in entry.outputs}
    known = {spec.name for entry in manifest.slices for spec in entry.outputs}
    made |= {spec.name for entry in manifest.slices for spec in entry.inputs} - known  # sources
    there: list[list[TensorSpec]] = [[] for _ in shards]
    done, moved = [0] * len(shards), True
    while moved:
        moved = False
        for k, entry in enumerate(shards):
            inputs = [spec for spec in entry.inputs if spec.name in made]
            while done[k] < len(entry.steps):
                step = entry.steps[done[k]]
                if not all(is_covered(spec, [*inputs, *there[k]]) for spec in step.inputs):
                    break
                there[k] += step.outputs
                done[k] += 1
                moved = True
            made |= {spec.name for spec in entry.outputs if is_covered(spec, there[k])}
    for k, entry in enumerate(shards):
        if done[k] < len(entry.steps):
            return f"has a shard whose step {done[k]} ({entry.steps[done[k]].file}) can never run; cut the model again"
        lost = next((spec.name for spec in entry.outputs if spec.name not in made), None)
        if lost is not None:
            return f"has a shard that never makes {lost[:64]!r}, which it should give; cut the model again"
    return ""


def is_covered(wanted: TensorSpec, there: Iterable[TensorSpec]) -> bool:
    """Return whether a region of a tensor can be put together from these pieces of it.

    Pieces along one axis are put side by side; where that is not the axis of the region, they must be all of the
    tensor along it. `wanted` with `summands` takes the sum of as many pieces of each place. A parity is a piece of its
    own: what could be decoded from it counts as missing here, since nothing must depend on a missing share.
    """
    pieces = [spec for spec in there if spec.of == wanted.of and parity_of(spec) == parity_of(wanted)]
    if parity_of(wanted):
        return bool(pieces)
    if any(spec.region is None for spec in pieces):
        return True
    summands = wanted.region.summands if wanted.region else 0
    for axis in range(len(wanted.shape)):
        if wanted.region is not None and wanted.region.axis == axis:
            start, stop = wanted.region.start, wanted.region.stop
        else:
            start, stop = 0, wanted.shape[axis]
        along = [spec.region for spec in pieces if spec.region is not None and spec.region.axis == axis]
        if stop > start and all(
            _reaches([one for one in along if one.summands == summands and one.summand == summand], start, stop)
            for summand in range(max(1, summands))
        ):
            return True
    return False


def parity_of(spec: TensorSpec) -> tuple[int, ...]:
    """Return the bounds of the shares that a piece is the parity of, none for another piece."""
    return spec.region.parity if spec.region else ()


def _reaches(pieces: Iterable[TensorRegion], start: int, stop: int) -> bool:
    """Return whether the pieces cover [start, stop) without a gap."""
    for piece in sorted(pieces, key=lambda one: one.start):
        if piece.start <= start < piece.stop:
            start = piece.stop
    return start >= stop


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
