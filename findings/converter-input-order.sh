#!/usr/bin/env bash
# Guess: get_input_details() and get_output_details() have the order in which the
#   Keras model declares its inputs and outputs; if not, that of the signature.
# What is so: neither. Inputs wrist, ankle, chest come as wrist, chest, ankle
#   (the signature lists ankle, chest, wrist; other names give another order),
#   outputs activity, embedding, subject as embedding, activity, subject. The
#   three inputs have one shape, so set by position everything runs, and other
#   numbers come out. By the signature's names the answer is Keras's.
# Versions: tensorflow-cpu 2.21.0 (Keras 3.15.1), ai-edge-litert 2.3.0,
#   Python 3.11, x86-64.
# Why it matters: models with one input a sensor are usual for activities, and
#   most examples set input_details[0], [1], [2] in turn and read output 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 keras==3.15.1 ai-edge-litert==2.3.0
TF_CPP_MIN_LOG_LEVEL=3 v/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
names = ("wrist", "ankle", "chest")
inputs = [layers.Input((64, 3), name=name) for name in names]
branches = [
    layers.GlobalAveragePooling1D()(layers.Conv1D(8, 3)(tensor)) for tensor in inputs
]
joined = layers.Concatenate()(branches)
outputs = {"activity": 6, "embedding": 4, "subject": 3}
model = tf.keras.Model(
    inputs, [layers.Dense(size, name=name)(joined) for name, size in outputs.items()]
)
interpreter = Interpreter(
    model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert()
)
interpreter.allocate_tensors()
windows = np.random.default_rng(0).normal(size=(3, 1, 64, 3)).astype("f4")
right = [answer.numpy() for answer in model(list(windows))]

got_in = [
    entry["name"].removeprefix("serving_default_").split(":")[0]
    for entry in interpreter.get_input_details()
]
sizes = {size: name for name, size in outputs.items()}
got_out = [
    sizes[int(entry["shape"][1])] for entry in interpreter.get_output_details()
]
signature = interpreter.get_signature_list()["serving_default"]
for entry, window in zip(interpreter.get_input_details(), windows, strict=True):
    interpreter.set_tensor(entry["index"], window)
interpreter.invoke()
by_position = interpreter.get_tensor(
    interpreter.get_output_details()[got_out.index("activity")]["index"]
)
runner = interpreter.get_signature_runner()
by_name = runner(**dict(zip(names, windows, strict=True)))["output_0"]
print()
print("declared:", *names, "->", *outputs)
print("details: ", *got_in, "->", *got_out)
print("signature lists:", *signature["inputs"], "->", *signature["outputs"])
print("Keras      ", np.round(right[0][0], 3))
print("by position", np.round(by_position[0], 3))
print("by name    ", np.round(by_name[0], 3))
assert got_in == ["wrist", "chest", "ankle"], got_in
assert got_out == ["embedding", "activity", "subject"], got_out
assert np.allclose(by_name, right[0], atol=1e-5)
assert not np.allclose(by_position, right[0], atol=1e-2), "equal by position now"
PY
