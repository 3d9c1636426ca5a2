#!/usr/bin/env bash
# Guess: BATCH_MATMUL gives the same on tflite-runtime 2.14 (the last wheel for a
#   32-bit Raspberry Pi) as on ai-edge-litert 2.3, whatever is transposed or repeated.
# What is so: a left operand that is transposed (adj_x) and a right one with one
#   matrix for all of the batch is silently wrong on 2.14 from the second matrix
#   on, other memory comes out; without XNNPACK, too. Each of the two alone is
#   right, and so is a right operand that is transposed.
# Versions: tflite-runtime 2.14.0 with numpy 1.26.4, ai-edge-litert 2.3.0,
#   tensorflow-cpu 2.21.0, Python 3.11, x86-64.
# Why it matters: x^T w with shared weights is what the gradient of a dense layer
#   and linear attention look like. No error tells.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv new
python3 -m venv old
new/bin/pip install -q tensorflow-cpu==2.21.0 ai-edge-litert==2.3.0
old/bin/pip install -q tflite-runtime==2.14.0 numpy==1.26.4
TF_CPP_MIN_LOG_LEVEL=3 new/bin/python - <<'PY' 2>err.log || { tail -20 err.log; exit 1; }
import contextlib
import io

import numpy as np
import tensorflow as tf

random = np.random.default_rng(0)
for adj_x in (False, True):
    for adj_y in (False, True):
        for repeated in (False, True):
            a = random.normal(size=(5, 4, 3) if adj_x else (5, 3, 4)).astype("f4")
            n = 1 if repeated else 5
            b = random.normal(size=(n, 6, 4) if adj_y else (n, 4, 6)).astype("f4")
            product = tf.function(
                lambda x, y, adj_x=adj_x, adj_y=adj_y: tf.linalg.matmul(x, y, transpose_a=adj_x, transpose_b=adj_y)
            ).get_concrete_function(tf.TensorSpec(a.shape), tf.TensorSpec(b.shape))
            with contextlib.redirect_stdout(io.StringIO()):
                data = tf.lite.TFLiteConverter.from_concrete_functions([product]).convert()
            name = f"{adj_x:d}{adj_y:d}{repeated:d}"
            open(f"{name}.tflite", "wb").write(data)
            right = np.matmul(a.transpose(0, 2, 1) if adj_x else a, b.transpose(0, 2, 1) if adj_y else b)
            np.savez(f"{name}.npz", a=a, b=b, right=right)
PY
cat > run.py <<'PY'
import sys

import numpy as np

if sys.argv[1] == "new":
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
else:
    from tflite_runtime.interpreter import Interpreter, OpResolverType
for kernels in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
    for name in (f"{i:03b}" for i in range(8)):
        held = np.load(f"{name}.npz")
        runner = Interpreter(f"{name}.tflite", experimental_op_resolver_type=kernels)
        runner.allocate_tensors()
        for port in runner.get_input_details():
            given = held["a"] if tuple(port["shape"]) == held["a"].shape and not port["name"].endswith("y:0") else held["b"]
            runner.set_tensor(port["index"], given)
        runner.invoke()
        found = runner.get_tensor(runner.get_output_details()[0]["index"])
        wrong = [k for k in range(5) if not np.allclose(found[k], held["right"][k], atol=1e-4)]
        text = f"adj_x {name[0]} adj_y {name[1]} repeated {name[2]}: wrong matrices {wrong}"
        print(sys.argv[1], kernels.name, text)
        expected = sys.argv[1] == "old" and name[0] == "1" and name[2] == "1"
        assert bool(wrong) == expected, "changed: " + text
PY
new/bin/python run.py new 2>/dev/null
old/bin/python run.py old 2>/dev/null
