"""TensorFlow, or a clear word about what is missing."""

from __future__ import annotations

import os

from har_edge.errors import ConfigError


def require_tensorflow() -> None:
    """Import TensorFlow quietly; raises ConfigError that says how to install it."""
    # TensorFlow's own log is pages long; whoever wants it sets the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"training needs TensorFlow, which is not here ({error}); pip install 'har-edge[training]'"
        ) from error
