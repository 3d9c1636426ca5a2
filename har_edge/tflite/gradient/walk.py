"""Write the forward pass of a slice, and walk it backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.gradient.activations import activation_gradient
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.rules import RuleContext
from har_edge.tflite.gradient.table import FORWARDS, RULES
from har_edge.tflite.gradient.weights import Weight, weight_values
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.slices import part_of
from har_edge.tflite.split.writer import constant_data, raw_inputs


@dataclass(frozen=True, slots=True)
class _Step:
    """An operator of the forward pass: its context, and the tensors of the file that stand for its inputs."""

    context: RuleContext


@dataclass(frozen=True, slots=True)
class _Dropped:
    """A dropout: `before` times `mask` is `after`."""

    before: int
    mask: int
    after: int


class TrainingWalk:
    """The forward pass of operators [start, stop) in a file, and the gradients of what it reads.

    `x` maps the inputs of the slice, and `weights` the weights, to tensors of the file; `masks` maps tensors of the
    model to dropout masks. All indices are those of the model's main graph.
    """

    def __init__(self, model: Model, builder: GraphBuilder, shapes: Mapping[int, Shape], start: int, stop: int) -> None:
        self.model, self.builder, self.shapes = model, builder, shapes
        self.flow: Dataflow = trace_dataflow(model)
        self.part = part_of(model, self.flow, start, stop)
        self.numbers: dict[int, int] = {}
        self._uses: dict[tuple[int, int], int] = {}
        self._masks: dict[int, int] = {}
        self._steps: list[_Step | _Dropped] = []
        self._active: set[int] = set()  # tensors of the file that a gradient goes to or through

    def feed(self, index: int, name: str, *, active: bool) -> int:
        """Add an input of the slice; `active` asks for its gradient."""
        tensor = self.model.main.tensors[index]
        if tensor.dtype is None:
            raise GradientError(f"input {tensor.name} is of type {tensor.type_name}; expected numbers")
        number = self.numbers[index] = self.builder.empty(self.shapes[index], tensor.dtype, name)
        self.builder.rename(number, name, tensor.raw.quantization)
        if active:
            self._active.add(number)
        return number

    def feed_weight(self, weight: Weight, name: str) -> int:
        """Add a weight as an input of the file, for each place that reads it."""
        number = self.builder.empty(weight.shape, "float32", name)
        self._uses.update(dict.fromkeys(weight.uses, number))
        self._active.add(number)
        return number

    def feed_mask(self, index: int, name: str) -> int:
        """Add a dropout mask of a tensor as an input of the file."""
        self._masks[index] = self.builder.empty(self.shapes[index], "float32", name)
        return self._masks[index]

    def forward(self, *, without: int | None = None) -> None:
        """Write the operators of the slice in their order; `without` is the index of one to leave out."""
        for place in self.part.operators:
            operator = self.model.main.operators[place]
            if place != without:
                self._write(operator)

    def tensor(self, index: int) -> int:
        """Return the tensor of the file for one of the model; a constant is taken over when it is first read."""
        if index not in self.numbers:
            tensor = self.model.main.tensors[index]
            values = weight_values(self.model, self.flow, index) if not tensor.constant else None
            self.numbers[index] = self.builder.constant(constant_data(self.model, tensor) if values is None else values)
            self.builder.rename(self.numbers[index], tensor.name, tensor.raw.quantization)
        return self.numbers[index]

    def is_active(self, number: int) -> bool:
        """Return whether a gradient goes to or through this tensor of the file."""
        return number in self._active

    def _write(self, operator: Operator) -> None:
        inputs = tuple(
            self._uses[operator.index, position] if (operator.index, position) in self._uses else self._read(index)
            for position, index in enumerate(raw_inputs(operator))
        )
        made = tuple(self._empty(index) for index in operator.outputs)
        context = RuleContext(self.builder, operator, inputs, made)
        forward = None if operator.custom else FORWARDS.get(operator.name)
        written = forward(context) if forward else None
        if written is None:
            self.builder.copy(self.model, operator, inputs, made)
        else:
            made = tuple(written)
        needs = tuple(number in self._active for number in inputs)
        if any(needs) and operator.name == "QUANTIZE":  # else all in front of it would go untrained, without a word
            raise context.refusal("no gradient goes back through integers to what is trained in front of it")
        self._steps.append(_Step(replace(context, outputs=made, needs=needs)))
        for index, number in zip(operator.outputs, made, strict=True):
            self.numbers[index] = number
            if any(needs) and self.builder.dtype(number) == "float32":
                self._active.add(number)
            if index in self._masks:
                self._drop(index)

    def _read(self, index: int) -> int:
        return -1 if index < 0 else self.tensor(index)

    def _empty(self, index: int) -> int:
        tensor = self.model.main.tensors[index]
        if tensor.dtype is None:
            raise GradientError(f"tensor {tensor.name} is of type {tensor.type_name}; expected numbers")
        number = self.builder.empty(self.shapes[index], tensor.dtype, tensor.name)
        self.builder.rename(number, tensor.name, tensor.raw.quantization)
        return number

    def _drop(self, index: int) -> None:
        before, mask = self.numbers[index], self._masks[index]
        after = self.numbers[index] = self.builder.times(before, mask)
        self._steps.append(_Dropped(before, mask, after))
        if before in self._active:
            self._active.add(after)

    def backward(self, seeds: Mapping[int, int]) -> dict[int, int]:
        """Write the gradients that follow from those of some tensors, and return them by tensor of the file.

        Raises GradientError for an operator that a gradient would have to go through, but that has no rule.
        """
        gradients = dict(seeds)
        for step in reversed(self._steps):
            if isinstance(step, _Dropped):
                if step.after in gradients and step.before in self._active:
                    self._add(gradients, step.before, self.builder.times(gradients[step.after], step.mask))
                continue
            context = step.context
            if any(context.needs) and any(output in gradients for output in context.outputs):
                self._reverse(context, gradients)
        return gradients

    def _reverse(self, context: RuleContext, gradients: dict[int, int]) -> None:
        rule = RULES.get(context.operator.name)
        if rule is None or context.operator.custom:
            raise context.refusal("no rule for this kind of operator")
        dy = tuple(self._before_activation(context, output, gradients.get(output)) for output in context.outputs)
        found: Sequence[int | None] = rule(replace(context, dy=dy))
        for number, needed, gradient in zip(context.inputs, context.needs, found, strict=True):
            if needed and gradient is not None:
                self._add(gradients, number, gradient)

    def _before_activation(self, context: RuleContext, output: int, dy: int | None) -> int | None:
        kind = int(getattr(context.options, "fusedActivationFunction", 0) or 0)
        if dy is None:
            return None
        before = activation_gradient(self.builder, kind, output, dy)
        if before is None:
            raise context.refusal(f"its fused activation {kind} has no gradient")
        return before

    def _add(self, gradients: dict[int, int], number: int, gradient: int) -> None:
        if self.builder.shape(gradient) != self.builder.shape(number):
            raise GradientError(
                f"a gradient of shape {list(self.builder.shape(gradient))} came for a tensor of "
                f"{list(self.builder.shape(number))}; this is a defect of har_edge"
            )
        gradients[number] = self.builder.plus(gradients[number], gradient) if number in gradients else gradient
