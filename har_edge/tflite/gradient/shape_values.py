"""Work out the integers that a model computes from shapes, such as [batch, 7, 7, 8] for a RESHAPE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient.builder import Shape
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.split.writer import constant_data, raw_inputs

_Ints: TypeAlias = NDArray[Any]
_MOST = 64  # elements; shapes are short, and constants of integers need not be


class ShapeValues:
    """The values of tensors that follow from shapes and constants alone."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[int, _Ints] = {}

    def get(self, index: int) -> _Ints | None:
        """Return the values of a tensor, None for one that depends on the samples."""
        tensor = self.model.main.tensors[index]
        if index not in self.known and tensor.constant and tensor.dtype in ("int32", "int64"):
            return constant_data(self.model, tensor) if tensor.elements <= _MOST else None
        return self.known.get(index)

    def follow(self, operator: Operator, shapes: Mapping[int, Shape]) -> None:
        """Work out what an operator gives, where all that it reads is known."""
        if operator.name == "SHAPE":
            self.known[operator.outputs[0]] = np.array(shapes[operator.inputs[0]], np.int64)
            return
        step = _STEPS.get(operator.name)
        inputs = [self.get(index) if index >= 0 else None for index in raw_inputs(operator)]
        if step is None or not inputs or any(one is None for one in inputs):
            return
        self.known[operator.outputs[0]] = np.asarray(step([one for one in inputs if one is not None], operator))


def _strided(inputs: list[_Ints], operator: Operator) -> _Ints:
    x, begin, end, steps = inputs
    options = operator.raw.builtinOptions
    first = None if options.beginMask & 1 else int(begin[0])
    if options.shrinkAxisMask & 1:
        return np.asarray(x[int(begin[0])])
    return x[slice(first, None if options.endMask & 1 else int(end[0]), int(steps[0]))]


def _pack(inputs: list[_Ints], operator: Operator) -> _Ints:
    return np.stack(inputs, operator.raw.builtinOptions.axis)


def _concatenation(inputs: list[_Ints], operator: Operator) -> _Ints:
    return np.concatenate(inputs, operator.raw.builtinOptions.axis)


def _gather(inputs: list[_Ints], operator: Operator) -> _Ints:
    return np.take(inputs[0], inputs[1], operator.raw.builtinOptions.axis)


def _product(inputs: list[_Ints], operator: Operator) -> _Ints:
    axes = tuple(int(axis) for axis in inputs[1].reshape(-1))
    return np.asarray(np.prod(inputs[0], axes, keepdims=bool(operator.raw.builtinOptions.keepDims)))


_STEPS: dict[str, Callable[[list[_Ints], Operator], _Ints]] = {
    "STRIDED_SLICE": _strided,
    "PACK": _pack,
    "CONCATENATION": _concatenation,
    "GATHER": _gather,
    "REDUCE_PROD": _product,
    "ADD": lambda inputs, operator: inputs[0] + inputs[1],
    "SUB": lambda inputs, operator: inputs[0] - inputs[1],
    "MUL": lambda inputs, operator: inputs[0] * inputs[1],
    "CAST": lambda inputs, operator: inputs[0],
    "RESHAPE": lambda inputs, operator: inputs[0].reshape([int(n) for n in inputs[1]]),
    "EXPAND_DIMS": lambda inputs, operator: np.expand_dims(inputs[0], int(inputs[1].reshape(-1)[0])),
    "SQUEEZE": lambda inputs, operator: np.squeeze(inputs[0]),
}
