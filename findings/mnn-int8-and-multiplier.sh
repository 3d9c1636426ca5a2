#!/usr/bin/env bash
# Guess: mnnconvert takes an int8 .tflite and answers within one step of LiteRT, or
#   refuses it; a float network of convolutions agrees to 1e-5.
# What is so: an int8 file converts, says "Converted Success", loads and runs, and
#   the answer is that of nothing: the scales are gone, sums of integers come out as
#   floats, the softmax of them is 1 for one class. And a depthwise convolution with
#   a depth multiplier of 2 is wrong in float32: input channel c meets the filter of
#   another channel; the multiplier 1 is right.
# Versions: mnn 3.6.1, ai-edge-litert 2.3.0, tensorflow-cpu 2.21.0, Python 3.11,
#   x86-64.
# Why it matters: MNN is what people try when LiteRT is too slow on a board; int8
#   files are the ones that they have. Nothing but a comparison tells.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0 mnn==3.6.1
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import contextlib
import io
import pathlib
import subprocess

import MNN.expr as expr
import MNN.nn
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

layers = tf.keras.layers
tf.keras.utils.set_random_seed(1)
random = np.random.default_rng(0)


def convert(stack, shape, int8):
    start = x = tf.keras.Input(shape, batch_size=1)
    for layer in stack:
        x = layer(x)
    converter = tf.lite.TFLiteConverter.from_keras_model(tf.keras.Model(start, x))
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [random.normal(size=(1, *shape)).astype("f4")] for _ in range(30)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


def both(stack, shape, int8=False):
    """Return the answers of LiteRT and MNN to one window of real values, and what the converter said."""
    pathlib.Path("m.tflite").write_bytes(convert(stack, shape, int8))
    window = random.normal(size=(1, *shape)).astype("f4")
    runner = Interpreter("m.tflite")
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], window)
    runner.invoke()
    right = runner.get_tensor(runner.get_output_details()[0]["index"])
    call = ["v/bin/mnnconvert", "-f", "TFLITE", "--modelFile", "m.tflite", "--MNNModel", "m.mnn", "--bizCode", "x"]
    said = subprocess.run(call, capture_output=True, text=True, check=True)
    net = MNN.nn.load_module_from_file("m.mnn", [], [])
    given = expr.const(window.ravel().tolist(), list(window.shape), expr.NHWC)
    answer = expr.convert(net.forward(given), expr.NHWC)
    return right, np.array(answer.read()).reshape(right.shape), said.stdout + said.stderr


network = [
    layers.Conv2D(8, 3, padding="same", activation="relu"),
    layers.MaxPooling2D(2),
    layers.Flatten(),
    layers.Dense(10),
]
for int8 in (False, True):
    right, found, said = both(network, (28, 28, 3), int8)
    success = "Converted Success" in said
    print("int8   " if int8 else "float32", "converter says success:", success)
    print("  LiteRT", right[0, :4].round(3), "class", right.argmax())
    print("  MNN   ", found[0, :4].round(3), "class", found.argmax())
    assert success, "changed"
    close = np.abs(right - found).max() < 1e-4
    assert close != int8 and (not int8 or np.abs(found).max() > 1000), "changed"
for multiplier in (1, 2):
    right, found, _ = both([layers.DepthwiseConv2D(3, depth_multiplier=multiplier)], (20, 20, 3))
    error = np.abs(right - found).max()
    print(f"depthwise, multiplier {multiplier}: off by {error:.1e}, largest {np.abs(right).max():.1f}")
    assert (error > 0.5) == (multiplier > 1), "changed"
PY
