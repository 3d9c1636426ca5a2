#!/usr/bin/env bash
# Guess: where TensorFlow 2.21's converter makes something that an older
#   runtime cannot compute, the operator's version says so and the runtime
#   refuses the model.
# What is so: a Dense layer over each time step (input [T, C]) becomes a
#   FULLY_CONNECTED that keeps the dimensions: version 5, with
#   min_runtime_version 2.0.0. tflite-runtime 2.14 takes its int16x8 model and
#   gives another class in most windows; the int8 model is right there with the
#   optimized kernels, and as wrong with BUILTIN_REF. With Flatten first the
#   version is 4 and int16 is right there too. ai-edge-litert 2.3 is right with
#   all of them.
# Versions: tensorflow-cpu 2.21.0, ai-edge-litert 2.3.0, tflite-runtime 2.14.0,
#   Python 3.11, x86-64.
# Why it matters: a fleet of Pis often has both runtimes, and int16 activations
#   are what one takes when int8 costs too much accuracy.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv new
python3 -m venv old
new/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0
old/bin/pip install -q tflite-runtime==2.14.0 'numpy<2'
TF_CPP_MIN_LOG_LEVEL=3 new/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
dense = layers.Dense(32, activation="relu")
networks = {
    "steps": [layers.Input((64, 6)), dense, layers.Flatten(), layers.Dense(6)],
    "flat": [
        layers.Input((64, 6)),
        layers.Flatten(),
        layers.Dense(32, activation="relu"),
        layers.Dense(6),
    ],
}
generator = np.random.default_rng(0)
spec = [tf.TensorSpec((1, 64, 6), tf.float32, name="x")]
for network, parts in networks.items():
    model = tf.keras.Sequential(parts)
    for weight in model.weights:  # channels of different size, as if trained
        size = generator.uniform(0.02, 0.4, size=weight.shape[-1])
        weight.assign(generator.normal(size=weight.shape) * size)
    model.export(
        network, format="tf_saved_model", input_signature=spec, verbose=False
    )
windows = generator.normal(size=(300, 1, 64, 6)).astype("f4")
np.save("windows.npy", windows)
sets = tf.lite.OpsSet
kinds = {
    "float": None,
    "int8": [sets.TFLITE_BUILTINS_INT8],
    "int16": [sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8],
}
print()
for network in networks:
    for name, operators in kinds.items():
        converter = tf.lite.TFLiteConverter.from_saved_model(network)
        if operators:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([w] for w in windows)
            converter.target_spec.supported_ops = operators
        data = converter.convert()
        with open(f"{network}-{name}.tflite", "wb") as file:
            file.write(data)
        codes = schema.ModelT.InitFromPackedBuf(data, 0).operatorCodes
        versions = [code.version for code in codes if code.builtinCode == 9]
        print(f"{network:6}{name:6}FULLY_CONNECTED version {versions}")
PY
cat > run.py <<'PY'
import sys

import numpy as np

if sys.argv[1] == "old":
    from tflite_runtime.interpreter import Interpreter, OpResolverType
else:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
for case in ("steps-float", "steps-int8", "steps-int16", "flat-float", "flat-int16"):
    for kernels in ("AUTO", "BUILTIN_REF"):
        runner = Interpreter(
            model_path=f"{case}.tflite",
            experimental_op_resolver_type=OpResolverType[kernels],
        )
        runner.allocate_tensors()
        source = runner.get_input_details()[0]["index"]
        target = runner.get_output_details()[0]["index"]
        classes = []
        for window in np.load("windows.npy"):
            runner.set_tensor(source, window)
            runner.invoke()
            classes.append(runner.get_tensor(target)[0].argmax())
        np.save(f"{sys.argv[1]}-{case}-{kernels}.npy", np.array(classes))
PY
new/bin/python run.py new 2>>err.log
old/bin/python run.py old 2>>err.log
new/bin/python - <<'PY'
import numpy as np

wrong = []
for runtime in ("new", "old"):
    for case in ("steps-int8", "steps-int16", "flat-int16"):
        right = np.load(f"new-{case.split('-')[0]}-float-AUTO.npy")
        for kernels in ("AUTO", "BUILTIN_REF"):
            got = np.load(f"{runtime}-{case}-{kernels}.npy")
            share = float((got != right).mean())
            print(
                f"{runtime} {case:12}{kernels:12} other class in "
                f"{share:4.0%} of windows"
            )
            if share > 0.15:
                wrong.append(f"{runtime} {case} {kernels}")
assert wrong == [
    "old steps-int8 BUILTIN_REF",
    "old steps-int16 AUTO",
    "old steps-int16 BUILTIN_REF",
], wrong
PY
