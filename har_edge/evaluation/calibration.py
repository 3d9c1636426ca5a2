"""Calibrate packings: run a model on windows, and see in which range the values of each tensor are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.data.recording import Window
from har_edge.evaluation.packed import RangeObserver
from har_edge.evaluation.prediction import Classifier, Run
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.tflite.encode import ModelPart, encode
from har_edge.tflite.model import Model
from har_edge.tflite.packing import TensorPacking

Array = npt.NDArray[Any]
# Windows, or random inputs, that a calibration runs.
WINDOWS = 512
RANDOM_INPUTS = 16


def open_packings(packings: Mapping[str, TensorPacking]) -> dict[str, TensorPacking]:
    """Return those that need figures yet."""
    return {name: packing for name, packing in packings.items() if not packing.is_calibrated}


def showing(model: Model, names: Collection[str], *, fresh: bool = False, delegate: str | None = None) -> Interpreter:
    """Load a model that gives these tensors beside its results."""
    graph = model.main
    shown = [index for index, one in enumerate(graph.tensors) if one.name in names and index not in graph.inputs]
    outputs = tuple(dict.fromkeys((*graph.outputs, *shown)))
    part = ModelPart(False, tuple(range(len(graph.operators))), graph.inputs, outputs)
    return Interpreter(bytes(encode(model, part)), fresh=fresh, delegate=Delegate(delegate or Delegate.XNNPACK))


def observed(model: Interpreter, names: Iterable[str]) -> tuple[RangeObserver, Run]:
    """Return an observer of these tensors, and how to run the model so that it sees them."""
    observer, wanted = RangeObserver({}), tuple(names)

    def run(values: Mapping[str, Array]) -> Mapping[str, Array]:
        made = model.run(values)
        observer.note(made, wanted)
        return made

    return observer, run


def calibrate_on_windows(
    packings: Mapping[str, TensorPacking], observer: RangeObserver, classifier: Classifier, windows: Iterable[Window]
) -> dict[str, TensorPacking]:
    """Return the packings with figures from the values that these windows make."""
    for window in windows:
        classifier.predict(window)
    return {**packings, **observer.calibrated(open_packings(packings))}


def random_inputs(model: Interpreter, count: int) -> list[dict[str, Array]]:
    """Return so many random inputs of a model, always the same."""
    rng = np.random.default_rng(0)
    return [sample(model.inputs, rng) for _ in range(count)]


def calibrate_on_random_inputs(packings: Mapping[str, TensorPacking], model: Interpreter) -> dict[str, TensorPacking]:
    """Return the packings with figures from random inputs: for models of which nobody says what they are for."""
    observer, run = observed(model, open_packings(packings))
    for values in random_inputs(model, RANDOM_INPUTS):
        run(values)
    return {**packings, **observer.calibrated(open_packings(packings))}
