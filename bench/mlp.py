"""Write a multi-layer perceptron of Keras with random weights as .tflite, int8 and float32, to split with parities.

    python bench/mlp.py DIR --width 4096

It takes 3072 values, has three hidden layers of so many units, and 1000 classes. With 4096 units it has 50 million
parameters. Needs the extra `training`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, HIDDEN, CLASSES = (1, 3072), 3, 1000


def main() -> None:
    """Write mlp-int8.tflite and mlp-float32.tflite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--width", type=int, default=4096, metavar="N", help="units of each hidden layer")
    args = parser.parse_args()
    import tensorflow as tf

    model = build(tf.keras, args.width)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "mlp-float32.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = windows
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (args.folder / "mlp-int8.tflite").write_bytes(converter.convert())


def build(keras: Any, width: int) -> Any:
    """Return the network."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    window = x = keras.Input(SHAPE, batch_size=1)
    for _ in range(HIDDEN):
        x = layers.Dense(width, activation="relu")(x)
    x = layers.Flatten()(layers.Dense(CLASSES)(x))
    return keras.Model(window, layers.Softmax()(x))


def windows() -> Iterator[list[Any]]:
    """Yield random windows, by which the integers get their scales."""
    for seed in range(20):
        yield [np.random.default_rng(seed).uniform(-1, 1, (1, *SHAPE)).astype(np.float32)]


if __name__ == "__main__":
    main()
