#!/usr/bin/env bash
# Guess: OpenCV's dnn module either answers as LiteRT does, to 1e-5, or refuses a
#   .tflite by the name of the operator that it lacks. (It does refuse UNPACK, ELU,
#   TILE, TRANSPOSE_CONV and fused RELU of int8.)
# What is so: a convolution with dilation and padding "same" is answered wrongly,
#   without a word: it is padded as if it had no dilation, so that each value
#   stands (dilation - 1) * (kernel - 1) / 2 places too early and the border is
#   another. In one dimension (temporal convolutions over sensor windows) and two.
#   PReLU with a slope for each element, Keras's default, is wrong, too: its slopes
#   stay in the order height, width, channel while the data become channel first.
# Versions: opencv-python-headless 5.0.0.93, ai-edge-litert 2.3.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: temporal convolutional networks for human activity are made of
#   dilated convolutions; classes come out, and they look plausible.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0 opencv-python-headless==5.0.0.93
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import contextlib
import io

import cv2
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

layers = tf.keras.layers
tf.keras.utils.set_random_seed(1)
random = np.random.default_rng(0)


def both(layer, shape):
    """Return the answers of LiteRT and OpenCV, batch and channels last."""
    start = tf.keras.Input(shape, batch_size=1)
    model = tf.keras.Model(start, layer(start))
    with contextlib.redirect_stdout(io.StringIO()):
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    window = random.normal(size=(1, *shape)).astype("f4")
    runner = Interpreter(model_content=data)
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], window)
    runner.invoke()
    right = runner.get_tensor(runner.get_output_details()[0]["index"])
    net = cv2.dnn.readNetFromTFLite(np.frombuffer(data, np.uint8))
    picture = len(shape) == 3
    net.setInput(np.ascontiguousarray(window.transpose(0, 3, 1, 2)) if picture else window)
    found = net.forward()
    return right, found.transpose(0, 2, 3, 1) if picture else found


def worst(one, other):
    return float(np.abs(one - other).max())


conv1, conv2 = layers.Conv1D, layers.Conv2D
for padding, dilation in (("same", 1), ("valid", 4), ("same", 2), ("same", 4)):
    right, found = both(conv1(4, 5, dilation_rate=dilation, padding=padding), (50, 6))
    early = (dilation - 1) * 4 // 2 if padding == "same" else 0
    inside = worst(right[:, 12:-12], found[:, 12 - early : right.shape[1] - 12 - early])
    print(f"Conv1D {padding:5s} dilation {dilation}: off by {worst(right, found):.1e};", end=" ")
    print(f"{early} places earlier: {inside:.1e}; largest {np.abs(right).max():.1f}")
    assert inside < 1e-5, "changed"
    assert (worst(right, found) > 1) == (early > 0), "changed"
right, found = both(conv2(4, 3, dilation_rate=2, padding="same"), (20, 20, 3))
print(f"Conv2D same  dilation 2: off by {worst(right, found):.1e}; 1 place earlier:", end=" ")
inside = worst(right[:, 4:-4, 4:-4], found[:, 3:15, 3:15])
print(f"{inside:.1e}")
assert worst(right, found) > 1 and inside < 1e-5, "changed"
for shared, wrong in (([1, 2], False), (None, True)):
    right, found = both(layers.PReLU(alpha_initializer="uniform", shared_axes=shared), (9, 7, 4))
    print(f"PReLU, shared axes {shared}: off by {worst(right, found):.1e}")
    assert (worst(right, found) > 1e-3) == wrong, "changed"
PY
