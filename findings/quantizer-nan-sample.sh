#!/usr/bin/env bash
# Guess: static calibration with a NaN in one of its samples raises, in
#   litert-quantizer as in TensorFlow's converter.
# What is so: the converter leaves the NaN out and makes the same scales as
#   without it. litert-quantizer calibrates and quantizes (one RuntimeWarning of
#   numpy's) and writes inner scales that are NaN; the first who refuses is
#   XNNPACK on the device, in allocate_tensors().
# Versions: litert-quantizer 0.11.0, ai-edge-litert 2.3.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: PAMAP2 and others mark lost samples by NaN; one of them among
#   hundreds of windows spoils the model, and moving from the converter to the
#   quantizer changes that.
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
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer import quantizer, recipe

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
model = tf.keras.Sequential(
    [
        layers.Input((64, 6)),
        layers.Conv1D(16, 5, activation="relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(6),
    ]
)
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
model.export("saved", format="tf_saved_model", input_signature=spec, verbose=False)
with open("m.tflite", "wb") as file:
    file.write(tf.lite.TFLiteConverter.from_saved_model("saved").convert())
clean = np.random.default_rng(0).normal(size=(64, 1, 64, 6)).astype("f4")
holed = clean.copy()
holed[30, 0, 10, 2] = np.nan


def with_converter(windows):
    converter = tf.lite.TFLiteConverter.from_saved_model("saved")
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([window] for window in windows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    return converter.convert()


def with_quantizer(windows):
    tool = quantizer.Quantizer("m.tflite")
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    samples = {"serving_default": [{"x": window} for window in windows]}
    found = tool.calibrate(samples, num_threads=1)
    return bytes(tool.quantize(found, enable_progress_report=False).quantized_model)


seen = {}
lines = []
for name, make in (("converter", with_converter), ("quantizer", with_quantizer)):
    for kind, windows in (("clean", clean), ("one NaN", holed)):
        runner = Interpreter(model_content=make(windows))
        scales = [t["quantization"][0] for t in runner.get_tensor_details()]
        try:
            runner.allocate_tensors()
            outcome = "runs"
        except RuntimeError as error:
            outcome = f"raised {str(error)[:32]}"
        seen[name, kind] = (np.round(scales, 6).tolist(), outcome)
        lines.append(
            f"{name} {kind:8} scales that are NaN: {np.isnan(scales).sum()}, {outcome}"
        )
print("", *lines, sep="\n")
assert seen["converter", "clean"] == seen["converter", "one NaN"]
assert seen["quantizer", "clean"][1] == "runs"
scales, outcome = seen["quantizer", "one NaN"]
assert np.isnan(scales).any() and outcome.startswith("raised"), "NaN is noticed now"
PY
