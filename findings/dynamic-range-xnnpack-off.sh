#!/usr/bin/env bash
# Guess: with XNNPACK on or off a dynamic-range int8 model differs as a float
#   model does: in the last bits (up to 1e-5 of the output's range).
# What is so: a thousand times more, around 1e-2 of the range: the two round the
#   activations in different ways. With weight-only int8 of the same weights the
#   difference is as small as with float.
# Versions: litert-quantizer 0.11.0, ai-edge-litert 2.3.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: a fleet where one device has no XNNPACK (or a model where it
#   takes only some operators), or a check that compares answers with a
#   tolerance that was measured on float models.
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
model = tf.keras.Sequential(
    [
        layers.Input((64, 6)),
        layers.Conv1D(16, 5, activation="relu"),
        layers.Conv1D(24, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(6),
    ]
)
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
model.export("saved", format="tf_saved_model", input_signature=spec, verbose=False)
models = {"float": tf.lite.TFLiteConverter.from_saved_model("saved").convert()}
with open("m.tflite", "wb") as file:
    file.write(models["float"])
for name in ("weight_only_wi8_afp32", "dynamic_wi8_afp32"):
    tool = quantizer.Quantizer("m.tflite")
    tool.load_quantization_recipe(getattr(recipe, name)())
    result = tool.quantize(enable_progress_report=False)
    models[name] = bytes(result.quantized_model)
windows = np.random.default_rng(1).normal(size=(200, 1, 64, 6)).astype("f4")


def answers(data, kernels):
    runner = Interpreter(model_content=data, experimental_op_resolver_type=kernels)
    runner.allocate_tensors()
    source = runner.get_input_details()[0]["index"]
    target = runner.get_output_details()[0]["index"]
    found = []
    for window in windows:
        runner.set_tensor(source, window)
        runner.invoke()
        found.append(runner.get_tensor(target)[0].copy())
    return np.array(found)


shares = {}
print()
for name, data in models.items():
    on = answers(data, OpResolverType.AUTO)
    off = answers(data, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    shares[name] = float(abs(on - off).max() / np.ptp(on))
    print(f"{name:22} greatest difference on - off: {shares[name]:.1e} of the range")
assert shares["float"] < 1e-5 and shares["weight_only_wi8_afp32"] < 1e-5
assert shares["dynamic_wi8_afp32"] > 1e-3, "they agree now"
PY
