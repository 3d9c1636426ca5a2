#!/usr/bin/env bash
# Guess: where XNNPACK cannot take an int8 layer because its multiplier (input
#   scale x weight scale / output scale) is too large, it leaves the operator to
#   the built-in kernel, as it does with operators that it does not know.
# What is so: it claims the layer first and fails later: from a multiplier of
#   256 on (255.99998, the float32 below, is fine), allocate_tensors() raises
#   "failed to create XNNPACK runtime" and the model cannot be used with the
#   default kernels at all. One channel of several is enough. So for
#   FULLY_CONNECTED, CONV_2D and DEPTHWISE_CONV_2D. A MUL of the same multiplier
#   is left to the built-in kernel, as guessed. With XNNPACK off all of them run
#   and are right.
# Versions: ai-edge-litert 2.3.0, flatbuffers 25.12.19, numpy 2.4.6, Python 3.11,
#   x86-64.
# Why it matters: it takes only a very small output scale. tensorflow-cpu 2.21.0
#   wrote 7.8e-9 for a layer that answered 0 for all calibration samples (seen by
#   hand, not run here). The converter says nothing; the device does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q ai-edge-litert==2.3.0 flatbuffers==25.12.19 numpy==2.4.6
v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

ON = OpResolverType.AUTO
OFF = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
UNIT = 2.0**-8  # scale of input and weights: a product without rounding
VERSIONS = {"FULLY_CONNECTED": 4, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "MUL": 2}
OPTIONS = {
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MUL": "MulOptions",
}


def network(kind, scale, weight_scales=(UNIT,)):
    """One int8 operator that multiplies by the weight 1; zero points are 0."""
    graph = schema.SubGraphT(tensors=[], name="main")
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()])

    def tensor(name, shape, scales, axis=0, values=None):
        found = schema.TensorT(name=name, shape=list(shape))
        found.type = schema.TensorType.INT8
        found.quantization = schema.QuantizationParametersT(
            scale=[float(s) for s in scales], zeroPoint=[0] * len(scales)
        )
        found.quantization.quantizedDimension = axis
        if values is not None:
            if values.dtype == np.int32:
                found.type = schema.TensorType.INT32
            model.buffers.append(schema.BufferT(data=list(values.tobytes())))
            found.buffer = len(model.buffers) - 1
        graph.tensors.append(found)
        return len(graph.tensors) - 1

    channels = len(weight_scales)
    flat = kind == "FULLY_CONNECTED"
    depthwise = kind == "DEPTHWISE_CONV_2D"
    shape = (1, 1) if flat else (1, 1, 1, 1)
    weights = (channels, 1) if flat else (channels, 1, 1, 1)
    if depthwise:
        weights = (1, 1, 1, channels)
    inputs = [
        tensor("x", shape, [UNIT]),
        tensor("w", weights, weight_scales, 3 * depthwise, np.ones(channels, np.int8)),
    ]
    if kind != "MUL":
        products = [UNIT * s for s in weight_scales]
        zeros = np.zeros(channels, np.int32)
        inputs.append(tensor("b", (channels,), products, 0, zeros))
    output = tensor("y", (*shape[:-1], channels), [scale])
    code = schema.OperatorCodeT(version=VERSIONS[kind])
    code.builtinCode = code.deprecatedBuiltinCode = getattr(
        schema.BuiltinOperator, kind
    )
    model.operatorCodes = [code]
    options = getattr(schema, OPTIONS[kind] + "T")()
    if "CONV" in kind:
        options.strideH = options.strideW = 1
        options.dilationHFactor = options.dilationWFactor = 1
    if depthwise:
        options.depthMultiplier = channels
    operator = schema.OperatorT(inputs=inputs, outputs=[output])
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[kind])
    operator.builtinOptions = options
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [output]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def answers(data, kernels):
    """The outputs for the inputs -1, 0 and 1, or the error of loading."""
    runner = Interpreter(model_content=data, experimental_op_resolver_type=kernels)
    try:
        runner.allocate_tensors()
    except RuntimeError as error:
        assert "failed to create XNNPACK runtime" in str(error), error
        return str(error)
    source = runner.get_input_details()[0]
    found = []
    for value in (-1, 0, 1):
        runner.set_tensor(source["index"], np.full(source["shape"], value, np.int8))
        runner.invoke()
        result = runner.get_tensor(runner.get_output_details()[0]["index"])
        found.append(result.ravel().tolist())
    return found


def limit(kind):
    """The greatest multiplier that loads and the least that does not."""
    # With these scales the multiplier is the weight scale times a power of two.
    loads, fails = (int(np.float32(UNIT * r).view(np.int32)) for r in (1 / 4, 4))
    while fails - loads > 1:  # neighbours of float32 in the end
        middle = (loads + fails) // 2
        weight = float(np.int32(middle).view(np.float32))
        if isinstance(answers(network(kind, UNIT**2 / 256, (weight,)), ON), str):
            fails = middle
        else:
            loads = middle
    return [float(np.int32(b).view(np.float32)) / UNIT * 256 for b in (loads, fails)]


def operators(data):
    runner = Interpreter(model_content=data)
    runner.allocate_tensors()
    return [operator["op_name"] for operator in runner._get_ops_details()]


print()
for kind in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
    loads, fails = limit(kind)
    print(f"{kind}: loads at {loads:.8g}, raises at {fails:.8g}")
    assert loads == 256 - 2**-16 and fails == 256, "another limit now"
    for ratio in (100, 256, 2**20):
        data = network(kind, UNIT * UNIT / ratio)
        on, off = answers(data, ON), answers(data, OFF)
        print(f"  {ratio:>7}  XNNPACK on: {on}\n           XNNPACK off: {off}")
        right = [[max(-128, -ratio)], [0], [min(127, ratio)]]
        assert off == right, "the built-in kernel is wrong"
        assert on == right if ratio < 256 else isinstance(on, str), "changed"
    data = network(kind, UNIT * UNIT, (UNIT, UNIT * 256))
    on, off = answers(data, ON), answers(data, OFF)
    print(f"  channels of 1 and 256  on: {on}\n                        off: {off}")
    assert isinstance(on, str) and off == [[-1, -128], [0, 0], [1, 127]], "changed"
for ratio in (1, 2**20):
    data = network("MUL", UNIT * UNIT / ratio)
    on, off = answers(data, ON), answers(data, OFF)
    print(f"MUL, {ratio:>7}  on: {on}, off: {off}, operators: {operators(data)}")
    assert on == off == [[max(-128, -ratio)], [0], [min(127, ratio)]], "changed"
    assert ("DELEGATE" in operators(data)) == (ratio == 1), "changed"
PY
