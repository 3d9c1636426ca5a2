"""The child of load_check.py: read a model from standard input, look at its structure, load it, and run it once.

    python -m har_edge.inference.load_check_child MEMORY_BYTES SECONDS DELEGATE

Exit code 0: it ran. DAMAGED: its structure is broken; standard output says how. REFUSED: the runtime refuses it, as it
will refuse it anywhere. Anything else is a fault of this process, most of all its death by a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

DAMAGED, REFUSED = 3, 4


def main(memory_bytes: int, seconds: int, delegate: str) -> int:
    """Return the exit code; `delegate` is who computes, "xnnpack" or "none"."""
    limit(memory_bytes, seconds)
    content = sys.stdin.buffer.read()
    import numpy as np

    from har_edge.errors import MessageError, ModelError
    from har_edge.inference.interpreter import Delegate, Interpreter
    from har_edge.inference.sampling import sample

    try:
        check_structure(content)
    except ModelError as error:
        print(json.dumps({"error": str(error)}))
        return DAMAGED
    try:
        interpreter = Interpreter(content, delegate=Delegate(delegate))
        with contextlib.suppress(MessageError):  # made-up values may be refused: that is an answer too
            interpreter.run(sample(interpreter.inputs, np.random.default_rng(0)))
    except ModelError:
        return REFUSED
    return 0


def check_structure(content: bytes) -> None:
    """Check every index, offset and size in the file; where the schema is missing, the runtime alone looks at it."""
    from har_edge.errors import ModelError

    try:
        from har_edge.tflite.model import read_model
    except ModelError:  # tflite_runtime comes without the schema
        return
    read_model(content)


def limit(memory_bytes: int, seconds: int) -> None:
    """Bound what this process may take, leave no dump of its memory, and be the first to go when memory is short."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, memory_bytes),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        os.nice(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
