"""A slice that is loaded: one interpreter for a plain slice, one for each file of a shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Array, Delegate, Port
from har_edge.inference.sampling import sample
from har_edge.inference.shard_program import Run, ShardProgram
from har_edge.tflite.manifest import ShardStep, SliceEntry

# Bytes of files that a shard may load a second time, so that steps of other sizes need not allocate anew.
TWIN_BYTES = 8 * 1024 * 1024


class Runner(Protocol):
    """A loaded model: an Interpreter, or one in a process of its own (sandbox.py)."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    model_bytes: int

    @property
    def delegate(self) -> Delegate:
        """Who computes it."""

    def twin(self) -> Runner:
        """Return another one of the same model."""

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one run by name."""


Load = Callable[[str, str], Runner]


class LoadedSlice:
    """The interpreters of a slice; `load` opens a file of a known SHA-256.

    Steps of one hash share an interpreter, which allocates anew where a step has other sizes than the one before. Small
    files have one for each size, as far as TWIN_BYTES go: all other weights are in memory once. `program` is None for a
    slice without steps. Raises ModelError where files and manifest do not belong together.
    """

    def __init__(self, entry: SliceEntry, load: Load) -> None:
        self._entry = entry
        files = {step.sha256: step.file for step in entry.steps} or {entry.sha256: entry.file}
        self._interpreters = {sha256: load(file, sha256) for sha256, file in files.items()}
        self.first = next(iter(self._interpreters.values()))
        for step in entry.steps:
            interpreter = self._interpreters[step.sha256]
            _check_names(step.file, {spec.name for spec in step.inputs}, interpreter.inputs)
            _check_names(step.file, {spec.name for spec in step.outputs}, interpreter.outputs, least=True)
        sized = _open_twins(entry, self._interpreters)
        runs = [sized[_size_of(step)].run for step in entry.steps]
        self.program = ShardProgram(entry, runs) if entry.steps else None
        self.run: Run = self.first.run if self.program is None else self.program.run

    def input_port(self, name: str, shape: tuple[int, ...]) -> Port:
        """Return the port of an input of the slice; that of a shard has the `shape` of the whole input."""
        if not self._entry.steps:
            return next(port for port in self.first.inputs if port.name == name)
        taken = next(spec for spec in self._entry.inputs if spec.name == name)
        for step in self._entry.steps:
            for spec in step.inputs:
                if spec.of == taken.of:
                    found = self._port(self._interpreters[step.sha256].inputs, spec.name)
                    return replace(found, name=name, shape=shape)
        raise ModelError(f"no step of the shard takes {name[:64]!r}; cut the model again")

    def output_port(self, name: str) -> Port | None:
        """Return the port of an output of the slice; None where it has no such output."""
        if not self._entry.steps:
            return next((port for port in self.first.outputs if port.name == name), None)
        if all(one.name != name for one in self._entry.outputs):
            return None
        for step in self._entry.steps:
            for spec in step.outputs:
                if spec.of == name:
                    made = next(one for one in self._entry.outputs if one.name == name)
                    found = self._port(self._interpreters[step.sha256].outputs, spec.name)
                    return replace(found, name=name, shape=made.shape)
        return None

    def sample(self, rng: np.random.Generator) -> Mapping[str, Array]:
        """Return random inputs of the slice."""
        if not self._entry.steps:
            return sample(self.first.inputs, rng)
        specs = self._entry.inputs
        ports = [Port(spec.name, spec.shape, np.dtype(spec.dtype), 0.0, 0) for spec in specs]
        return sample(ports, rng)

    @staticmethod
    def _port(ports: tuple[Port, ...], name: str) -> Port:
        return next(port for port in ports if port.name == name)


_Size = tuple[str, tuple[tuple[int, ...], ...]]  # the hash of a step's file, and the shapes that it takes


def _size_of(step: ShardStep) -> _Size:
    return step.sha256, tuple(spec.shape for spec in step.inputs)


def _open_twins(entry: SliceEntry, interpreters: Mapping[str, Runner]) -> dict[_Size, Runner]:
    """Return the interpreter for each size of step, the smallest files with one for each."""
    chosen, first, room = dict[_Size, Runner](), set[str](), TWIN_BYTES
    for sha256, shapes in sorted(
        dict.fromkeys(map(_size_of, entry.steps)), key=lambda size: interpreters[size[0]].model_bytes
    ):
        interpreter = interpreters[sha256]
        if sha256 in first and interpreter.model_bytes <= room:
            room -= interpreter.model_bytes
            interpreter = interpreter.twin()
        first.add(sha256)
        chosen[sha256, shapes] = interpreter
    return chosen


def _check_names(file: str, named: set[str], ports: tuple[Port, ...], *, least: bool = False) -> None:
    there = {port.name for port in ports}
    if named - there or (there - named and not least):
        raise ModelError(
            f"{file} has {', '.join(sorted(there))}, but the manifest names {', '.join(sorted(named))}; copy the "
            "folder of slices again"
        )
