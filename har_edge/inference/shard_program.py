"""The steps of a shard: which can run now, what each takes, and what can leave after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from har_edge.errors import MessageError, ModelError
from har_edge.inference.assembly import MESSAGE, Assembly, PieceKey, find_assembly
from har_edge.tflite.manifest import ShardStep, SliceEntry, TensorSpec

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step: its run, how each input is put together, its outputs with the piece that each is, and the pieces that it
    takes; `touched` are all of these pieces.
    """

    run: Run
    inputs: Mapping[str, Assembly]
    outputs: tuple[tuple[PieceKey, TensorSpec], ...]
    keys: frozenset[PieceKey]
    touched: frozenset[PieceKey]


class ShardProgram:
    """The steps of a shard with a run for each, and how its outputs are put together.

    `roots` are the inputs that the first step takes. Raises ModelError where a step takes what neither messages nor
    earlier steps give.
    """

    def __init__(self, entry: SliceEntry, runs: Sequence[Run]) -> None:
        there: list[tuple[PieceKey, TensorSpec]] = [((MESSAGE, spec.name), spec) for spec in entry.inputs]
        steps = list[_Step]()
        for number, (step, run) in enumerate(zip(entry.steps, runs, strict=True)):
            steps.append(_prepare(number, step, run, there))
            there += steps[-1].outputs
        self.steps = tuple(steps)
        made = [one for one in there if one[0][0] != MESSAGE]
        self.outputs = {spec.name: find_assembly(spec, made) for spec in entry.outputs}
        self.roots = frozenset(name for number, name in self.steps[0].keys if number == MESSAGE)
        if not self.roots:
            raise ModelError("the first step of a shard takes nothing that comes; cut the model again")
        # Who takes each piece that a step makes: steps by number, outputs by name.
        self.takers: dict[PieceKey, frozenset[int | str]] = {
            key: frozenset(k for k, step in enumerate(self.steps) if key in step.keys)
            | frozenset(name for name, one in self.outputs.items() if key in one.keys)
            for key, _ in made
        }
        self.output_keys = {name: one.keys for name, one in self.outputs.items()}
        # The steps that wait for each piece, and the outputs that it is a part of.
        self.waiting = {key: tuple(k for k, step in enumerate(self.steps) if key in step.keys) for key, _ in there}
        self.gives = {key: tuple(name for name, keys in self.output_keys.items() if key in keys) for key, _ in made}
        self.needs = {name: self._trace(one) for name, one in self.outputs.items()}

    def _trace(self, output: Assembly) -> frozenset[PieceKey]:
        """Return all pieces that lead to an output."""
        found, open_keys = set[PieceKey](), set(output.keys)
        while open_keys:
            key = open_keys.pop()
            found.add(key)
            if key[0] != MESSAGE:
                open_keys |= self.steps[key[0]].keys - found
        return frozenset(found)

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of all steps, run one after the other, by name."""
        window = ShardRun(self, self.outputs)
        window.add(values)
        made = dict[str, Array]()
        while (number := window.next) is not None:
            window.step(number)
            made |= {name: window.take(name) for name in window.covered}
        if not window.complete:
            raise MessageError(f"inputs {', '.join(values)} came; expected all that the steps of the shard take")
        return made


def _prepare(number: int, step: ShardStep, run: Run, there: Sequence[tuple[PieceKey, TensorSpec]]) -> _Step:
    inputs = {spec.name: find_assembly(spec, there) for spec in step.inputs}
    outputs = tuple(((number, spec.name), spec) for spec in step.outputs)
    keys = frozenset[PieceKey]().union(*(one.keys for one in inputs.values()))
    return _Step(run, inputs, outputs, keys, keys.union(key for key, _ in outputs))


class ShardRun:
    """The regions that a shard has of one window, and the steps that it has run.

    A region goes when all have had it that take it. `wanted` are the outputs that somebody takes.
    """

    def __init__(self, program: ShardProgram, wanted: Mapping[str, object]) -> None:
        self._program, self._store = program, dict[PieceKey, Array]()
        self._done = set[int | str](name for name in program.outputs if name not in wanted)
        self._left = list(range(len(program.steps)))
        self._lacks = [len(step.keys) for step in program.steps]  # how many pieces of each step are not there
        self._covered = list[str]()
        self.next: int | None = None  # the first step whose regions are all there

    @property
    def complete(self) -> bool:
        """Whether all steps were run."""
        return not self._left

    @property
    def covered(self) -> list[str]:
        """The outputs that are there and were not taken."""
        return self._covered.copy()

    @property
    def due(self) -> list[int]:
        """The steps that lead to an output for which all parts have come."""
        steps = set[int]()
        for name, keys in self._program.needs.items():
            if name not in self._done and all(key in self._store for key in keys if key[0] == MESSAGE):
                steps |= {key[0] for key in keys}
        return [number for number in self._left if number in steps]

    def add(self, parts: Mapping[str, Array]) -> None:
        """Add what a message brought."""
        for name, part in parts.items():
            self._put((MESSAGE, name), part)
        self._look()

    def step(self, number: int) -> None:
        """Run a step whose regions are there; raises MessageError for what its operators refuse."""
        step = self._program.steps[number]
        made = step.run({name: one.make(self._store) for name, one in step.inputs.items()})
        for key, spec in step.outputs:
            array = made[spec.name]
            if array.shape != spec.shape and not _fits(array, spec):
                raise MessageError(
                    f"step {number} made {spec.name!r} as {list(array.shape)}; expected {list(spec.shape)}: cut the "
                    "model again"
                )
            self._put(key, array)
        self._left.remove(number)
        self._cover(step)
        self._finish(number, step.touched)
        self._look()

    def take(self, name: str) -> Array:
        """Return an output that is covered, once."""
        assembly = self._program.outputs[name]
        array = assembly.make(self._store)
        self._covered.remove(name)
        self._finish(name, self._program.output_keys[name])
        return array

    def _put(self, key: PieceKey, array: Array) -> None:
        if key not in self._store:
            for number in self._program.waiting.get(key, ()):
                self._lacks[number] -= 1
        self._store[key] = array

    def _cover(self, step: _Step) -> None:
        """Note the outputs for which this step made the last piece."""
        gives, keys = self._program.gives, self._program.output_keys
        for name in dict.fromkeys(name for key, _ in step.outputs for name in gives[key]):
            if name not in self._done and keys[name] <= self._store.keys():
                self._covered.append(name)

    def _finish(self, taker: int | str, keys: frozenset[PieceKey]) -> None:
        self._done.add(taker)
        for key in keys:
            if key[0] != MESSAGE and self._program.takers[key] <= self._done:
                self._store.pop(key, None)

    def _look(self) -> None:
        lacks = self._lacks
        self.next = next((number for number in self._left if not lacks[number]), None)


def _fits(array: Array, spec: TensorSpec) -> bool:
    """Return whether an array has the shape of a tensor, whose open dimensions take any size."""
    return array.ndim == len(spec.shape) and all(
        wanted in (-1, got) for wanted, got in zip(spec.shape, array.shape, strict=True)
    )
