"""Write a small transformer of Keras with random weights as .tflite, float32 and int8, to split its attention heads.

    python bench/attention_model.py DIR

Two blocks of four heads over 16 patches of a picture. Needs the extra `training`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADS, SIZE, PATCHES = 4, 8, 16


def main() -> None:
    """Write attention-float32.tflite and attention-int8.tflite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    import tensorflow as tf

    model = build(tf.keras)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attention-float32.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = pictures
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "attention-int8.tflite").write_bytes(converter.convert())


def build(keras: Any) -> Any:
    """Return the network."""
    keras.utils.set_random_seed(0)
    layers, width = keras.layers, HEADS * SIZE
    picture = keras.Input((16, 16, 3), batch_size=1)
    x = layers.Reshape((PATCHES, width))(layers.Conv2D(width, 4, 4)(picture))
    for _ in range(2):
        normal = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, SIZE)(normal, normal)
        hidden = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(hidden)
    return keras.Model(picture, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def pictures() -> Iterator[list[Any]]:
    """Yield random pictures, by which the integers get their scales."""
    for seed in range(20):
        yield [np.random.default_rng(seed).standard_normal((1, 16, 16, 3)).astype(np.float32)]


if __name__ == "__main__":
    main()
