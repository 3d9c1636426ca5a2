"""TensorFlow, or a clear word about what is missing."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

from har_edge.errors import ConfigError
from har_edge.extras import install_line, require

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what libraries in C++ write to standard error to ourselves, unless they fail, or somebody asked for logs.

    TensorFlow writes some lines before it looks at its level of logging, and its converter whatever that is.
    """
    if os.environ.get(LOG_LEVEL, "3") != "3":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def require_tensorflow(purpose: str = "training", *, also: Sequence[str] = ("sklearn",)) -> None:
    """Import TensorFlow quietly; raises ConfigError that says how to install it, or why it does not load.

    `also` names further libraries that the purpose needs.
    """
    require(purpose, "tensorflow", *also)
    try:
        with quietly():
            # TensorFlow's own log is pages long; whoever wants it sets the variable.
            os.environ.setdefault(LOG_LEVEL, "3")
            import tensorflow  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs TensorFlow, which is installed but does not load ({error}); install it anew: "
            f"{install_line('tensorflow')} --force-reinstall"
        ) from error
