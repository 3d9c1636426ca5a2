"""Find the weights of a model, read them, and write the model with others."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.encode import ModelPart, encode
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.model import Graph, Model, Operator, Tensor
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.writer import constant_data, raw_inputs

# The inputs of an operator that hold weights and biases.
_PLACES = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
    "CONV_3D": (1, 2),
    "BATCH_MATMUL": (0, 1),
    "PRELU": (1,),
}
# Constants of these are weights after an operator with weights, where they hold more than one value: biases, and the
# scale and offset of a normalisation. In front of it they prepare the input.
_AFFINE = frozenset({"ADD", "SUB", "MUL", "DIV"})


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a model: a constant with every place that reads it, each an operator's index and an input of it."""

    name: str
    tensor: int
    shape: tuple[int, ...]
    uses: tuple[tuple[int, int], ...]


def find_weights(model: Model, trainable: Collection[str] | None = None) -> tuple[Weight, ...]:
    """Return the float weights of the main graph, in the order in which they are first read.

    Converters store equal constants once. So a constant of one value only (biases that start at zero) that several
    operators read is a weight for each of them, named `NAME@OPERATOR`. `trainable` names the weights to take, which may
    be any float constants. Raises GradientError for a name that there is not, and where nothing is left.
    """
    found = list_weights(model, trainable)
    if not found:
        raise GradientError(_no_weights(model))
    return found


def list_weights(model: Model, trainable: Collection[str] | None = None) -> tuple[Weight, ...]:
    """Return the weights as `find_weights` does, and nothing for a model without."""
    found = _Finder(model, trainable).find()
    if trainable is not None:
        _check_names(trainable, found)
    return found


