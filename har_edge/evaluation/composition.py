"""Slices run one after the other in one process, as if they were one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from har_edge.config.model_state import starts_fresh
from har_edge.config.task import Task
from har_edge.errors import ModelError
from har_edge.evaluation.packed import TensorWay
from har_edge.inference.interpreter import Delegate, Interpreter, Port, load_slice
from har_edge.inference.load_check import default_check
from har_edge.inference.tensor_observation import open_model
from har_edge.tflite.manifest import SliceManifest, load_manifest
from har_edge.tflite.model import read_model
from har_edge.tflite.packing import TensorPacking, parse_packing
from har_edge.tflite.ports import check_ports
from har_edge.tflite.slices import slice_model, write_slice
from har_edge.tflite.state import state_of

Array = npt.NDArray[Any]


class Composition:
    """Runs slices in order and hands each what it needs from the inputs and from all earlier slices.

    With a `way`, tensors cross as they travel in messages.
    """

    def __init__(self, slices: Sequence[Interpreter], way: TensorWay | None = None) -> None:
        self._slices, self._way = tuple(slices), way
        self._sent = {
            port.name
            for number, piece in enumerate(self._slices)
            for port in piece.outputs
            if any(port.name == taken.name for later in self._slices[number + 1 :] for taken in later.inputs)
        }
        made = {port.name for piece in slices for port in piece.outputs}
        ports = {port.name: port for piece in slices for port in piece.inputs if port.name not in made}
        self.inputs: tuple[Port, ...] = tuple(ports.values())

    def __len__(self) -> int:
        return len(self._slices)

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return every tensor that any slice gives out."""
        known, made = dict(values), dict(values)
        for piece in self._slices:
            results = piece.run({port.name: known[port.name] for port in piece.inputs})
            made.update(results)
            known.update(results)
            if self._way is not None:
                known.update({name: self._way.travel(name, results[name]) for name in results if name in self._sent})
        return made


def load_whole(path: Path, task: Task, delegate: str | None = None) -> Interpreter:
    """Load a whole model for windows in any order; ConfigError when it remembers and its task does not allow that."""
    model, chosen = check_ports(read_model(path)), Delegate(delegate or Delegate.XNNPACK)
    fresh = starts_fresh(state_of(model), task, f"model {path}")
    default_check()(model.data, f"model {path}", chosen.value)
    (piece,) = slice_model(model, [])
    if len(piece.inputs) == len(model.main.inputs) and not model.main.unsent:
        return Interpreter(path, fresh=fresh, delegate=chosen)
    # Without the inputs that nothing reads, and the outputs that cannot be sent.
    return Interpreter(bytes(write_slice(model, piece)), fresh=fresh, delegate=chosen)


def load_composition(
    folder: Path, model_sha256: str, task: Task, delegate: str | None = None, way: TensorWay | None = None
) -> Composition:
    """Load the slices of a folder, each checked by hash; ModelError when they were cut from another model.

    Raises ConfigError when a slice remembers and the task does not say what to do about it.
    """
    manifest: SliceManifest = load_manifest(folder)
    if manifest.model_sha256 != model_sha256:
        raise ModelError(
            f"{folder} holds slices of a model with sha256 {manifest.model_sha256}, expected {model_sha256}; "
            "cut this model, or name the model that was cut"
        )
    if any(entry.steps for entry in manifest.slices):
        raise ModelError(
            f"{folder} holds shards, which exchange tensors while they run, expected slices that run one after the "
            "other; score the whole model, and compare the folder with it: har-edge slice MODEL --check --slices DIR"
        )
    root = folder if folder.is_dir() else folder.parent
    return Composition(
        [
            load_slice(
                path,
                entry.sha256,
                fresh=starts_fresh(entry.state, task, f"slice {path}"),
                delegate=Delegate(delegate or Delegate.XNNPACK),
                check=default_check(),
            )
            for entry in manifest.slices
            for path in [root / entry.file]
        ],
        way,
    )


def packings_of(manifest: SliceManifest) -> dict[str, TensorPacking]:
    """Return how the tensors of a manifest travel that do not travel as they are."""
    return {spec.name: parse_packing(spec.packing) for spec in manifest.tensors if spec.packing}


def cut_composition(
    path: Path, cuts: Sequence[int], task: Task, delegate: str | None = None, way: TensorWay | None = None
) -> Composition:
    """Cut a model at these operators and load the slices, without writing them; CutError for an illegal cut.

    Raises ConfigError when the model remembers and the task does not say what to do about it.
    """
    model = open_model(path, delegate)
    fresh = starts_fresh(state_of(model), task, f"model {path}")
    chosen = Delegate(delegate or Delegate.XNNPACK)
    return Composition(
        [
            Interpreter(bytes(write_slice(model, piece)), fresh=fresh, delegate=chosen)
            for piece in slice_model(model, cuts)
        ],
        way,
    )
