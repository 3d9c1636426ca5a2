#!/usr/bin/env bash
# Guess: one NaN in a window makes the answer NaN, whatever the kernels, unless
#   the input is an integer.
# What is so: only where the path to the output has sums alone (mean pooling).
#   After a global max pooling the float model's answer is finite, and XNNPACK
#   and BUILTIN_REF give different ones for the same window. A dynamic-range
#   int8 model gives a finite answer with mean pooling too.
# Versions: ai-edge-litert 2.3.0, litert-quantizer 0.11.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: NaN marks lost samples. A check of the answer for NaN does not
#   find them; the window must be checked before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0 \
  litert-quantizer==0.11.0
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from litert_quantizer import quantizer, recipe

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
models = {}
for name, pool in (
    ("mean", layers.GlobalAveragePooling1D()),
    ("max", layers.GlobalMaxPooling1D()),
):
    convolution = layers.Conv1D(16, 5, activation="relu")
    model = tf.keras.Sequential(
        [layers.Input((64, 6)), convolution, pool, layers.Dense(6)]
    )
    model.export(name, format="tf_saved_model", input_signature=spec, verbose=False)
    models[name, "float"] = tf.lite.TFLiteConverter.from_saved_model(name).convert()
    with open("m.tflite", "wb") as file:
        file.write(models[name, "float"])
    tool = quantizer.Quantizer("m.tflite")
    tool.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    result = tool.quantize(enable_progress_report=False)
    models[name, "int8"] = bytes(result.quantized_model)
window = np.random.default_rng(1).normal(size=(1, 64, 6)).astype("f4")
window[0, 30, 2] = np.nan
answers = {}
print()
for (pool, kind), data in models.items():
    for kernels in ("AUTO", "BUILTIN_REF"):
        runner = Interpreter(
            model_content=data,
            experimental_op_resolver_type=OpResolverType[kernels],
        )
        runner.allocate_tensors()
        runner.set_tensor(runner.get_input_details()[0]["index"], window)
        runner.invoke()
        got = runner.get_tensor(runner.get_output_details()[0]["index"])[0]
        answers[pool, kind, kernels] = got
        print(f"{pool:5}{kind:6}{kernels:12}{np.round(got[:3], 3)}")
for kernels in ("AUTO", "BUILTIN_REF"):
    assert np.isnan(answers["mean", "float", kernels]).all(), "no NaN for sums"
    for case in (("max", "float"), ("mean", "int8"), ("max", "int8")):
        assert np.isfinite(answers[*case, kernels]).all(), (case, "NaN now")
first, second = (answers["max", "float", k] for k in ("AUTO", "BUILTIN_REF"))
assert abs(first - second).max() > 0.01, "the kernels agree now"
PY
