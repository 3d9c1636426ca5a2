"""Print how long one run of a model takes here: `python -m har_edge.experiments.timing MODEL SECONDS`.

This runs on a device of a test bed, for long enough that its share of the processor bites. The seconds are those of
the wall clock, the mean over all runs: a quota lets some runs through at full speed and stops others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from har_edge.emulation.testbed import Testbed
from har_edge.errors import NodeError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample

_LEAST = 3


def main(path: Path, seconds: float) -> None:
    """Run the model for so long, at least three times after a first that does not count."""
    interpreter = Interpreter(path.read_bytes())
    values = sample(interpreter.inputs, np.random.default_rng(0))
    interpreter.run(values)
    runs, started = 0, time.monotonic()
    while runs < _LEAST or time.monotonic() < started + seconds:
        interpreter.run(values)
        runs += 1
    print((time.monotonic() - started) / runs)


def time_on_devices(testbed: Testbed, devices: Sequence[str], model: Path, seconds: float) -> dict[str, float]:
    """Return the seconds of one run of a model on each of these devices, all of which run it at once.

    Raises NodeError for a device on which the model does not run.
    """
    command = [sys.executable, "-m", "har_edge.experiments.timing", str(model.resolve()), str(seconds)]
    running = {device: testbed.run(device, command, stdout=subprocess.PIPE) for device in devices}
    said = {device: process.communicate()[0].split() for device, process in running.items()}
    for device, process in running.items():
        if process.returncode or not said[device]:
            raise NodeError(
                f"{model.name} does not run on {device}: exit code {process.returncode}; see its output above"
            )
    return {device: float(words[-1]) for device, words in said.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