def read_weights(model: Model, trainable: Collection[str] | None = None) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a model by name, as float32."""
    flow = trace_dataflow(model)
    found = find_weights(model, trainable)
    return {weight.name: weight_values(model, flow, weight.tensor).copy() for weight in found}


def replace_weights(model: Model, weights: Mapping[str, NDArray[np.float32]]) -> memoryview:
    """Return the model with these weights as a .tflite file; weights that are not named stay as they are.

    Raises GradientError for a name or a shape that the model does not have, and for values that are not finite.
    """
    graph = model.main
    tensors, operators, buffers = list(graph.tensors), list(graph.operators), list(model.buffers)
    taken: dict[int, int] = {}  # how many places that read a tensor are served
    for weight in find_weights(model, weights):
        values = weights[weight.name]
        _check_values(weight, values)
        taken[weight.tensor] = taken.get(weight.tensor, 0) + len(weight.uses)
        # The last of those that shared a constant takes its place.
        last = taken[weight.tensor] == sum(one.inputs.count(weight.tensor) for one in graph.operators)
        index = weight.tensor if last else len(tensors)
        tensors[index : index + 1] = [_constant(tensors[weight.tensor], index, weight, len(buffers))]
        buffers.append(np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))
        for place, position in weight.uses:
            operators[place] = _with_input(operators[place], position, index)
    changed = _without_halves(graph, tensors, operators)
    whole = ModelPart(True, tuple(range(len(changed.operators))), changed.inputs, changed.outputs)
    return encode(replace(model, graphs=(changed, *model.graphs[1:]), buffers=tuple(buffers)), whole)


class _Finder:
    def __init__(self, model: Model, trainable: Collection[str] | None) -> None:
        self.model, self.graph, self.trainable = model, model.main, trainable
        self.flow = trace_dataflow(model)
        self.trained: set[int] = set()  # tensors behind an operator with weights

    def find(self) -> tuple[Weight, ...]:
        uses: dict[int, list[tuple[int, int]]] = {}
        for operator in self.graph.operators:
            if operator.index in self.flow.folded:
                continue
            places = self.places(operator)
            for position, index in places:
                uses.setdefault(index, []).append((operator.index, position))
            if places or any(index in self.trained for index in operator.inputs):
                self.trained.update(operator.outputs)
        found = [weight for index, places in uses.items() for weight in self.weights(index, places)]
        if self.trainable is None:
            return tuple(found)
        return tuple(weight for weight in found if weight.name in self.trainable)

    def places(self, operator: Operator) -> list[tuple[int, int]]:
        """Return the inputs of an operator that are weights, with their tensors."""
        inputs = raw_inputs(operator)
        allowed: Iterable[int] = _PLACES.get(operator.name, ())
        if operator.name in _AFFINE and any(index in self.trained for index in inputs):
            allowed = [i for i, index in enumerate(inputs) if index >= 0 and self.graph.tensors[index].elements > 1]
        named = self.trainable or ()
        return [
            (position, index)
            for position, index in enumerate(inputs)
            if index >= 0
            and self.is_float_constant(index)
            and (position in allowed or self.graph.tensors[index].name in named)
        ]

    def is_float_constant(self, index: int) -> bool:
        tensor = self.graph.tensors[index]
        if tensor.dtype != "float32":
            return False
        return tensor.constant or stored_half(self.graph, self.flow, index) is not None

    def weights(self, index: int, places: list[tuple[int, int]]) -> list[Weight]:
        tensor = self.graph.tensors[index]
        if len(places) > 1 and _is_uniform(weight_values(self.model, self.flow, index)):
            return [Weight(f"{tensor.name}@{place[0]}", index, tensor.shape, (place,)) for place in places]
        return [Weight(tensor.name, index, tensor.shape, tuple(places))]


def stored_half(graph: Graph, flow: Dataflow, index: int) -> Tensor | None:
    """Return the float16 constant that a tensor is unpacked from, None where it is none."""
    maker = flow.maker.get(index, -1)
    if maker not in flow.folded or graph.operators[maker].name != "DEQUANTIZE":
        return None
    source = graph.tensors[graph.operators[maker].inputs[0]]
    return source if source.dtype == "float16" and source.constant else None


def weight_values(model: Model, flow: Dataflow, index: int) -> NDArray[np.float32]:
    """Return the values of a weight, of float16 ones as float32."""
    tensor = model.main.tensors[index]
    if tensor.constant:
        return constant_data(model, tensor)
    half = stored_half(model.main, flow, index)
    if half is None:
        raise GradientError(f"tensor {tensor.name} is computed; expected a constant weight")
    return constant_data(model, half).astype(np.float32)


def _is_uniform(values: NDArray[np.float32]) -> bool:
    return bool(values.size == 0 or (values == values.flat[0]).all())


def _check_names(trainable: Collection[str], found: tuple[Weight, ...]) -> None:
    unknown = sorted(set(trainable) - {weight.name for weight in found})
    if unknown:
        raise GradientError(
            f"weight {unknown[0]!r} came, which the model does not have as a float constant; "
            "expected names that read_weights gives"
        )


def _check_values(weight: Weight, values: NDArray[np.float32]) -> None:
    if np.shape(values) != weight.shape:
        raise GradientError(
            f"weight {weight.name} came with shape {list(np.shape(values))}, expected {list(weight.shape)}"
        )
    if not np.isfinite(values).all():
        raise GradientError(f"weight {weight.name} came with values that are not finite; the training has diverged")


def _no_weights(model: Model) -> str:
    for operator in model.main.operators:
        inputs = raw_inputs(operator)
        for position in _PLACES.get(operator.name, ()):
            index = inputs[position] if position < len(inputs) else -1
            tensor = model.main.tensors[index] if index >= 0 else None
            if tensor is not None and tensor.dtype != "float32":
                return (
                    f"{model.name}: operator {operator.index} ({operator.name}) has {tensor.type_name} weights, and "
                    "training needs float32 ones; take the float file of this model"
                )
    return f"{model.name}: no float weights to train; take a float model with weights"


def _with_input(operator: Operator, position: int, index: int) -> Operator:
    raw = copy.copy(operator.raw)
    inputs = raw_inputs(operator)
    inputs[position] = index
    raw.inputs = np.array(inputs, np.int32)
    return replace(operator, inputs=tuple(i for i in inputs if i >= 0), raw=raw)


def _constant(old: Tensor, index: int, weight: Weight, buffer: int) -> Tensor:
    raw = tflite.TensorT()
    raw.name, raw.type, raw.hasRank = weight.name, tflite.TensorType.FLOAT32, True
    raw.shape, raw.buffer = np.array(weight.shape, np.int32), buffer
    return replace(old, index=index, name=weight.name, dtype="float32", constant=True, raw=raw)


def _without_halves(graph: Graph, tensors: list[Tensor], operators: list[Operator]) -> Graph:
    """Return the graph without operators that unpack float16 weights which are float32 constants now."""
    kept = [one for one in operators if not (one.outputs and all(tensors[i].constant for i in one.outputs))]
    read = {index for operator in kept for index in operator.inputs}
    for operator in operators:
        for index in () if operator in kept else operator.inputs:
            if index not in read and tensors[index].raw.buffer:  # its data shall not stay in the file
                raw = copy.copy(tensors[index].raw)
                raw.buffer = 0
                tensors[index] = replace(tensors[index], raw=raw)
    numbered = tuple(replace(operator, index=number) for number, operator in enumerate(kept))
    graph_raw: Any = copy.copy(graph.raw)
    graph_raw.debugMetadataIndex = -1
    return replace(graph, tensors=tuple(tensors), operators=numbered, raw=graph_raw)
