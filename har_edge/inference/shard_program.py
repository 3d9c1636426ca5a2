"""The steps of a shard: which can run now, what each takes, and what can leave after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from har_edge.errors import MessageError, ModelError
from har_edge.inference.assembly import MESSAGE, Assembly, PieceKey, find_assembly
from har_edge.inference.coded_assembly import CodedAssembly, find_input
from har_edge.tflite.manifest import ShardStep, SliceEntry, TensorSpec

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step: its run, how each input is put together, its outputs with the piece that each is, and the pieces that it
    takes; `touched` are all of these pieces. All `needed` ones must be there, and of each of the `coded` inputs enough.
    """

    run: Run
    inputs: Mapping[str, Assembly | CodedAssembly]
    outputs: tuple[tuple[PieceKey, TensorSpec], ...]
    keys: frozenset[PieceKey]
    touched: frozenset[PieceKey]
    needed: frozenset[PieceKey]
    coded: tuple[CodedAssembly, ...] = ()

    def is_ready(self, there: Set[PieceKey], without: frozenset[PieceKey] = frozenset()) -> bool:
        """Return whether enough of its coded inputs is there."""
        return all(one.is_ready(there, without) for one in self.coded)


class ShardProgram:
    """The steps of a shard with a run for each, and how its outputs are put together.

    `roots` are the inputs that the first step takes, `optional` those for which a parity can stand. `spare` are outputs
    that a parity can stand for, each with the tensor that they are a share of, or the parity. Raises ModelError where a
    step takes what neither messages nor earlier steps give.
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
        self.waiting = {key: tuple(k for k, step in enumerate(self.steps) if key in step.needed) for key, _ in there}
        self.gives = {key: tuple(name for name, keys in self.output_keys.items() if key in keys) for key, _ in made}
        needed = frozenset[PieceKey]().union(*(step.needed for step in steps))
        coded = [one for step in steps for one in step.coded]
        keys = frozenset[PieceKey]().union(*(one.keys for one in coded))
        self.optional = frozenset(name for number, name in keys - needed if number == MESSAGE)
        self.spare = {name: (one, own) for name, own in self.output_keys.items() for one in coded if own <= one.keys}
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
    inputs = {spec.name: find_input(spec, there) for spec in step.inputs}
    coded = tuple(one for one in inputs.values() if isinstance(one, CodedAssembly))
    needed = frozenset[PieceKey]().union(*(one.keys for one in inputs.values() if isinstance(one, Assembly)))
    outputs = tuple(((number, spec.name), spec) for spec in step.outputs)
    keys = needed.union(*(one.keys for one in coded))
    return _Step(run, inputs, outputs, keys, keys.union(key for key, _ in outputs), needed, coded)


class ShardRun:
    """The regions that a shard has of one window, and the steps that it has run.

    A region goes when all have had it that take it. `wanted` are the outputs that somebody takes.

    With `spares`, it leaves out shares that all their takers can do without, because all other shares or the parity
    have come, and the steps that lead to nothing else: a shard that is late catches up so.
    """

    def __init__(self, program: ShardProgram, wanted: Mapping[str, object], *, spares: bool = False) -> None:
        self._program, self._store = program, dict[PieceKey, Array]()
        self._spares = dict(program.spare) if spares else {}
        self._needless = set[int | str]()  # outputs and steps that are left out
        self.decoded = False  # whether a parity stood for a share
        self._done = set[int | str](name for name in program.outputs if name not in wanted)
        self._left = list(range(len(program.steps)))
        self._lacks = [len(step.needed) for step in program.steps]  # how many needed pieces are not there
        self._covered = list[str]()
        self.next: int | None = None  # the first step whose regions are all there

    @property
    def complete(self) -> bool:
        """Whether all steps were run."""
        return not self._left

    @property
    def left_out(self) -> bool:
        """Whether a share was left out, since the others could do without it."""
        return bool(self._needless)

    @property
    def covered(self) -> list[str]:
        """The outputs that are there and were not taken."""
        return self._covered.copy()

    @property
    def due(self) -> list[int]:
        """The steps that lead to an output for which all parts have come."""
        if self._program.spare or self._program.optional:
            return self._due_of_some()
        steps = set[int]()
        for name, keys in self._program.needs.items():
            if name not in self._done and all(key in self._store for key in keys if key[0] == MESSAGE):
                steps |= {key[0] for key in keys}
        return [number for number in self._left if number in steps]

    def _due_of_some(self) -> list[int]:
        """Return the steps that lead to an output for which enough parts have come."""
        there, runnable = set(self._store), list[int]()
        for number in self._left:
            step = self._program.steps[number]
            if step.needed <= there and step.is_ready(there):
                runnable.append(number)
                there.update(key for key, _ in step.outputs)
        steps = set[int]()
        for name, keys in self._program.needs.items():
            if name not in self._done and self._program.output_keys[name] <= there:
                steps |= {key[0] for key in keys}
        return [number for number in runnable if number in steps]

    def add(self, parts: Mapping[str, Array]) -> None:
        """Add what a message brought."""
        for name, part in parts.items():
            self._put((MESSAGE, name), part)
        self._look()

    def step(self, number: int) -> None:
        """Run a step whose regions are there; raises MessageError for what its operators refuse."""
        step = self._program.steps[number]
        if step.coded:
            self.decoded = self.decoded or any(one.missing(self._store.keys()) for one in step.coded)
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
        if self._spares:
            self._leave_out()
        lacks, steps, there = self._lacks, self._program.steps, self._store.keys()
        self.next = next((number for number in self._left if not lacks[number] and steps[number].is_ready(there)), None)

    def _leave_out(self) -> None:
        """Leave out shares that nobody needs, and the steps that lead to nothing else."""
        for name, (coded, own) in self._spares.items():
            there = name in self._done or name in self._covered
            if not there and coded.is_ready(self._store.keys(), own):
                self._needless.add(name)
                self._finish(name, own)
        if not self._needless:
            return
        for number in reversed(self._left):
            step = self._program.steps[number]
            made = [key for key, _ in step.outputs]
            takers = frozenset[int | str]().union(*(self._program.takers[key] for key in made))
            if takers & self._needless and not any(map(self._is_wanted, made)):
                self._left.remove(number)
                self._needless.add(number)
                self._finish(number, step.keys)

    def _is_wanted(self, key: PieceKey) -> bool:
        """Return whether an output, or a step that cannot run without it, takes a piece."""
        there, own = self._store.keys(), frozenset({key})
        for taker in self._program.takers[key] - self._done:
            if isinstance(taker, str):
                return True
            step = self._program.steps[taker]
            if key in step.needed or not all(one.is_ready(there, own) for one in step.coded if key in one.keys):
                return True
        return False


def _fits(array: Array, spec: TensorSpec) -> bool:
    """Return whether an array has the shape of a tensor, whose open dimensions take any size."""
    return array.ndim == len(spec.shape) and all(
        wanted in (-1, got) for wanted, got in zip(spec.shape, array.shape, strict=True)
    )
