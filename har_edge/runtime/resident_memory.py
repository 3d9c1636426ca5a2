"""Print how much memory a stage process takes: `python -m har_edge.runtime.resident_memory SLICE MODEL DELEGATE`.

Three numbers in bytes: resident with bus, runtime and a small slice that has run; what the whole model adds once it has
run; and the peak. In a process of its own, since memory that was once taken is not given back.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.mqtt.connect import ClientLibrary, choose_client
from har_edge.runtime import build
from har_edge.runtime.stage import loop

STATUS = Path("/proc/self/status")


def main(small: Path, whole: Path, delegate: Delegate) -> None:
    """Load and run the one, then the other."""
    if choose_client(ClientLibrary.AUTO) is ClientLibrary.NATIVE:
        from har_edge.mqtt.clients import native as client
    else:
        from har_edge.mqtt.clients import paho as client  # type: ignore[no-redef]
    loaded = [build, loop, client, run(small, delegate)]
    base = _figure("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew (proc(5))
    loaded.append(run(whole, delegate))
    print(base, _figure("VmRSS") - base, _figure("VmHWM"))


def run(path: Path, delegate: Delegate) -> Interpreter:
    """Load a model as a stage does, and run it once."""
    interpreter = Interpreter(path.read_bytes(), delegate=delegate)
    interpreter.run(sample(interpreter.inputs, np.random.default_rng(0)))
    return interpreter


def _figure(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Delegate(sys.argv[3]))
