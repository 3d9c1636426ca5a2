"""Run all shards of a split in one process, as the reference for what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.inference.shard_program import ShardProgram, ShardRun
from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorRegion


def run_shards(
    manifest: SliceManifest, load: Callable[[str], Interpreter], sources: Mapping[str, Array]
) -> dict[str, Array]:
    """Return what the entries of a manifest send for one window, by name; whole tensors have the model's names.

    Each entry has only what its inputs name. `sources` are the model's inputs by tensor name, `load` returns the
    interpreter of a file. Raises ModelError where a step waits for ever.
    """
    entries = [_with_steps(entry) for entry in manifest.slices]
    programs = [ShardProgram(entry, [load(step.file).run for step in entry.steps]) for entry in entries]
    runs = [ShardRun(program, program.outputs) for program in programs]
    sent = {spec.name for entry in entries for spec in entry.outputs}
    for run, entry in zip(runs, entries, strict=True):
        needed = [spec for spec in entry.inputs if spec.of in sources and spec.name not in sent]
        run.add({spec.name: _cut(sources[spec.of], spec.region) for spec in needed})
    published, moved = dict[str, Array](), True
    while moved:
        moved = False
        for run in runs:
            while (number := run.next) is not None:
                run.step(number)
                moved = True
                made = {name: run.take(name) for name in run.covered}
                published |= made
                _deliver(made, runs, entries)
    for number, (run, entry) in enumerate(zip(runs, entries, strict=True)):
        if not run.complete:
            raise ModelError(f"a step of slice {number}, operators [{entry.start}, {entry.stop}), waits for ever")
    return published


def _with_steps(entry: SliceEntry) -> SliceEntry:
    """Return a slice that is no shard as one of a single step."""
    if entry.steps:
        return entry
    step = ShardStep(entry.file, entry.sha256, entry.inputs, entry.outputs)
    return msgspec.structs.replace(entry, steps=(step,))


def _deliver(made: Mapping[str, Array], runs: list[ShardRun], entries: list[SliceEntry]) -> None:
    for run, entry in zip(runs, entries, strict=True):
        taken = {spec.name: made[spec.name] for spec in entry.inputs if spec.name in made}
        if taken:
            run.add(taken)


def _cut(value: Array, region: TensorRegion | None) -> Array:
    if region is None:
        return value
    return np.ascontiguousarray(value[(slice(None),) * region.axis + (slice(region.start, region.stop),)])
