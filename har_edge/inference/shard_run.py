"""Run the shards of a folder, or of a layout that is not written, in one process, to compare them with the whole model.

It is the reference for what shards give: every step runs as soon as its regions are there, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorRegion, TensorSpec, is_covered


class _Regions:
    """The regions of tensors that one shard has of one window."""

    def __init__(self) -> None:
        self._pieces: list[tuple[TensorSpec, Array]] = []

    def put(self, spec: TensorSpec, value: Array) -> None:
        """Add a region."""
        self._pieces.append((spec, value))

    def has(self, spec: TensorSpec) -> bool:
        """Return whether the regions that are there cover this one."""
        return is_covered(spec, [one for one, _ in self._pieces])

    def get(self, spec: TensorSpec) -> Array:
        """Return a region, put together from those that are there. Raises ModelError where some of it is missing."""
        pieces = [(one, value) for one, value in self._pieces if one.of == spec.of]
        count = spec.region.summands if spec.region else 0
        for axis in range(len(spec.shape)):
            parts = [_along(spec, axis, pieces, number, count) for number in range(max(1, count))]
            found = [part for part in parts if part is not None]
            if len(found) == len(parts):
                total = found[0]
                for part in found[1:]:
                    total = total + part
                return np.ascontiguousarray(_cut(total, spec.region, axis))
        raise ModelError(f"region {spec.region} of {spec.of} is not there")


def run_shards(
    manifest: SliceManifest, load: Callable[[str], Interpreter], sources: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the whole tensors that the entries of a manifest give for the sources' tensors, by name.

    Each entry has only what its inputs name. `load` returns the interpreter of a file. Raises ModelError where a step
    waits for ever.
    """
    stores = [_Regions() for _ in manifest.slices]
    published: dict[str, Array] = {}
    for store, entry in zip(stores, manifest.slices, strict=True):
        for spec in entry.inputs:
            if spec.of in sources and all(spec.name not in _names(other) for other in manifest.slices):
                store.put(spec, np.ascontiguousarray(_cut(sources[spec.of], spec.region)))
    done, sent = [0] * len(stores), [set[str]() for _ in stores]
    moved = True
    while moved:
        moved = False
        for k, entry in enumerate(manifest.slices):
            steps = entry.steps or (ShardStep(entry.file, entry.sha256, entry.inputs, entry.outputs),)
            while done[k] < len(steps) and all(stores[k].has(spec) for spec in steps[done[k]].inputs):
                _run(steps[done[k]], load, stores[k])
                done[k] += 1
                moved = True
            for spec in entry.outputs:
                if spec.name not in sent[k] and _is_made(spec, steps[: done[k]]):
                    sent[k].add(spec.name)
                    published[spec.name] = stores[k].get(spec)
                    _deliver(spec, published[spec.name], k, manifest.slices, stores)
    for k, entry in enumerate(manifest.slices):
        if done[k] < max(1, len(entry.steps)):
            raise ModelError(f"step {done[k]} of shard {k} waits for ever")
    return published


def _names(entry: SliceEntry) -> set[str]:
    return {spec.name for spec in entry.outputs}


def _is_made(spec: TensorSpec, steps: Sequence[ShardStep]) -> bool:
    return is_covered(spec, [made for step in steps for made in step.outputs])


def _run(step: ShardStep, load: Callable[[str], Interpreter], store: _Regions) -> None:
    results = load(step.file).run({spec.name: store.get(spec) for spec in step.inputs})
    for spec in step.outputs:
        store.put(spec, results[spec.name])


def _deliver(
    spec: TensorSpec, value: Array, maker: int, entries: Sequence[SliceEntry], stores: Sequence[_Regions]
) -> None:
    for k, entry in enumerate(entries):
        for wanted in entry.inputs:
            if k != maker and wanted.name == spec.name:
                stores[k].put(wanted, value)


def _along(
    spec: TensorSpec, axis: int, pieces: Sequence[tuple[TensorSpec, Array]], number: int, count: int
) -> Array | None:
    """Return the rows of a region that pieces along an axis give, None where they do not cover it."""
    whole = [value for one, value in pieces if one.region is None]
    region = spec.region
    if whole:
        return whole[0] if region is None or region.axis != axis else whole[0][_slices(axis, region.start, region.stop)]
    start, stop = (region.start, region.stop) if region and region.axis == axis else (0, spec.shape[axis])
    along = sorted(
        (
            (one.region, value)
            for one, value in pieces
            if one.region and (one.region.axis, one.region.summand, one.region.summands) == (axis, number, count)
        ),
        key=lambda each: each[0].start,
    )
    found = []
    for one, value in along:
        if one.start <= start < min(one.stop, stop):
            end = min(one.stop, stop)
            found.append(value[_slices(axis, start - one.start, end - one.start)])
            start = end
    return np.concatenate(found, axis) if found and start == stop else None


def _slices(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, stop))


def _cut(value: Array, region: TensorRegion | None, done: int = -1) -> Array:
    """Return the region of a whole tensor; along the axis `done` it is cut already."""
    return value if region is None or region.axis == done else value[_slices(region.axis, region.start, region.stop)]
