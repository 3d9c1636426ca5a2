"""Time of a window in the whole models, float32 and int8, at several batch sizes, one thread.

    python bench/speed.py                                          the shipped models
    python bench/speed.py models/har-int8.tflite other.tflite      any models, the first is what the others stand beside

Models and batch sizes take turns; the table shows medians over all rounds, and the spread of the middle half. What is
timed is what a stage calls: inputs copied in, all operators, outputs copied out.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import numpy as np

from har_edge.config.catalog import find_model
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample

SHIPPED = ("float", "int8")


@dataclass(frozen=True, slots=True)
class Row:
    """What one model took at one batch size, in microseconds a window."""

    model: str
    batch: int
    quarter_us: float
    median_us: float
    three_quarters_us: float


def main() -> None:
    """Print a row for each model and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SHIPPED, help="names in models/manifest.json, or files")
    parser.add_argument("--batches", default="1,32", metavar="LIST")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--windows", type=int, default=3200, help="windows of each turn (default: 3200)")
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    paths = {name: Path(name) if name.endswith(".tflite") else find_model(name).path for name in args.models}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'model':<28}{'bytes':>9}{'batch':>7}{'us a window':>13}{'middle half':>18}{'of the first':>14}")
    first: dict[int, float] = {}
    for row in measure(paths, batches, args.rounds, args.windows):
        base = first.setdefault(row.batch, row.median_us)
        spread = f"{row.quarter_us:.1f} to {row.three_quarters_us:.1f}"
        size = paths[row.model].stat().st_size
        print(f"{row.model:<28}{size:>9}{row.batch:>7}{row.median_us:>13.1f}{spread:>18}{row.median_us / base:>14.2f}")


def measure(paths: dict[str, Path], batches: list[int], rounds: int, windows: int) -> Iterator[Row]:
    """Run every model at every batch size in turns; yield medians and quartiles over the rounds."""
    rng = np.random.default_rng(0)
    turns = {}
    for name, path in paths.items():
        for batch in batches:
            # One interpreter for each batch size: changing it would make the runtime allocate anew.
            interpreter = Interpreter(path)
            turns[name, batch] = (interpreter, sample(interpreter.inputs, rng, batch=batch))
    taken: dict[tuple[str, int], list[float]] = {turn: [] for turn in turns}
    for number in range(rounds + 1):
        for (name, batch), (interpreter, values) in turns.items():
            runs = max(windows // batch, 1)
            started = time.perf_counter()
            for _ in range(runs):
                interpreter.run(values)
            if number:  # the first round warms up
                taken[name, batch].append((time.perf_counter() - started) / (runs * batch) * 1e6)
    for (name, batch), values_us in taken.items():
        yield Row(name, batch, *quantiles(values_us, n=4))


if __name__ == "__main__":
    main()
