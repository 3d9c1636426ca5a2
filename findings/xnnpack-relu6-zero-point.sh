#!/usr/bin/env bash
# Guess: a RELU6 fused to an int8 layer ends as many steps above the zero point
#   as 6 / scale rounds to, whatever the zero point, and whatever the kernels.
# What is so: with XNNPACK off, yes (halves are rounded up). XNNPACK rounds
#   6 / scale + zero point, half to even: where 6 / scale ends in a half, an even
#   zero point gives the even number of steps and an odd one the odd number. At
#   scale 4 (1.5 steps) that is 2 and 1, at scale 12 (half a step) 0 and 1: with
#   an even zero point nothing but 0 comes out. RELU_N1_TO_1 does the same at
#   both ends: at scale 2, -1 to 1 or only 0. Away from halves all agree.
# Versions: ai-edge-litert 2.3.0, flatbuffers 25.12.19, numpy 2.4.6, Python 3.11,
#   x86-64; FULLY_CONNECTED, CONV_2D and DEPTHWISE_CONV_2D are alike.
# Why it matters: it is a step of the scale at most, and halves are rare where
#   the range of the clipped output sets the scale; but a kernel that shall give
#   XNNPACK's bits must add the zero point before it rounds, and a comparison of
#   two devices where one has no XNNPACK must allow for it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q ai-edge-litert==2.3.0 flatbuffers==25.12.19 numpy==2.4.6
v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import math

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

VERSIONS = {"FULLY_CONNECTED": 4, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3}
OPTIONS = {
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
}


def network(kind, activation, scale, zero):
    """One int8 layer of the weight 1: the output's steps are the input's."""
    graph = schema.SubGraphT(tensors=[], name="main")
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()])

    def tensor(name, shape, scale, zero=0, values=None):
        found = schema.TensorT(name=name, shape=list(shape))
        found.type = schema.TensorType.INT8
        found.quantization = schema.QuantizationParametersT(
            scale=[scale], zeroPoint=[zero]
        )
        if values is not None:
            if values.dtype == np.int32:
                found.type = schema.TensorType.INT32
            model.buffers.append(schema.BufferT(data=list(values.tobytes())))
            found.buffer = len(model.buffers) - 1
        graph.tensors.append(found)
        return len(graph.tensors) - 1

    shape = (1, 1) if kind == "FULLY_CONNECTED" else (1, 1, 1, 1)
    inputs = [
        tensor("x", shape, scale),
        tensor("w", shape, 1.0, 0, np.ones(1, np.int8)),
        tensor("b", (1,), scale, 0, np.zeros(1, np.int32)),
    ]
    output = tensor("y", shape, scale, zero)
    code = schema.OperatorCodeT(version=VERSIONS[kind])
    code.builtinCode = code.deprecatedBuiltinCode = getattr(
        schema.BuiltinOperator, kind
    )
    model.operatorCodes = [code]
    options = getattr(schema, OPTIONS[kind] + "T")()
    options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
    if "CONV" in kind:
        options.strideH = options.strideW = 1
        options.dilationHFactor = options.dilationWFactor = 1
    if kind == "DEPTHWISE_CONV_2D":
        options.depthMultiplier = 1
    operator = schema.OperatorT(inputs=inputs, outputs=[output])
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[kind])
    operator.builtinOptions = options
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [output]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def ends(data, kernels, zero):
    """The least and the greatest answer to all inputs, in steps from zero."""
    runner = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType[kernels],
        num_threads=1,
    )
    runner.allocate_tensors()
    source = runner.get_input_details()[0]
    target = runner.get_output_details()[0]["index"]
    found = []
    for value in range(-128, 128):
        runner.set_tensor(source["index"], np.full(source["shape"], value, np.int8))
        runner.invoke()
        found.append(int(runner.get_tensor(target).ravel()[0]) - zero)
    return min(found), max(found)


def away(number):
    return int(math.copysign(math.floor(abs(number) + 0.5), number))


print("\nsteps from the zero point: least, greatest")
differ = 0
for activation, low, high, scales in (
    ("RELU6", 0, 6, (12.0, 4.0, 2.4, 2.5, 0.5)),
    ("RELU_N1_TO_1", -1, 1, (2.0, 1.0, 0.75)),
):
    for scale in scales:
        for zero in (-128, -127, -4, -3, 0, 1):
            if activation != "RELU6" and zero == -128:
                continue  # nothing fits below
            seen = set()
            for kind in VERSIONS:
                data = network(kind, activation, scale, zero)
                on = ends(data, "AUTO", zero)
                off = ends(data, "BUILTIN_WITHOUT_DEFAULT_DELEGATES", zero)
                seen.add((on, off))
            assert len(seen) == 1, "the operators differ"
            print(
                f"{activation:13}{high / scale:5.3g} steps, zero {zero:4}: "
                f"XNNPACK {on}, without {off}"
            )
            # Python's round() is half to even; float32 as in the file.
            sums = [round(float(np.float32(e / scale + zero))) for e in (low, high)]
            assert on == tuple(s - zero for s in sums), "XNNPACK rounds another way"
            assert off == (away(low / scale), away(high / scale)), "built-in changed"
            differ += on != off
assert differ, "they agree now"
PY
