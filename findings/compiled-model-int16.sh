#!/usr/bin/env bash
# Guess: CompiledModel, LiteRT 2's own interface, runs whatever LiteRT's own
#   quantizer makes, and tells an input's scale and zero point as Interpreter
#   does.
# What is so: the quantizer's a16w8 recipe makes int16 inputs and outputs, the
#   model compiles, its details say int16, and TensorBuffer.write() and read()
#   raise "Unsupported dtype: int16". For int8 they work, but no call of
#   CompiledModel or TensorBuffer tells scale or zero point. Interpreter runs
#   both models and tells both figures.
# Versions: litert-quantizer 0.11.0, ai-edge-litert 2.3.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: who moves to the newer interface has no way from sensor units
#   to an integer input but the old interface or the file itself.
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
from ai_edge_litert.compiled_model import CompiledModel
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
windows = np.random.default_rng(0).normal(size=(32, 1, 64, 6)).astype("f4")
seen = {}
print()
for name, chosen in (("int8", "static_wi8_ai8"), ("int16", "static_wi8_ai16")):
    tool = quantizer.Quantizer("m.tflite")
    tool.load_quantization_recipe(getattr(recipe, chosen)())
    samples = {"serving_default": [{"x": window} for window in windows]}
    found = tool.calibrate(samples, num_threads=1)
    path = f"{name}.tflite"
    with open(path, "wb") as file:
        result = tool.quantize(found, enable_progress_report=False)
        file.write(result.quantized_model)

    runner = Interpreter(model_path=path)
    runner.allocate_tensors()
    told = runner.get_input_details()[0]
    scale, zero = told["quantization"]
    limits = np.iinfo(told["dtype"])
    values = np.clip(np.round(windows[0] / scale) + zero, limits.min, limits.max)
    window = values.astype(told["dtype"])
    runner.set_tensor(told["index"], window)
    runner.invoke()
    right = runner.get_tensor(runner.get_output_details()[0]["index"])

    compiled = CompiledModel.from_file(path)
    details = compiled.get_input_tensor_details("serving_default")["x"]
    sources = compiled.create_input_buffers(0)
    targets = compiled.create_output_buffers(0)
    try:
        sources[0].write(window)
        compiled.run_by_index(0, sources, targets)
        got = targets[0].read(6, told["dtype"]).reshape(1, 6)
        outcome = f"equal to Interpreter: {np.array_equal(got, right)}"
    except ValueError as error:
        outcome = f"raised: {error}"
    seen[name] = outcome
    print(f"{name:6}details {sorted(details)}, buffer {targets[0].get_tensor_details()}")
    print(f"{name:6}{outcome}")
    assert details["dtype"] == name
    assert not {"scale", "quantization", "zero_point"} & set(details), "told now"
assert seen["int8"] == "equal to Interpreter: True"
assert seen["int16"] == "raised: Unsupported dtype: int16", "int16 changed"
PY
