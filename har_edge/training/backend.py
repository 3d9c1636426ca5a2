"""TensorFlow, or a clear word about what is missing."""

from __future__ import annotations

import os

from har_edge.errors import ConfigError
from har_edge.extras import install_line, require


def require_tensorflow() -> None:
    """Import TensorFlow quietly; raises ConfigError that says how to install it, or why it does not load."""
    require("training", "tensorflow", "sklearn")
    # TensorFlow's own log is pages long; whoever wants it sets the variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"training needs TensorFlow, which is installed but does not load ({error}); install it anew: "
            f"{install_line('tensorflow')} --force-reinstall"
        ) from error
