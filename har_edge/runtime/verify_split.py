"""Prove that the stages of a split give what the whole model gives, whatever order their messages come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from har_edge.errors import HarEdgeError
from har_edge.inference.interpreter import Array, Delegate, Interpreter, load_slice
from har_edge.inference.loaded_slice import LoadedSlice
from har_edge.inference.shard_program import Run, ShardProgram
from har_edge.inference.slice_check import SHARD_ERROR, relative_error
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.runtime.stage.shard import make_stage
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.verify import RUNS, SEED, MessageLine, WholeRun, run_whole
from har_edge.tflite.manifest import SliceManifest, TensorSpec, load_manifest
from har_edge.tflite.model import Model

ORDERS = 4


class SplitCheck(msgspec.Struct, frozen=True):
    """The result of a comparison: `difference` says what was not equal, None when all was.

    `error` is the largest difference of floats that count as equal, over the largest value of their tensor; 0 where
    all bits are equal. `runs` random inputs were run, each with messages in `orders` orders, and once without each of
    the `spared` stages, for which a parity stands.
    """

    stages: int
    runs: int
    orders: int
    error: float
    difference: str | None
    spared: int = 0


def check_split(
    model: Model,
    folder: Path,
    *,
    runs: int = RUNS,
    orders: int = ORDERS,
    threads: int = 1,
    delegate: Delegate = Delegate.XNNPACK,
) -> SplitCheck:
    """Compare the whole model with the stages of a folder, which send each other messages.

    The first order is that in which messages are sent; in the others, messages of different topics overtake each other
    at random. Integers must be equal, and floats of one order those of each other to the bit; against the whole model
    they may differ by SHARD_ERROR of the largest value, and with a parity of floats from each other as well.
    """
    manifest = load_manifest(folder)
    hashes = {file: sha256 for entry in manifest.slices for file, sha256 in entry.files.items()}

    @cache
    def load(sha256: str) -> Interpreter:
        file = next(name for name, one in hashes.items() if one == sha256)
        return load_slice(folder / file, sha256, threads=threads, delegate=delegate)

    expected = run_whole(model, runs, lambda content: Interpreter(content, threads=threads, delegate=delegate))[:runs]
    error = 0.0
    try:
        line = _Group(
            model, manifest, [LoadedSlice(entry, lambda _, sha256: load(sha256)) for entry in manifest.slices]
        )
        spared, rounds = manifest.spared, _rounds_floats(manifest)
        cases = [*((order, -1) for order in range(orders)), *((0, index) for index in spared)]
        for number, run in enumerate(expected):
            first: dict[str, Array] = {}
            for order, lost in cases:
                made = line.run(run, number * orders + order, None if order == 0 else order, lost)
                first = first or made
                error = max(error, _error(run, made))
                difference = _difference(run, made, made if rounds else first)
                if difference:
                    where = f" (without stage {lost})" if lost >= 0 else ""
                    return SplitCheck(len(manifest.slices), runs, orders, error, difference + where, len(spared))
    except HarEdgeError as failure:
        return SplitCheck(len(manifest.slices), runs, orders, error, str(failure))
    return SplitCheck(len(manifest.slices), runs, orders, error, None, len(spared))


def _rounds_floats(manifest: SliceManifest) -> bool:
    """Return whether a decoded share may differ from the one that is missing."""
    return any(np.dtype(dtype).kind == "f" for dtype in manifest.coded.values())


def _error(run: WholeRun, made: dict[str, Array]) -> float:
    floats = [name for name, value in run.results.items() if value.dtype.kind == "f" and name in made]
    return max((relative_error(run.results[name], made[name]) for name in floats), default=0.0)


def _difference(run: WholeRun, made: dict[str, Array], first: dict[str, Array]) -> str | None:
    for name, wanted in run.results.items():
        got = made.get(name)
        if got is None:
            return f"output {name}: no stage gave it"
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            return f"output {name}: {got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
        error = relative_error(wanted, got)
        if error > (SHARD_ERROR if wanted.dtype.kind == "f" else 0):
            return f"output {name}: {int(np.count_nonzero(wanted != got))} of {wanted.size} elements differ"
        if got.tobytes() != first[name].tobytes():
            return f"output {name}: other bits when messages come in another order"
    return None


@dataclass(slots=True)
class _Member:
    """A stage and the topics that it takes."""

    stage: Stage
    topics: set[str]


class _Group:
    """The stages of a split, and the messages between them, which a test may put in any order."""

    def __init__(self, model: Model, manifest: SliceManifest, loaded: Sequence[LoadedSlice]) -> None:
        self._line = MessageLine(model, manifest)
        self._results = {model.main.tensors[i].name for i in model.main.outputs}
        self._manifest, self._loaded = manifest, loaded
        self._token = 0

    def run(self, run: WholeRun, number: int, seed: int | None, lost: int = -1) -> dict[str, Array]:
        """Return what the stages give for a window, without the `lost` one.

        Raises MessageError for what one of them refuses.
        """
        made = {name: value for name, value in run.values.items() if name in self._results}
        members = [self._member(index, made) for index in range(len(self._manifest.slices)) if index != lost]
        rng = None if seed is None else np.random.default_rng([SEED, seed])
        waiting = deque((one, member) for one in self._line.windows(number, run) for member in members)
        while waiting:
            if rng is not None:
                waiting.rotate(int(rng.integers(len(waiting))))
            outgoing, member = waiting.popleft()
            if outgoing.topic not in member.topics:
                continue
            for one in self._take(member, outgoing):
                waiting += [(one, other) for other in members if one.topic]
        return made

    def _take(self, member: _Member, outgoing: Outgoing) -> list[Outgoing]:
        self._token += 1
        made = member.stage.handle(Delivery(outgoing.topic, outgoing.payload, (0, self._token)))
        while member.stage.ready:
            made += member.stage.step()
        if member.stage.complaint:
            raise HarEdgeError(member.stage.complaint)
        return made

    def _member(self, index: int, made: dict[str, Array]) -> _Member:
        entry, loaded = self._manifest.slices[index], self._loaded[index]
        if loaded.program is None:
            setup = self._line.setup(index, self._noting(loaded.run, entry.outputs, made))
        else:
            runs = [
                self._noting(known.run, step.outputs, made)
                for known, step in zip(loaded.program.steps, entry.steps, strict=True)
            ]
            program = ShardProgram(entry, runs)
            setup = self._line.setup(index, program.run, program)
        stage = make_stage(setup, clock=lambda: 0.0, monotonic=lambda: 0.0)
        return _Member(stage, self._line.filters(index))

    def _noting(self, run: Run, outputs: Sequence[TensorSpec], made: dict[str, Array]) -> Run:
        """Return a run that notes the results of the model that it gives."""
        whole = {spec.name: spec.of for spec in outputs if spec.region is None and spec.of in self._results}

        def noting(values: Mapping[str, Array]) -> Mapping[str, Array]:
            given = run(values)
            made.update({name: given[port] for port, name in whole.items()})
            return given

        return noting
