"""Keras models for measurements: random weights from a seed, converted once, in a process of their own, and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from har_edge.errors import ModelError
from har_edge.extras import require

NAMES = {"xception": "Xception", "mobilenetv2": "MobileNetV2", "resnet50": "ResNet50", "nasnetmobile": "NASNetMobile"}
_SEED = 0


def cache_folder() -> Path:
    """Return where converted models live: `$XDG_CACHE_HOME/har-edge/models`, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "har-edge" / "models"


def find_keras(name: str, folder: Path | None = None) -> Path:
    """Return the .tflite file of a name in NAMES, float32; it is made the first time.

    Raises ConfigError where that takes TensorFlow, and there is none; ModelError when it does not convert the model.
    """
    path = (folder or cache_folder()) / f"{NAMES[name]}.tflite"
    if path.exists():
        return path
    require(f"making Keras {NAMES[name]}", "tensorflow", instead=f", or put its .tflite at {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    done = subprocess.run([sys.executable, "-m", __name__, name, str(draft)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ModelError(f"TensorFlow does not convert Keras {NAMES[name]}: {last}; use another version of it")
    draft.replace(path)
    return path


def convert(name: str, path: Path) -> None:
    """Write a Keras model with random weights."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(_SEED)
    model = getattr(keras.applications, NAMES[name])(weights=None)
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
