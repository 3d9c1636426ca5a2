"""The fixed quantiser against the QUANTIZE operator of the runtime itself, bit for bit."""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.quantize import METHOD_OF

TYPES = {"int8": schema.TensorType.INT8, "int16": schema.TensorType.INT16, "uint8": schema.TensorType.UINT8}


def tensor(name, shape, kind, quantization=None):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer, made.quantization = name, shape, kind, 0, quantization
    return made


def quantize_model(shape, dtype, scale, zero):
    """Return a .tflite with one QUANTIZE operator from float32 to this dtype."""
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([scale], np.float32), np.array([zero], np.int64)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 2
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("real", list(shape), schema.TensorType.FLOAT32),
        tensor("code", list(shape), TYPES[dtype], quantization),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def samples(shape, scale, seed):
    """Return values within range, beyond it, at halves of the scale, and one rounding off them."""
    rng = np.random.default_rng(seed)
    halves = ((rng.integers(-300, 300, shape) + 0.5) * np.float64(np.float32(scale))).astype(np.float32)
    return np.concatenate(
        [
            rng.uniform(-200 * scale, 200 * scale, shape).astype(np.float32),
            rng.normal(0, 1e5, shape).astype(np.float32),
            rng.integers(-200, 200, shape).astype(np.float32),
            halves,
            np.nextafter(halves, np.float32(0)),
        ]
    )


ZEROS = {"int8": lambda zero: zero, "int16": lambda zero: 0, "uint8": lambda zero: zero + 128}


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8"])
@pytest.mark.parametrize(("scale", "zero"), [(0.22116854786872864, 41), (0.5, 0), (0.0011383, -12), (3.7, 0)])
def test_codes_equal_those_of_the_runtime(dtype, scale, zero):
    # A multiple of 16 values: the vectorised kernel for int16 leaves its last few to another, with other halves.
    zero = ZEROS[dtype](zero)
    values = samples((16, 9), scale, 3)
    interpreter = Interpreter(model_content=quantize_model(values.shape, dtype, scale, zero))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    reducer = make_reducer(f"{METHOD_OF[dtype]}:{np.float32(scale)}:{zero}", *values.shape)
    np.testing.assert_array_equal(reducer.encode(values), expected)
