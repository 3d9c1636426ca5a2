"""Choose how the tensors travel that cross the cuts of a model, and write it into a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.errors import ConfigError, CutError
from har_edge.tflite.manifest import NEWEST_WIRE, SliceManifest, TensorSpec, versioned
from har_edge.tflite.packing import ROUNDED, Rounding, TensorPacking, parse_packing

AUTO = "auto"  # in place of a packing: as the plan says


@dataclass(frozen=True, slots=True)
class PackingRequest:
    """A packing, not calibrated yet, for the tensors that cross one cut (before that operator), one `tensor`, or all.

    With `planned`, a plan says how each tensor travels instead.
    """

    packing: TensorPacking
    cut: int | None = None
    tensor: str | None = None
    planned: bool = False

    @property
    def is_special(self) -> bool:
        """Whether it is for some tensors alone."""
        return self.cut is not None or self.tensor is not None


def parse_request(text: str) -> PackingRequest:
    """Read PACKING, PACKING@CUT or `auto`, which leaves it to a plan. Raises ConfigError for anything else."""
    if text == AUTO:
        return PackingRequest(TensorPacking(), planned=True)
    name, at, cut = text.partition("@")
    if at and not cut.isdecimal():
        raise ConfigError(f"cut {cut[:64]!r} came; expected the number of an operator, as in --at")
    return PackingRequest(parse_packing(name, calibrated=False), int(cut) if at else None)


def choose_packings(manifest: SliceManifest, requests: Sequence[PackingRequest]) -> dict[str, TensorPacking]:
    """Return the packing of each tensor that travels, by its name in the model; tensors that stay as they are lack.

    A request for a cut or a tensor counts before one for all. Integers are not rounded: of that only zstd is left.
    Raises CutError for a cut that is none, ConfigError for two packings of a tensor, and where a request changes none.
    """
    if requests and manifest.wire < NEWEST_WIRE:
        raise ConfigError(f"--pack came with wire version {manifest.wire}; packed tensors need --wire {NEWEST_WIRE}")
    chosen: dict[str, tuple[TensorPacking, bool]] = {}
    for request in sorted(requests, key=lambda one: not one.is_special):
        specs, special = _wanted(manifest, request), request.is_special
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
        if not changed and request.tensor is None:
            where = "crosses any cut" if request.cut is None else f"crosses cut {request.cut}"
            raise ConfigError(
                f"--pack came, but no tensor of {' or '.join(ROUNDED)} {where}; use zstd, or leave it out"
            )
    return {name: packing for name, (packing, _) in chosen.items() if packing != TensorPacking()}


def planned_requests(packings: Mapping[str, str]) -> list[PackingRequest]:
    """Return what a plan asks for: the way of each tensor, by its name in the model."""
    return [PackingRequest(parse_packing(way, calibrated=False), tensor=name) for name, way in packings.items()]


def _wanted(manifest: SliceManifest, request: PackingRequest) -> dict[str, TensorSpec]:
    """Return the tensors that a request is for."""
    specs = crossing_tensors(manifest, request.cut)
    if request.tensor is None:
        return specs
    if request.tensor not in specs:
        raise ConfigError(
            f"the plan packs the tensor {request.tensor[:64]!r}, which no slice sends to another one; make it anew "
            "with 'har-edge plan --out FILE'"
        )
    return {request.tensor: specs[request.tensor]}


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
