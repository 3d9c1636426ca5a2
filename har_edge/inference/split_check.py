"""Compute a block of operators by its shards in this process, and compare the result with that of the whole block."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.assembly import PieceKey, find_assembly
from har_edge.inference.interpreter import Array, Delegate, Interpreter
from har_edge.inference.shard_run import run_shards
from har_edge.tflite.manifest import ShardStep, SliceEntry, SliceManifest, TensorSpec
from har_edge.tflite.split.block import BlockSplit
from har_edge.tflite.split.transfers import whole_name

_TINY = 1e-30  # a whole of zeros only is compared with this


@dataclass(frozen=True, slots=True)
class SplitAgreement:
    """How the result of shards agrees with the whole: all bits equal, or the largest difference over the largest value
    of the tensor.
    """

    equal: bool
    error: float


class RegionStore:
    """Regions of tensors of one window, as if every shard had them."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        self._there: list[tuple[PieceKey, TensorSpec]] = []
        self._arrays: dict[PieceKey, Array] = {}
        for name, value in values.items():
            self.put(TensorSpec(name, value.shape, value.dtype.name), value)

    def put(self, spec: TensorSpec, value: Array) -> None:
        """Keep a region, or a whole tensor."""
        key = (len(self._there), spec.name)
        self._there.append((key, spec))
        self._arrays[key] = value

    def get(self, spec: TensorSpec) -> Array | None:
        """Return a region put together from pieces, or None where some are missing."""
        try:
            return np.ascontiguousarray(find_assembly(spec, self._there).make(self._arrays))
        except ModelError:
            return None


def run_split(split: BlockSplit, values: Mapping[str, Array], *, delegate: Delegate = Delegate.XNNPACK) -> RegionStore:
    """Run the shards of a block on the tensors that it takes, each step as soon as it has its regions.

    Raises ModelError when a step can never run.
    """
    shards = [steps for shard in range(len(split.block.bounds) - 1) if (steps := split.steps(shard))]
    files = {step.key: step for steps in shards for step in steps}
    names = {key: str(number) for number, key in enumerate(files)}
    loaded = {names[key]: Interpreter(bytes(step.write()), delegate=delegate) for key, step in files.items()}
    sources = tuple(TensorSpec(name, value.shape, value.dtype.name) for name, value in values.items())
    made = [tuple(whole_name(spec) for step in steps for spec in step.outputs) for steps in shards]
    entries = [
        SliceEntry(
            file="",
            sha256="",
            start=split.block.start,
            stop=split.block.stop,
            inputs=(*sources, *(spec for other in made if other is not own for spec in other)),
            outputs=own,
            steps=tuple(ShardStep(names[step.key], "", step.inputs, step.outputs) for step in steps),
        )
        for steps, own in zip(shards, made, strict=True)
    ]
    got = run_shards(SliceManifest(0, "block", "", tuple(entries)), loaded.__getitem__, values)
    store = RegionStore(values)
    for spec in itertools.chain.from_iterable(made):
        store.put(spec, got[spec.name])
    return store


def compare(wanted: Iterable[tuple[TensorSpec, Array]], store: RegionStore) -> SplitAgreement:
    """Return how the tensors of a store agree with those of the whole."""
    equal, error = True, 0.0
    for spec, whole in wanted:
        got = store.get(spec)
        if got is None or got.shape != whole.shape or got.dtype != whole.dtype:
            said = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
            raise ModelError(f"shards gave {said} for {spec.name}, expected {whole.dtype} {list(whole.shape)}")
        equal = equal and got.tobytes() == whole.tobytes()
        if whole.size:
            gap = np.abs(got.astype(np.float64) - whole.astype(np.float64)).max()
            error = max(error, float(gap / max(_TINY, np.abs(whole.astype(np.float64)).max())))
    return SplitAgreement(equal, error)
