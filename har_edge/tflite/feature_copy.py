"""Write the operators of a network again as float ones: a quantised network's features without its rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ModelError
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.model import Model, Operator, Tensor
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.writer import constant_data, raw_inputs

Shapes = Sequence[Shape]


def _windows(shape: Shape, options: Any, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Shape:
    """Return height and width behind windows of this size, with the padding of the options."""
    strides = (options.strideH, options.strideW)
    found = []
    for size, width, stride, wide in zip(shape[1:3], kernel, strides, dilation, strict=True):
        lost = 0 if options.padding == tflite.Padding.SAME else (width - 1) * wide
        found.append(-(-(size - lost) // stride))
    return tuple(found)


def _conv(shapes: Shapes, options: Any) -> Shape:
    filters, height, width, _ = shapes[1]
    dilation = (options.dilationHFactor, options.dilationWFactor)
    return (shapes[0][0], *_windows(shapes[0], options, (height, width), dilation), filters)


def _depthwise(shapes: Shapes, options: Any) -> Shape:
    _, height, width, channels = shapes[1]
    dilation = (options.dilationHFactor, options.dilationWFactor)
    return (shapes[0][0], *_windows(shapes[0], options, (height, width), dilation), channels)


def _pool(shapes: Shapes, options: Any) -> Shape:
    kernel = (options.filterHeight, options.filterWidth)
    return (shapes[0][0], *_windows(shapes[0], options, kernel), shapes[0][3])


def _elementwise(shapes: Shapes, options: Any) -> Shape:
    del options
    return tuple(np.broadcast_shapes(*shapes))


def _concatenation(shapes: Shapes, options: Any) -> Shape:
    axis = options.axis % len(shapes[0])
    return tuple(sum(one[axis] for one in shapes) if i == axis else n for i, n in enumerate(shapes[0]))


def _depth_to_space(shapes: Shapes, options: Any) -> Shape:
    n, height, width, channels = shapes[0]
    block = int(options.blockSize)
    return n, height * block, width * block, channels // (block * block)


# The shape that each kind of operator gives. All of them work at any size of picture and on any batch.
_SHAPES: dict[str, Callable[[Shapes, Any], Shape]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "CONCATENATION": _concatenation,
    "DEPTH_TO_SPACE": _depth_to_space,
    **dict.fromkeys(("ADD", "SUB", "MUL", "RELU", "RELU6", "TANH", "LOGISTIC", "HARD_SWISH"), _elementwise),
}
# Their operands are one tensor of real values in another number format.
_FORMATS = ("QUANTIZE", "DEQUANTIZE")
# The least version of an operator whose float form has these options.
_DILATED_VERSION = 2


class FeatureCopy:
    """Copies operators of a model into a file, for pictures of any size, until all wanted tensors are there."""

    def __init__(self, builder: GraphBuilder, model: Model) -> None:
        self._builder, self._model = builder, model
        self._numbers: dict[int, int] = {}

    def write(self, x: int, wanted: Sequence[str]) -> list[int]:
        """Write what these tensors need, from `x`, the real values of the model's input; return their numbers.

        Raises ModelError for a tensor that there is not, and for an operator that has no form for any size.
        """
        main = self._model.main
        if len(main.inputs) != 1:
            raise ModelError(f"{self._model.name} has {len(main.inputs)} inputs; expected one that takes pictures")
        indices = [self._find(name) for name in wanted]
        self._numbers[main.inputs[0]] = x
        needed = self._needed(set(indices))
        for operator in main.operators:
            if operator.index in needed:
                self._write(operator)
        return [self._numbers[index] for index in indices]

    def _find(self, name: str) -> int:
        for operator in self._model.main.operators:
            for index in operator.outputs:
                if self._model.main.tensors[index].name == name:
                    return index
        raise ModelError(f"{self._model.name} computes no tensor {name!r}; name one that an operator gives")

    def _needed(self, wanted: set[int]) -> set[int]:
        found: set[int] = set()
        for operator in reversed(self._model.main.operators):
            if wanted.intersection(operator.outputs):
                wanted |= set(operator.inputs)
                found.add(operator.index)
        return found

    def _write(self, operator: Operator) -> None:
        output, shape_of = operator.outputs[0], _SHAPES.get(operator.name)
        if operator.name in _FORMATS:
            self._numbers[output] = self._read(operator.inputs[0])
            return
        if shape_of is None or operator.custom:
            raise ModelError(
                f"{self._model.name}: operator {operator.index} ({operator.name}) has no copy for pictures of any "
                f"size; take features in front of it, or a network of {', '.join(sorted(_SHAPES))}"
            )
        inputs = [self._read(index) for index in raw_inputs(operator)]
        shape = shape_of([self._builder.shape(one) for one in inputs if one >= 0], operator.raw.builtinOptions)
        if min(shape) < 1:
            raise ModelError(
                f"{self._model.name}: operator {operator.index} ({operator.name}) would give {list(shape)}; take "
                "larger pictures, or features in front of it"
            )
        options = copy.copy(operator.raw.builtinOptions)
        dilated = max(getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)) > 1
        version = _DILATED_VERSION if dilated and operator.name == "DEPTHWISE_CONV_2D" else 1
        self._numbers[output] = self._builder.add(operator.name, inputs, shape, options, version=version)

    def _read(self, index: int) -> int:
        if index < 0:
            return -1
        if index not in self._numbers:
            tensor = self._model.main.tensors[index]
            number = self._numbers[index] = self._builder.constant(real_constant(self._model, tensor))
            self._builder.rename(number, tensor.name)
        return self._numbers[index]


def real_constant(model: Model, tensor: Tensor) -> NDArray[np.float32]:
    """Return the real values of a constant, from floats or from quantised integers. ModelError for one without data."""
    if not tensor.constant:
        raise ModelError(f"{model.name}: tensor {tensor.name} is read before it is computed")
    data, quantization = constant_data(model, tensor), tensor.raw.quantization
    if data.dtype.kind == "f":
        return data.astype(np.float32)
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        raise ModelError(f"{model.name}: constant {tensor.name} is {data.dtype} without a scale; expected real values")
    scale = np.asarray(quantization.scale, np.float64)
    zero = np.zeros(len(scale)) if quantization.zeroPoint is None else np.asarray(quantization.zeroPoint, np.float64)
    if len(scale) > 1:
        axis = int(quantization.quantizedDimension)
        around = [-1 if i == axis else 1 for i in range(data.ndim)]
        scale, zero = scale.reshape(around), zero.reshape(around)
    real: NDArray[np.float32] = (scale * (data.astype(np.float64) - zero)).astype(np.float32)
    return real


def input_scaling(
    model: Model, normalizations: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return factor and offset, one or one a channel: a network's input is byte * factor + offset.

    Those of a quantised input are its scale and zero point, those of a float one its normalisation. Raises ModelError
    where nothing says them.
    """
    tensor = model.main.tensors[model.main.inputs[0]]
    quantization = tensor.raw.quantization
    if tensor.dtype in ("uint8", "int8") and quantization is not None and quantization.scale is not None:
        scale = float(quantization.scale[0])
        zero = 0 if quantization.zeroPoint is None else int(quantization.zeroPoint[0])
        return (scale,), (-scale * (zero + (128 if tensor.dtype == "int8" else 0)),)
    if tensor.name in normalizations:
        mean, std = normalizations[tensor.name]
        return tuple(1 / one for one in std), tuple(-m / one for m, one in zip(mean, std, strict=True))
    raise ModelError(
        f"{model.name}: input {tensor.name} is {tensor.type_name}, and no metadata say how bytes become its values; "
        "take a quantised network, or one with metadata"
    )
