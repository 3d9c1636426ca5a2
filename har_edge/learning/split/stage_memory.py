"""Print how much memory stages take: `python -m har_edge.learning.split.stage_memory FOLDER COUNT`.

Numbers in bytes: resident with bus, runtime and what a node trains with, and what each of COUNT stages of FOLDER adds
once it has run forward and back. In a process of its own, since memory that was once taken is not given back.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from har_edge.learning.split.step import StageStep, measure_stage
from har_edge.learning.worker import thread
from har_edge.mqtt.connect import ClientLibrary, choose_client
from har_edge.runtime import build
from har_edge.runtime.resident_memory import STATUS
from har_edge.runtime.stage import loop
from har_edge.tflite.gradient.stage_spec import decode_stage_spec


def main(folder: Path, count: int) -> None:
    """Load and run one after the other, and keep them all."""
    if choose_client(ClientLibrary.AUTO) is ClientLibrary.NATIVE:
        from har_edge.mqtt.clients import native as client
    else:
        from har_edge.mqtt.clients import paho as client  # type: ignore[no-redef]
    loaded: list[object] = [build, loop, client, thread]
    taken, resident = list[int](), _resident()
    for number in range(count):
        before = _resident()
        loaded.append(_run(folder, str(number)))
        taken.append(max(0, _resident() - before))
    print(resident, *taken)


def _run(folder: Path, name: str) -> StageStep:
    spec = decode_stage_spec((folder / f"{name}.json").read_bytes())
    files = [folder / f"{name}.{part}" for part in ("forward", "backward")]
    forward, backward = (file.read_bytes() if file.exists() else None for file in files)
    step = StageStep(forward, backward, spec)
    measure_stage(step, np.zeros(spec.elements, np.float32), time.perf_counter, 0.0)
    return step


def _resident() -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
