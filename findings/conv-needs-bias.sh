#!/usr/bin/env bash
# Guess: a bias is optional for every layer with weights. The schema and the kernels of
#   LiteRT allow an input -1 or none, a dense layer without one runs, and so does a
#   transposed convolution.
# What is so: CONV_2D does not. With -1 it ends with "Tensor at index 2 was optional but
#   was expected", with two inputs with "has_bias was not true", on every set of kernels.
#   A convolution without a bias needs a tensor of zeros, which TensorFlow's converter
#   always writes.
# Versions: ai-edge-litert 2.3.0, tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: whoever writes or rewrites .tflite files (partial sums of a split
#   layer, gradients, batch norm folded elsewhere) has layers without a bias.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python - <<'PY' 2>err.log || { tail -5 err.log; exit 1; }
import contextlib
import io

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

PICTURE = np.ones((1, 8, 8, 3), np.float32)
LAYERS = {
    "FULLY_CONNECTED": (2, [tf.keras.layers.Flatten(), tf.keras.layers.Dense(4)]),
    "TRANSPOSE_CONV": (3, [tf.keras.layers.Conv2DTranspose(4, 3, strides=2)]),
    "CONV_2D": (2, [tf.keras.layers.Conv2D(4, 3)]),
}
for name, (place, layers) in LAYERS.items():
    network = tf.keras.Sequential([tf.keras.Input((8, 8, 3), batch_size=1), *layers])
    with contextlib.redirect_stdout(io.StringIO()):
        written = tf.lite.TFLiteConverter.from_keras_model(network).convert()
    for form in ("there", "-1", "left out"):
        model = schema.ModelT.InitFromPackedBuf(written, 0)
        for operator in model.subgraphs[0].operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode == getattr(schema.BuiltinOperator, name):
                if form != "there":
                    operator.inputs = np.array([*operator.inputs[:place], *([-1] if form == "-1" else [])], np.int32)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        told = set()
        for kernels in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.BUILTIN_REF):
            try:
                runner = Interpreter(model_content=bytes(builder.Output()), experimental_op_resolver_type=kernels)
                runner.allocate_tensors()
                runner.set_tensor(runner.get_input_details()[0]["index"], PICTURE)
                runner.invoke()
                told.add("runs")
            except RuntimeError as error:
                told.add("has_bias" if "has_bias" in str(error) else "optional" if "optional" in str(error) else str(error))
        wanted = {"-1": "optional", "left out": "has_bias"}.get(form, "runs") if name == "CONV_2D" else "runs"
        print(f"{name}, bias: {form}: {', '.join(sorted(told))}")
        assert told == {wanted}, f"changed: expected {wanted}"
PY
