#!/usr/bin/env bash
# Guess: a Keras LSTM becomes one UNIDIRECTIONAL_SEQUENCE_LSTM, and an
#   open batch dimension converts too.
# What is so: with Keras 3 it becomes a WHILE loop with two subgraphs, and only
#   with a fixed batch; with an open one (Keras's default) the conversion
#   fails. tf_keras (Keras 2) still gives the fused operator for a batch of 1.
# Versions: tensorflow-cpu 2.21.0 with keras 3.15.1 or tf_keras 2.21.0,
#   Python 3.11, x86-64.
# Why it matters: LSTM is a usual layer of activity models. The same script
#   makes another graph after an update: no fused kernel, loops that cannot be
#   cut, and no state that is kept from one call to the next.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv v
v/bin/pip install -q tensorflow-cpu==2.21.0 keras==3.15.1 tf_keras==2.21.0
cat > convert.py <<'PY'
import sys

import tensorflow as tf

keras = tf.keras
for batch in (1, None):
    inputs = keras.Input(batch_shape=(batch, 64, 6))
    outputs = keras.layers.Dense(6)(keras.layers.LSTM(24)(inputs))
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, outputs))
    try:
        runner = tf.lite.Interpreter(
            model_content=converter.convert(),
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        operators = [entry["op_name"] for entry in runner._get_ops_details()]
        print(sys.argv[1], "batch", batch, " ".join(operators))
    except Exception as error:
        name = type(error).__name__
        hint = "TensorListReserve" if "TensorListReserve" in str(error) else ""
        print(sys.argv[1], "batch", batch, name, hint)
PY
export TF_CPP_MIN_LOG_LEVEL=3
v/bin/python convert.py keras3 2>err.log | grep '^keras3' | tee seen
TF_USE_LEGACY_KERAS=1 v/bin/python convert.py tf_keras 2>>err.log |
  grep '^tf_keras' | tee -a seen
diff seen - <<'WANT'
keras3 batch 1 RESHAPE WHILE STRIDED_SLICE FULLY_CONNECTED
keras3 batch None ConverterError TensorListReserve
tf_keras batch 1 UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE FULLY_CONNECTED
tf_keras batch None ConverterError TensorListReserve
WANT
