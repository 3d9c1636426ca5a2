"""The child of load_check.py: read a model from standard input, check its structure, load it, and run it once.

    python -m har_edge.inference.load_check_child MEMORY_BYTES SECONDS DELEGATE

Exit code 0: the model ran. DAMAGED: its structure is broken, and standard output says how. REFUSED: the runtime refuses
it, here and anywhere. Any other code is a fault of this process, most often its death by a signal.
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
    """Run the check and return the exit code; `delegate` is "xnnpack" or "none"."""
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
    """Check every index, offset and size in the file. If the schema is missing, only the runtime checks it."""
    from har_edge.errors import ModelError

    try:
        from har_edge.tflite.model import read_model
    except ModelError:  # tflite_runtime comes without the schema
        return
    read_model(content)


def limit(memory_bytes: int, seconds: int) -> None:
    """Bound this process's memory and time, write no core dump, and let the kernel kill it first in a shortage."""
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
