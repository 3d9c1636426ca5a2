"""Change int8 models as TensorFlow's converter cannot: exact input ranges, and inputs scaled in float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from har_edge.training.scaling import Array, ValueRange

LEVELS = 255


def pin_range(tensor: Any, span: ValueRange) -> None:
    """Make an int8 input span a range to the last bit, so that codes with the same scale and zero enter untouched.

    The converter has calibrated it to the same range, but in its own rounding.
    """
    scale = (span.high - span.low) / LEVELS
    tensor.quantization.scale = [float(np.float32(scale))]
    # Halves go down, as the converter rounds them: 0 of a range that is symmetric.
    tensor.quantization.zeroPoint = [math.floor(-128 - span.low / scale + 0.5 - 1e-6)]


def put_scaling_before(content: Any, index: int, mean: Array, spread: Array) -> None:
    """Replace the int8 input at `index` by a float32 one that is scaled by channel and quantised in the graph.

    Three operators come before all others: multiply by 1 / spread, add -mean / spread, quantise.
    """
    graph = content.subgraphs[0]
    inner = graph.tensors[index]
    name = inner.name
    outer, multiplied, added = (_copy(content, inner, name + suffix) for suffix in (b"", b"_spread", b"_centred"))
    inner.name = name + b"_quantised"
    factor = _constant(content, name + b"_factor", np.float32(1) / spread)
    shift = _constant(content, name + b"_shift", -mean / spread)
    multiply, add, quantise = schema.MulOptionsT(), schema.AddOptionsT(), schema.QuantizeOptionsT()
    graph.operators[:0] = [
        _operator(content, schema.BuiltinOperator.MUL, [outer, factor], multiplied, multiply),
        _operator(content, schema.BuiltinOperator.ADD, [multiplied, shift], added, add),
        _operator(content, schema.BuiltinOperator.QUANTIZE, [added], index, quantise),
    ]
    graph.inputs = [outer if at == index else int(at) for at in graph.inputs]
    for signature in content.signatureDefs or []:
        for entry in signature.inputs:
            if entry.tensorIndex == index:
                entry.tensorIndex = outer


def unscale_output(model: bytes, mean: Array, spread: Array) -> bytes:
    """Return an int8 model whose one output leaves as float32 in physical units: dequantised, times spread, plus mean.

    `mean` and `spread` are those of the last dimension.
    """
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    graph = content.subgraphs[0]
    (index,) = (int(at) for at in graph.outputs)
    name = graph.tensors[index].name
    real, multiplied, outer = (
        _copy(content, graph.tensors[index], name + suffix) for suffix in (b"_real", b"_spread", b"")
    )
    graph.tensors[index].name = name + b"_quantised"
    factor, shift = _constant(content, name + b"_factor", spread), _constant(content, name + b"_shift", mean)
    graph.operators += [
        _operator(content, schema.BuiltinOperator.DEQUANTIZE, [index], real, schema.DequantizeOptionsT()),
        _operator(content, schema.BuiltinOperator.MUL, [real, factor], multiplied, schema.MulOptionsT()),
        _operator(content, schema.BuiltinOperator.ADD, [multiplied, shift], outer, schema.AddOptionsT()),
    ]
    graph.outputs = [outer]
    for signature in content.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = outer
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def quantise_output(model: bytes, scale: float, zero: int) -> bytes:
    """Return a float32 model whose one output leaves as int8, real = scale * (value - zero)."""
    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    graph = content.subgraphs[0]
    (index,) = (int(at) for at in graph.outputs)
    name = graph.tensors[index].name
    outer = _copy(content, graph.tensors[index], name)
    graph.tensors[index].name = name + b"_real"
    tensor = graph.tensors[outer]
    tensor.type, tensor.quantization = schema.TensorType.INT8, schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [float(np.float32(scale))], [zero]
    graph.operators.append(
        _operator(content, schema.BuiltinOperator.QUANTIZE, [index], outer, schema.QuantizeOptionsT())
    )
    graph.outputs = [outer]
    for signature in content.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = outer
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _copy(content: Any, tensor: Any, name: bytes) -> int:
    made = schema.TensorT()
    made.shape, made.shapeSignature = tensor.shape, tensor.shapeSignature
    made.hasRank, made.name, made.type, made.buffer = True, name, schema.TensorType.FLOAT32, 0
    return _append(content.subgraphs[0].tensors, made)


def _constant(content: Any, name: bytes, values: Array) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    made = schema.TensorT()
    made.shape, made.hasRank, made.name = [len(values)], True, name
    made.type, made.buffer = schema.TensorType.FLOAT32, _append(content.buffers, buffer)
    return _append(content.subgraphs[0].tensors, made)


def _operator(content: Any, code: int, inputs: list[int], output: int, options: Any) -> Any:
    kind = schema.OperatorCodeT()
    kind.builtinCode, kind.deprecatedBuiltinCode, kind.version = code, min(code, 127), 1
    made = schema.OperatorT()
    made.opcodeIndex = _append(content.operatorCodes, kind)
    made.inputs, made.outputs = inputs, [output]
    made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    made.builtinOptions = options
    return made


def _append(items: list[Any], item: Any) -> int:
    items.append(item)
    return len(items) - 1
