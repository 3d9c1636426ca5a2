"""Count the arithmetic operations of one run of a model, from its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from har_edge.errors import ModelError
from har_edge.tflite.model import Graph, Model, Operator, Tensor

_Count: TypeAlias = Callable[[Operator, list[Tensor], Tensor], int]


def count_operations(model: Model) -> int:
    """Return the arithmetic operations of one run for the planned shapes; a dynamic batch is planned as 1.

    A multiply-accumulate counts 2. A bias, an elementwise operator, a fused activation or a transcendental function
    counts 1 for each output element. Kernels count in full where they overlap the edge. Operators that only move data,
    or compute from constants alone, count 0. Requantisation inside integer kernels is not counted.

    Raises ModelError for an operator that has no entry in the table, such as a custom one: a guess would be no figure.
    """
    graph = model.main
    known = {tensor.index for tensor in graph.tensors if tensor.constant}
    total = 0
    for operator in graph.operators:
        if operator.inputs and known.issuperset(operator.inputs):
            known.update(operator.outputs)
        else:
            total += _count(model.name, graph, operator)
    return total


def _count(name: str, graph: Graph, operator: Operator) -> int:
    if operator.name in _MOVES:
        return 0
    count = None if operator.custom else _COUNTS.get(operator.name)
    if count is None or not operator.inputs or not operator.outputs:
        raise ModelError(
            f"{name}: cannot count the arithmetic of operator {operator.index} ({operator.name}); expected those of "
            "dense and convolutional networks; build the model from these, or measure its time instead"
        )
    output = graph.tensors[operator.outputs[0]]
    inputs = [graph.tensors[index] for index in operator.inputs]
    activation = getattr(operator.raw.builtinOptions, "fusedActivationFunction", 0)
    try:
        return count(operator, inputs, output) + (output.elements if activation else 0)
    except (AttributeError, LookupError, TypeError, ValueError):  # fewer inputs, dimensions or options than it takes
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ModelError(
            f"{name}: cannot count the arithmetic of operator {operator.index} ({operator.name}) with inputs {shapes}; "
            "expected the inputs and options that this operator has; measure its time instead"
        ) from None


def _convolution(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Weights are [filters, height, width, channels of a group]."""
    _, height, width, channels = inputs[1].shape
    return output.elements * (2 * height * width * channels + (len(inputs) > 2))


def _depthwise(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Weights are [1, height, width, channels]."""
    _, height, width, _ = inputs[1].shape
    return output.elements * (2 * height * width + (len(inputs) > 2))


def _transposed(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Inputs are the output's shape, weights [filters, height, width, channels], values, maybe a bias."""
    filters, height, width, _ = inputs[1].shape
    return 2 * inputs[2].elements * filters * height * width + output.elements * (len(inputs) > 3)


def _dense(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Weights are [units, values]."""
    return output.elements * (2 * inputs[1].shape[-1] + (len(inputs) > 2))


def _product(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    rows = inputs[0].shape[-2 if operator.raw.builtinOptions.adjX else -1]
    return 2 * output.elements * rows


def _pool(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    options = operator.raw.builtinOptions
    return output.elements * int(options.filterHeight) * int(options.filterWidth)


def _each_input(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    return inputs[0].elements


def _each_output(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    return output.elements


def _twice(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    return 2 * output.elements


def _softmax(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Largest value, difference, exponential, sum, quotient."""
    return 5 * output.elements


def _largest(operator: Operator, inputs: list[Tensor], output: Tensor) -> int:
    """Return the count for a heap of the k largest, which compares every value on each of its levels."""
    return inputs[0].elements * output.shape[-1].bit_length()


_COUNTS: dict[str, _Count] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _product,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "SOFTMAX": _softmax,
    "TOPK_V2": _largest,
    "QUANTIZE": _twice,
    "DEQUANTIZE": _twice,
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "ARG_MAX", "ARG_MIN"), _each_input),
    **dict.fromkeys(
        (
            *("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "NEG", "ABS", "SQUARE"),
            *("SQRT", "RSQRT", "EXP", "LOG", "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "PRELU", "ELU", "TANH"),
            *("LOGISTIC", "HARD_SWISH", "GELU", "ROUND", "FLOOR", "CEIL"),
        ),
        _each_output,
    ),
}
_MOVES = frozenset(
    {
        *("RESHAPE", "TRANSPOSE", "CONCATENATION", "PAD", "PADV2", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V"),
        *(
            "GATHER",
            "SQUEEZE",
            "EXPAND_DIMS",
            "PACK",
            "UNPACK",
            "TILE",
            "SHAPE",
            "BROADCAST_TO",
            "RESIZE_NEAREST_NEIGHBOR",
        ),
        *("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "CAST", "FILL"),
    }
)
