#!/usr/bin/env bash
# Guess: what the converter makes under TFLITE_BUILTINS plus int16x8, the
#   runtime of the same year runs; where no int16 kernel is, it keeps float.
# What is so: LayerNormalization becomes a SQUARED_DIFFERENCE and a RSQRT on
#   int16, conversion succeeds, allocate_tensors() succeeds on ai-edge-litert
#   2.3, and invoke() raises: the kernel has no int16. The same model in int8
#   runs.
# Versions: tensorflow-cpu 2.21.0, ai-edge-litert 2.3.0, Python 3.11, x86-64.
# Why it matters: small transformers for sensor windows have LayerNormalization;
#   a node that only allocates to check a model says that all is well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
model = tf.keras.Sequential(
    [
        layers.Input((64, 6)),
        layers.Dense(16),
        layers.LayerNormalization(),
        layers.GlobalAveragePooling1D(),
        layers.Dense(6),
    ]
)
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
model.export("saved", format="tf_saved_model", input_signature=spec, verbose=False)
windows = np.random.default_rng(0).normal(size=(32, 1, 64, 6)).astype("f4")
sets = tf.lite.OpsSet
int16 = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
seen = {}
print()
for name, operators in (
    ("int8", [sets.TFLITE_BUILTINS_INT8, sets.TFLITE_BUILTINS]),
    ("int16", [int16, sets.TFLITE_BUILTINS]),
):
    converter = tf.lite.TFLiteConverter.from_saved_model("saved")
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([w] for w in windows)
    converter.target_spec.supported_ops = operators
    runner = Interpreter(model_content=converter.convert())
    step = "allocate_tensors"
    try:
        runner.allocate_tensors()
        step = "invoke"
        runner.set_tensor(runner.get_input_details()[0]["index"], windows[0])
        runner.invoke()
        seen[name] = "runs"
    except (RuntimeError, ValueError) as error:
        seen[name] = f"{step} raised: {str(error)[:60]}"
    print(name, seen[name])
assert seen["int8"] == "runs"
assert seen["int16"].startswith("invoke raised: SquaredDifference"), "changed"
PY
