"""Find the shape of each tensor of a model for a batch of fixed size."""

from __future__ import annotations

import math

from har_edge.tflite.gradient.batch_axis import follow_axis
from har_edge.tflite.gradient.builder import Shape
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.model import Model, Operator
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

    def follow(self) -> dict[int, Shape]:
        for tensor in self.graph.tensors:
            self.shapes[tensor.index] = tensor.shape
        if self.is_planned():
            return self.shapes
        for index in self.graph.inputs:
            tensor = self.graph.tensors[index]
            if not tensor.shape or (tensor.signature[0] != -1 and tensor.shape[0] != 1):
                raise GradientError(
                    f"input {tensor.name} has shape {list(tensor.signature)}; expected one whose first dimension is "
                    "the batch, open (-1) or 1"
                )
            self.shapes[index], self.axis[index] = (self.batch, *tensor.shape[1:]), 0
        for operator in self.graph.operators:
            self.operator(operator)
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
        """Follow a reshape: to what it asks for, with the batch where -1 stands, or in the first dimension."""
        wanted = self.wanted(operator, index)
        elements, known = math.prod(self.shapes[source]), math.prod(n for n in wanted if n != -1)
        if wanted.count(-1) == 1 and known and elements % known == 0:
            place = wanted.index(-1)
        elif wanted and -1 not in wanted and wanted[0] and elements % (known // wanted[0]) == 0:
            place, known = 0, known // wanted[0]
        else:
            raise self.refusal(operator, f"reshapes {list(self.shapes[source])} to {wanted}")
        self.shapes[index] = tuple(elements // known if axis == place else n for axis, n in enumerate(wanted))
        self.axis[index] = 0

    def wanted(self, operator: Operator, index: int) -> list[int]:
        asked = raw_inputs(operator)[1:2]
        if asked and asked[0] >= 0 and self.graph.tensors[asked[0]].constant:
            values = [int(n) for n in constant_data(self.model, self.graph.tensors[asked[0]]).reshape(-1)]
        else:
            tensor = self.graph.tensors[index]
            values = list(tensor.signature if -1 in tensor.signature else tensor.shape)
        # A reshape that moves the batch elsewhere than to the front is one that joins samples.
        return values

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
        self.shapes[index] = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        self.axis[index] = axis

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
