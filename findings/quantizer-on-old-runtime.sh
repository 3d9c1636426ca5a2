#!/usr/bin/env bash
# Guess: an older runtime refuses a model from the newest quantizer, with the
#   message about an operator's version that it gives for TensorFlow's models.
# What is so: the quantizer leaves the operators' versions as the float model
#   had them (1), so tflite-runtime 2.14 loads the model, runs it, raises
#   nothing, and answers nonsense: another class in 56% of the windows.
#   TensorFlow's own dynamic-range model is refused there, by version 12.
# Versions: litert-quantizer 0.11.0 (ai-edge-quantizer 0.10.0 makes the same
#   bytes), tensorflow-cpu 2.21.0, ai-edge-litert 2.3.0, tflite-runtime 2.14.0,
#   Python 3.11, x86-64.
# Why it matters: Raspberry Pis run tflite-runtime 2.14 to this day. A model
#   that is right on the desk is wrong there, and nothing says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv new
python3 -m venv old
new/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0 \
  litert-quantizer==0.11.0
old/bin/pip install -q tflite-runtime==2.14.0 'numpy<2'
TF_CPP_MIN_LOG_LEVEL=3 new/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from litert_quantizer import quantizer, recipe

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
model = tf.keras.Sequential(
    [
        layers.Input((64, 6)),
        layers.Conv1D(16, 5, activation="relu"),
        layers.Conv1D(24, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(32, activation="relu"),
        layers.Dense(6),
    ]
)
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
model.export("saved", format="tf_saved_model", input_signature=spec, verbose=False)
made = {}
converter = tf.lite.TFLiteConverter.from_saved_model("saved")
made["float"] = converter.convert()
converter.optimizations = [tf.lite.Optimize.DEFAULT]
made["converter"] = converter.convert()
with open("float.tflite", "wb") as file:
    file.write(made["float"])
for name, chosen in (("int8", "dynamic_wi8_afp32"), ("int4", "dynamic_wi4_afp32")):
    tool = quantizer.Quantizer("float.tflite")
    tool.load_quantization_recipe(getattr(recipe, chosen)())
    result = tool.quantize(enable_progress_report=False)
    made[name] = bytes(result.quantized_model)
print()
for name, data in made.items():
    with open(f"{name}.tflite", "wb") as file:
        file.write(data)
    codes = schema.ModelT.InitFromPackedBuf(data, 0).operatorCodes
    print(f"{name:9} operator versions {sorted(code.version for code in codes)}")
windows = np.random.default_rng(1).normal(size=(200, 1, 64, 6)).astype("f4")
np.save("windows.npy", windows)
PY
cat > run.py <<'PY'
import sys

import numpy as np

if sys.argv[1] == "old":
    from tflite_runtime.interpreter import Interpreter
else:
    from ai_edge_litert.interpreter import Interpreter
for name in ("float", "converter", "int8", "int4"):
    try:
        runner = Interpreter(model_path=f"{name}.tflite")
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        print(sys.argv[1], name, "refused:", str(error)[:72])
        continue
    source = runner.get_input_details()[0]["index"]
    target = runner.get_output_details()[0]["index"]
    answers = []
    for window in np.load("windows.npy"):
        runner.set_tensor(source, window)
        runner.invoke()
        answers.append(runner.get_tensor(target)[0].copy())
    np.save(f"{sys.argv[1]}-{name}.npy", np.array(answers))
PY
new/bin/python run.py new 2>>err.log
old/bin/python run.py old 2>>err.log
new/bin/python - <<'PY'
import os

import numpy as np

right = np.load("new-float.npy")
shares = {}
for runtime in ("new", "old"):
    for name in ("float", "converter", "int8", "int4"):
        path = f"{runtime}-{name}.npy"
        if os.path.exists(path):
            got = np.load(path)
            other = float((got.argmax(1) != right.argmax(1)).mean())
            shares[runtime, name] = other
            print(
                f"{runtime} {name:9} other class in {other:4.0%} of windows"
            )
assert ("old", "converter") not in shares, "the converter's model runs now"
assert shares["new", "int8"] < 0.05 and shares["old", "float"] == 0
assert shares["old", "int8"] > 0.3, "the int8 model is right or refused"
PY
