"""Compute a block of operators by its shards in this process, and compare the result with that of the whole block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.assembly import PieceKey, find_assembly
from har_edge.inference.interpreter import Array, Delegate, Interpreter
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.split.block import BlockSplit, StepDraft

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
    """Run the steps of all shards of a block on the tensors that it takes, as soon as each has its regions.

    Raises ModelError when a step can never run.
    """
    store = RegionStore(values)
    loaded: dict[object, Interpreter] = {}
    waiting = [list(split.steps(shard)) for shard in range(len(split.block.bounds) - 1)]
    while any(waiting):
        before = sum(map(len, waiting))
        for steps in waiting:
            while steps and _run_step(steps[0], store, loaded, delegate):
                steps.pop(0)
        if sum(map(len, waiting)) == before:
            stuck = next(steps[0] for steps in waiting if steps)
            names = ", ".join(spec.name for spec in stuck.inputs if store.get(spec) is None)
            raise ModelError(f"a step of operators [{split.block.start}, {split.block.stop}) waits for {names} forever")
    return store


def _run_step(step: StepDraft, store: RegionStore, loaded: dict[object, Interpreter], delegate: Delegate) -> bool:
    taken = {spec.name: store.get(spec) for spec in step.inputs}
    ready = {name: value for name, value in taken.items() if value is not None}
    if len(ready) < len(taken):
        return False
    if step.key not in loaded:
        loaded[step.key] = Interpreter(bytes(step.write()), delegate=delegate)
    results = loaded[step.key].run(ready)
    for spec in step.outputs:
        store.put(spec, results[spec.name])
    return True


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
