"""The share that an operator computes, and the parts of its inputs that it takes for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.writer import constant_data, raw_inputs

QUANTISED = frozenset({"int8", "uint8", "int16"})
FLOATS = frozenset({"float32", "float16"})


@dataclass(frozen=True, slots=True)
class TakenInput:
    """One input of a share: all of a tensor (-1: none), a range of it, or `data` in place of a constant."""

    tensor: int
    range: AxisRange | None = None
    data: NDArray[Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class OperatorShare:
    """An operator that runs on parts of its inputs, with these options changed, and gives a range of its output.

    `keeps` is the part of that range that is wanted, by default all of it.
    """

    inputs: tuple[TakenInput, ...]
    gives: AxisRange
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps: AxisRange | None = None


class OperatorView:
    """An operator with its tensors, as the rules look at it."""

    def __init__(self, model: Model, operator: Operator) -> None:
        self.model, self.operator = model, operator
        self.inputs = raw_inputs(operator)
        self.options: Any = operator.raw.builtinOptions

    @property
    def output(self) -> Tensor:
        return self.model.main.tensors[self.operator.outputs[0]]

    def tensor(self, position: int) -> Tensor:
        """Return an input. Raises CutError where it is absent."""
        if not 0 <= position < len(self.inputs) or self.inputs[position] < 0:
            raise CutError(f"has no input {position}")
        return self.model.main.tensors[self.inputs[position]]

    def has(self, position: int) -> bool:
        """Return whether an optional input is there."""
        return 0 <= position < len(self.inputs) and self.inputs[position] >= 0

    def shape(self, position: int) -> tuple[int, ...]:
        return self.tensor(position).shape

    def numbers(self, position: int) -> list[int]:
        """Return a constant that says a shape or axes. Raises CutError where another operator computes it."""
        tensor = self.tensor(position)
        if not tensor.constant:
            raise CutError(f"takes {tensor.name}, which is computed, where a share needs a constant")
        return [int(n) for n in np.atleast_1d(constant_data(self.model, tensor)).reshape(-1)]

    def whole(self, position: int) -> TakenInput:
        """Return all of an input."""
        return TakenInput(self.inputs[position])

    def part(self, position: int, wanted: AxisRange) -> TakenInput:
        """Return a range of an input."""
        return TakenInput(self.tensor(position).index, wanted)

    def changed(self, position: int, values: list[int]) -> TakenInput:
        """Return other values in place of a constant that says a shape."""
        data = constant_data(self.model, self.tensor(position))
        return TakenInput(self.inputs[position], None, np.array(values, data.dtype).reshape(data.shape))

    def optional(self, position: int, wanted: AxisRange) -> tuple[TakenInput, ...]:
        """Return a range of the last input, such as a bias, if the operator has it."""
        if position >= len(self.inputs):
            return ()
        return (self.part(position, wanted) if self.has(position) else TakenInput(-1),)


Rule: TypeAlias = Callable[[OperatorView, AxisRange], tuple[OperatorShare, ...]]
