"""Choose how the tensors travel that cross the cuts of a model, and write it into a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.errors import ConfigError, CutError
from har_edge.tflite.manifest import NEWEST_WIRE, SliceManifest, TensorSpec, versioned
from har_edge.tflite.packing import ROUNDED, Rounding, TensorPacking, parse_packing


@dataclass(frozen=True, slots=True)
class PackingRequest:
    """A packing, not calibrated yet, for the tensors that cross one cut (before that operator), or all of them."""

    packing: TensorPacking
    cut: int | None = None


def parse_request(text: str) -> PackingRequest:
    """Read PACKING or PACKING@CUT. Raises ConfigError for anything else."""
    name, at, cut = text.partition("@")
    if at and not cut.isdecimal():
        raise ConfigError(f"cut {cut[:64]!r} came; expected the number of an operator, as in --at")
    return PackingRequest(parse_packing(name, calibrated=False), int(cut) if at else None)


def choose_packings(manifest: SliceManifest, requests: Sequence[PackingRequest]) -> dict[str, TensorPacking]:
    """Return the packing of each tensor that travels, by its name in the model; tensors that stay as they are lack.

    A request for a cut counts before one for all. Integers are not rounded; of such a request only zstd is left.
    Raises CutError for a cut that is none, ConfigError for two packings of a tensor, and where a request changes none.
    """
    if requests and manifest.wire < NEWEST_WIRE:
        raise ConfigError(f"--pack came with wire version {manifest.wire}; packed tensors need --wire {NEWEST_WIRE}")
    chosen: dict[str, tuple[TensorPacking, bool]] = {}
    for request in sorted(requests, key=lambda one: one.cut is None):
        specs, special = crossing_tensors(manifest, request.cut), request.cut is not None
        changed = False
        for name, spec in specs.items():
            packing = request.packing if spec.dtype in ROUNDED else replace(request.packing, rounding=Rounding.NONE)
            before = chosen.get(name)
            if before is not None and before[1] and not special:
                changed = True
                continue
            if before is not None and before[0] != packing:
                raise ConfigError(
                    f"two packings came for tensor {name[:64]!r}; expected one for each tensor, since it is sent once"
                )
            chosen[name] = packing, special
            changed |= packing != TensorPacking()
        if not changed:
            where = "crosses any cut" if request.cut is None else f"crosses cut {request.cut}"
            raise ConfigError(
                f"--pack came, but no tensor of {' or '.join(ROUNDED)} {where}; use zstd, or leave it out"
            )
    return {name: packing for name, (packing, _) in chosen.items() if packing != TensorPacking()}


def crossing_tensors(manifest: SliceManifest, cut: int | None = None) -> dict[str, TensorSpec]:
    """Return the tensors that slices send to others, across one cut or at all, by their names in the model.

    Raises CutError for a cut that is none.
    """
    entries = manifest.slices
    if cut is not None and cut not in {entry.start for entry in entries[1:]}:
        cuts = ", ".join(str(start) for start in dict.fromkeys(entry.start for entry in entries[1:])) or "none"
        raise CutError(f"--pack names cut {cut}; expected one of {cuts}")
    taken = {spec.name for entry in entries if cut is None or entry.start >= cut for spec in entry.inputs}
    return {
        spec.of: spec
        for entry in entries
        if cut is None or entry.stop <= cut
        for spec in entry.outputs
        if spec.name in taken
    }


def with_packings(manifest: SliceManifest, packings: Mapping[str, TensorPacking]) -> SliceManifest:
    """Return the manifest in which these tensors, by their names in the model, travel so; all must be calibrated."""
    if not packings:
        return manifest
    sent = {spec.name for entry in manifest.slices for spec in entry.outputs}
    taken = {spec.name for entry in manifest.slices for spec in entry.inputs}

    def packed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            msgspec.structs.replace(spec, packing=packings[spec.of].text)
            if spec.of in packings and spec.name in sent and spec.name in taken
            else spec
            for spec in specs
        )

    slices = (
        msgspec.structs.replace(entry, inputs=packed(entry.inputs), outputs=packed(entry.outputs))
        for entry in manifest.slices
    )
    return versioned(msgspec.structs.replace(manifest, slices=tuple(slices)))
