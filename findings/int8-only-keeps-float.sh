#!/usr/bin/env bash
# Guess: with supported_ops = [TFLITE_BUILTINS_INT8] alone the converter refuses
#   an operator that it cannot quantize. So says the comment at that option
#   ("will throw an error for operations that do not yet have quantized
#   implementations") and the guide to post-training quantization.
# What is so: it says nothing and leaves CONV_3D, LOCAL_RESPONSE_NORMALIZATION and
#   ELU in float32, between a DEQUANTIZE and a QUANTIZE. Input and output are
#   int8, as asked; the network runs. The option for int16 activations, with the
#   same comment, does refuse all three.
# Versions: tensorflow-cpu 2.21.0, ai-edge-litert 2.3.0, Python 3.11, x86-64.
# Why it matters: that a conversion succeeded does not say that the model is of
#   integers alone: a chip or a compiler for those refuses it, a CPU without
#   fast floats is slow. Only the types of the tensors in the file tell.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

ops = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
sets = tf.lite.OpsSet
wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
random = np.random.default_rng(0)


class Network(tf.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        cube = (3, 3, 3, 2, 4) if kind == "CONV_3D" else (3, 3, 2, 4)
        self.filters = tf.Variable(random.normal(size=cube).astype("f4"))
        self.last = tf.Variable(random.normal(size=(4, 3)).astype("f4"))

    @tf.function
    def answer(self, x):
        if self.kind == "CONV_3D":
            x = tf.nn.relu(tf.nn.conv3d(x, self.filters, [1] * 5, "SAME"))
            return tf.matmul(tf.reduce_mean(x, [1, 2, 3]), self.last)
        x = tf.nn.conv2d(x, self.filters, 1, "SAME")
        if self.kind == "LOCAL_RESPONSE_NORMALIZATION":
            x = tf.nn.local_response_normalization(x)
        elif self.kind == "ELU":
            x = tf.nn.elu(x)
        return tf.matmul(tf.reduce_mean(x, [1, 2]), self.last)


def convert(kind, operators, dtype):
    shape = (1, 4, 8, 8, 2) if kind == "CONV_3D" else (1, 8, 8, 2)
    windows = random.normal(size=(20, *shape)).astype("f4")
    network = Network(kind)
    function = network.answer.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([w] for w in windows)
    converter.target_spec.supported_ops = [operators]
    converter.inference_input_type = converter.inference_output_type = dtype
    return converter.convert()


def listing(data):
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    graph = model.subgraphs[0]
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = ops[max(code.builtinCode, code.deprecatedBuiltinCode)]
        found.append((name, types[graph.tensors[operator.outputs[0]].type]))
    return found


print()
for kind in ("CONV_2D", "CONV_3D", "LOCAL_RESPONSE_NORMALIZATION", "ELU"):
    data = convert(kind, sets.TFLITE_BUILTINS_INT8, tf.int8)
    seen = listing(data)
    print(kind, "int8:", ", ".join(f"{name} {dtype}" for name, dtype in seen))
    runner = Interpreter(model_content=data)
    runner.allocate_tensors()
    runner.invoke()
    ends = runner.get_input_details() + runner.get_output_details()
    assert all(end["dtype"] is np.int8 for end in ends)
    try:
        convert(kind, wide, tf.int16)
        refusal = ""
    except RuntimeError as error:
        refusal = str(error).strip()
    print("  int16:", refusal or "converts")
    if kind == "CONV_2D":
        assert {dtype for _, dtype in seen} == {"INT8"} and not refusal
        continue
    at = seen.index((kind, "FLOAT32"))
    assert seen[at - 1] == ("DEQUANTIZE", "FLOAT32"), "changed"
    assert seen[at + 1] == ("QUANTIZE", "INT8"), "changed"
    assert "not yet supported for op" in refusal and kind in refusal, "changed"
PY
