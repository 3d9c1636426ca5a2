"""Find the shape of each tensor of a model for a batch of fixed size."""

from __future__ import annotations

import math

from har_edge.tflite.gradient.batch_axis import follow_axis
from har_edge.tflite.gradient.builder import Shape
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.open_dimensions import infer_shape
from har_edge.tflite.gradient.shape_values import ShapeValues
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.split.writer import constant_data, raw_inputs

# Operators that may make several rows of a sample.
_ROWS = frozenset({"FULLY_CONNECTED", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"})


def batch_shapes(model: Model, batch: int) -> dict[int, Shape]:
    """Return the shape of each tensor of the main graph, by its index, when the model gets `batch` samples at once.

    The first dimension of each input is the batch, open or planned for one. Shapes that the file plans for an open
    batch need not be true, so they are followed from the inputs. Raises GradientError where an operator joins the
    samples of a batch.
    """
    return _Shapes(model, batch).follow()


class _Shapes:
    def __init__(self, model: Model, batch: int) -> None:
        self.model, self.graph, self.batch = model, model.main, batch
        self.shapes: dict[int, Shape] = {}
        self.axis: dict[int, int] = {}  # tensors that hold the samples, and along which axis
        self.values = ShapeValues(model)

    def follow(self) -> dict[int, Shape]:
        for tensor in self.graph.tensors:
            self.shapes[tensor.index] = tensor.shape
        if self.is_planned():
            return self.shapes
        for index in self.graph.inputs:
            tensor = self.graph.tensors[index]
            if not tensor.shape or (tensor.signature[0] != -1 and tensor.shape[0] != 1) or -1 in tensor.signature[1:]:
                raise GradientError(
                    f"input {tensor.name} has shape {list(tensor.signature)}; expected one whose first dimension is "
                    "the batch, open (-1) or 1, and no other open one"
                )
            self.shapes[index], self.axis[index] = (self.batch, *tensor.shape[1:]), 0
        for operator in self.graph.operators:
            self.operator(operator)
            self.values.follow(operator, self.shapes)
        return self.shapes

    def is_planned(self) -> bool:
        """Return whether the file is for this batch alone, whatever its operators do with the samples."""
        inputs = [self.graph.tensors[index] for index in self.graph.inputs]
        fixed = bool(inputs) and all(-1 not in one.signature for one in inputs)
        return fixed and inputs[0].shape[:1] == (self.batch,)

    def operator(self, operator: Operator) -> None:
        held = [index for index in operator.inputs if index in self.axis]
        for index in operator.outputs:
            tensor = self.graph.tensors[index]
            if operator.name == "SHAPE" or (not held and tensor.signature[:1] != (-1,)):
                continue
            if not held:
                self.shapes[index], self.axis[index] = (self.batch, *tensor.shape[1:]), 0
            elif operator.name == "RESHAPE":
                self.reshaped(operator, held[0], index)
            else:
                self.kept(operator, held, index)

    def reshaped(self, operator: Operator, source: int, index: int) -> None:
        """Follow a reshape of samples that stand in the first dimension, to one behind dimensions of 1."""
        shape, (wanted, place) = self.shapes[source], self.wanted(operator, source, index)
        others = math.prod(n for axis, n in enumerate(wanted) if axis != place)
        rows, left = divmod(math.prod(shape), others or 1)
        in_front = math.prod(shape[: self.axis[source]]) * math.prod(wanted[:place])
        if not wanted or others < 1 or left or rows % self.batch or in_front != 1:
            raise self.refusal(operator, f"reshapes {list(shape)} to {wanted}, which mixes the samples of a batch")
        self.shapes[index] = (*wanted[:place], rows, *wanted[place + 1 :])
        self.axis[index] = place

    def wanted(self, operator: Operator, source: int, index: int) -> tuple[list[int], int]:
        """Return the shape that a reshape asks for, and where in it the samples are."""
        asked, output = raw_inputs(operator)[1:2], self.graph.tensors[index]
        values = self.values.get(asked[0]) if asked and asked[0] >= 0 else None
        wanted = [int(n) for n in (output.signature if values is None else values.reshape(-1))]
        tensor = self.graph.tensors[source]
        computed = values is not None and not self.graph.tensors[asked[0]].constant
        if -1 not in wanted or (tensor.signature[self.axis[source]] == -1 and not computed):
            return wanted, wanted.index(-1) if -1 in wanted else 0
        # The batch is a number, for this batch or for the planned one, and -1 stands for another dimension.
        elements = math.prod(self.shapes[source] if computed else tensor.shape)
        known = math.prod(n for n in wanted if n != -1)
        return [elements // (known or 1) if n == -1 else n for n in wanted], 0

    def kept(self, operator: Operator, held: list[int], index: int) -> None:
        """Follow an operator that leaves the samples apart."""
        tensor, given = self.graph.tensors[index], raw_inputs(operator)
        axes = {follow_axis(self.model, operator, i, self.axis[one]) for i, one in enumerate(given) if one in self.axis}
        axis = axes.pop()
        if axis is None or axes or axis >= len(tensor.shape):
            raise self.refusal(operator, "mixes the samples of a batch")
        size = max(self.shapes[i][self.axis[i]] for i in held)
        planned = {self.graph.tensors[i].shape[self.axis[i]] for i in held}
        if operator.name in _ROWS:
            size = self.rows(operator, size)
        elif tensor.signature[axis] != -1 and tensor.shape[axis] not in planned:
            raise self.refusal(operator, "changes the number of samples")
        shape = self.sizes(operator, tensor, axis)
        self.shapes[index] = (*shape[:axis], size, *shape[axis + 1 :])
        self.axis[index] = axis

    def sizes(self, operator: Operator, tensor: Tensor, axis: int) -> Shape:
        """Return the planned shape of an output, with the dimensions that the file leaves open beside the batch."""
        if -1 not in (*tensor.signature[:axis], *tensor.signature[axis + 1 :]):
            return tensor.shape
        given = [index for index in raw_inputs(operator) if index >= 0]
        values = {position: found for position, i in enumerate(given) if (found := self.values.get(i)) is not None}
        inferred = infer_shape(operator, [self.shapes[index] for index in given], values)
        if inferred is None:
            raise GradientError(
                f"operator {operator.index} ({operator.name}) gives shape {list(tensor.signature)}; expected one open "
                "dimension, the batch; convert the model with a fixed batch"
            )
        return tuple(size if n == -1 else n for n, size in zip(tensor.signature, inferred, strict=True))

    def rows(self, operator: Operator, size: int) -> int:
        """Return how many rows an operator makes of `size`: one sample may become several."""
        given = raw_inputs(operator)
        if operator.name == "FULLY_CONNECTED":
            if operator.raw.builtinOptions.keepNumDims:
                return size
            return math.prod(self.shapes[given[0]]) // self.graph.tensors[given[1]].shape[-1]
        blocks = math.prod(int(n) for n in constant_data(self.model, self.graph.tensors[given[1]]))
        if operator.name == "SPACE_TO_BATCH_ND":
            return size * blocks
        if size % blocks:
            raise self.refusal(operator, f"joins {size} rows to blocks of {blocks}")
        return size // blocks

    def refusal(self, operator: Operator, what: str) -> GradientError:
        return GradientError(
            f"operator {operator.index} ({operator.name}) {what}; expected operators that keep the samples of a batch "
            "apart; convert the model with an open batch, without that operator"
        )
