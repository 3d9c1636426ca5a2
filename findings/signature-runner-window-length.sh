#!/usr/bin/env bash
# Guess: a SignatureRunner refuses an array whose shape is not the signature's;
#   only an open (-1) dimension may differ.
# What is so: it resizes the input to whatever comes, open or not. A model with
#   the signature [-1, 64, 6] given one window of twice the length, [1, 128, 6],
#   answers with two rows (not those of its halves). With a fixed batch the
#   same call raises, with XNNPACK's message and not one about the shape.
#   Interpreter.resize_tensor_input(strict=True) refuses both.
# Versions: ai-edge-litert 2.3.0, tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: a window cut at another rate is not noticed; answers no longer
#   belong to the windows that were sent.
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
        layers.Conv1D(16, 5, padding="same", activation="relu"),
        layers.MaxPool1D(2),
        layers.Conv1D(24, 3, activation="relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(6),
    ]
)
long = np.random.default_rng(0).normal(size=(1, 128, 6)).astype("f4")
seen = {}
print()
for name, batch in (("open", None), ("fixed", 1)):
    spec = [tf.TensorSpec((batch, 64, 6), tf.float32, name="x")]
    model.export(name, format="tf_saved_model", input_signature=spec, verbose=False)
    data = tf.lite.TFLiteConverter.from_saved_model(name).convert()
    interpreter = Interpreter(model_content=data)
    details = interpreter.get_input_details()[0]
    try:
        interpreter.resize_tensor_input(details["index"], long.shape, strict=True)
        strict = "accepted"
    except RuntimeError as error:
        strict = f"raised {str(error)[:60]}"
    runner = Interpreter(model_content=data).get_signature_runner()
    right = np.concatenate(
        [
            next(iter(runner(x=half).values()))
            for half in (long[:, :64], long[:, 64:])
        ]
    )
    try:
        got = next(iter(runner(x=long).values()))
        seen[name] = got.shape
        outcome = f"answers {got.shape}, those of its halves: "
        outcome += str(np.allclose(got, right, atol=1e-5))
    except RuntimeError as error:
        seen[name] = "raised"
        outcome = f"raised {str(error)[:48]}"
    print(f"{name:5} signature {details['shape_signature'].tolist()}, [1, 128, 6]:")
    print(f"  SignatureRunner {outcome}")
    print(f"  resize_tensor_input(strict=True) {strict}")
    assert strict.startswith("raised"), "strict changed"
assert seen == {"open": (2, 6), "fixed": "raised"}, seen
PY
