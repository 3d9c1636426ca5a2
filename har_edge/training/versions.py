"""The versions that the bytes of a model depend on."""

from __future__ import annotations

import platform

import keras
import numpy as np
import tensorflow as tf

from har_edge import __version__


def versions() -> dict[str, str]:
    """Return the versions that the bytes of a model depend on."""
    return {
        "har_edge": __version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
