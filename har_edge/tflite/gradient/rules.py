"""The form of a rule: the forward operator and the gradients of one kind of operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.model import Operator


@dataclass(frozen=True, slots=True)
class RuleContext:
    """One operator of the model inside the training graph.

    Attributes:
        builder: The file that grows.
        operator: The operator of the model.
        inputs: Its inputs as tensors of the file; -1 for an absent one.
        outputs: Its outputs, behind its fused activation.
        dy: The gradient of each output, in front of the fused activation; None for one that has none.
        needs: Whether each input needs a gradient.
    """

    builder: GraphBuilder
    operator: Operator
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dy: tuple[int | None, ...] = ()
    needs: tuple[bool, ...] = ()

    @property
    def options(self) -> Any:
        """The operator's options, an object of the schema; None where it has none."""
        return self.operator.raw.builtinOptions

    def input_shape(self, position: int) -> Shape:
        """Return the shape of an input."""
        return self.builder.shape(self.inputs[position])

    def output_shape(self, position: int = 0) -> Shape:
        """Return the shape of an output."""
        return self.builder.shape(self.outputs[position])

    def has_input(self, position: int) -> bool:
        """Return whether the operator has this input."""
        return position < len(self.inputs) and self.inputs[position] >= 0

    def constant(self, position: int) -> NDArray[Any]:
        """Return the values of an input that must be a constant, such as axes. Raises GradientError for another."""
        value = self.builder.value(self.inputs[position]) if self.has_input(position) else None
        if value is None:
            raise self.refusal(f"its input {position} is computed; expected a constant")
        return value

    def is_constant(self, position: int) -> bool:
        """Return whether an input holds the same values in each run."""
        return self.builder.value(self.inputs[position]) is not None

    def axes(self, position: int, rank: int) -> tuple[int, ...]:
        """Return a constant input as axes from 0 to rank - 1."""
        return tuple(int(axis) % rank for axis in np.asarray(self.constant(position)).reshape(-1))

    def gradient(self, position: int = 0) -> int:
        """Return the gradient of an output, zeros where it has none."""
        found = self.dy[position]
        if found is None:
            return self.builder.constant(np.zeros(self.output_shape(position), np.float32))
        return found

    def refusal(self, why: str) -> GradientError:
        """Return the error that says why this operator cannot be differentiated."""
        return GradientError(
            f"operator {self.operator.index} ({self.operator.name}) cannot be differentiated: {why}; train the slice "
            "behind it, or convert the model without it"
        )


# The gradient of each input, a tensor of the file; None for one that needs none.
Rule: TypeAlias = Callable[[RuleContext], Sequence[int | None]]
# A function that writes an operator with other means than a copy of it: it returns the outputs behind the fused
# activation, or None to copy it after all.
Forward: TypeAlias = Callable[[RuleContext], Sequence[int] | None]
Rules: TypeAlias = Mapping[str, Rule]
Forwards: TypeAlias = Mapping[str, Forward]
