"""What XNNPACK saves: the time of a model without it over the time with it, in turn in one process.

    python bench/delegates.py [MODEL.tflite ...]      # by default the shipped models

Prints the median of the ratios, and the least and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.wheels import installed
from har_edge.resources import find_folder

SHIPPED = ("har-float", "har-int8", "har-decimate-q8-zlib-restore", "har-bottleneck")
ROUNDS, RUNS, SEED = 15, 20, 0


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    paths = parser.parse_args().models or [find_folder("models") / f"{name}.tflite" for name in SHIPPED]
    print(f"runtime {installed()}, {ROUNDS} rounds of {RUNS} runs, synthetic inputs")
    for path in paths:
        models = {delegate: Interpreter(path, delegate=delegate) for delegate in Delegate}
        values = sample(models[Delegate.NONE].inputs, np.random.default_rng(SEED))
        for model in models.values():
            model.run(values)
        ratios = []
        for _ in range(ROUNDS):
            taken = {delegate: time_runs(model, values) for delegate, model in models.items()}
            ratios.append(taken[Delegate.NONE] / taken[Delegate.XNNPACK])
        middle = statistics.median(ratios)
        print(f"{path.stem}: {middle:.2f} times as long without XNNPACK ({min(ratios):.2f} to {max(ratios):.2f})")


def time_runs(model: Interpreter, values: dict[str, np.ndarray]) -> float:
    """Return the seconds of RUNS runs."""
    before = time.perf_counter()
    for _ in range(RUNS):
        model.run(values)
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
