"""Throughput of a stage with its slice in this process and in a sandbox, in pairs that take turns.

    python bench/sandbox.py                                     the shipped models
    python bench/sandbox.py --file model.tflite                 also the time of any model, without a stage

A pair runs the same windows through both: a message in, the whole model, a result out, without a broker. The table
shows the medians over the pairs and the spread of the middle half of the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from har_edge.config.catalog import find_model
from har_edge.data.recording import Window
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.sandbox import SandboxedInterpreter, describe_sandbox
from har_edge.mqtt.bus import Delivery
from har_edge.runtime.build import build_sensor, build_setup
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.shard import make_stage

Turn = Callable[[int], None]


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["float", "int8"], help="names in models/manifest.json")
    parser.add_argument("--file", type=Path, action="append", default=[], metavar="MODEL", help="any other model")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (default: 0.5)")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, synthetic windows")
    print(describe_sandbox())
    print(f"{'model':<34}{'plain/s':>10}{'sandbox/s':>11}{'ratio':>8}{'middle half':>16}{'us more':>9}")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            report(f"stage of {name}", *stage_turns(name, Path(folder)), args.pairs, args.seconds)
    for path in args.file:
        report(path.name[:33], *model_turns(path.read_bytes()), args.pairs, args.seconds)


def stage_turns(name: str, folder: Path) -> tuple[Turn, Turn]:
    """Return what handles window number n, in this process and in a sandbox."""
    found = find_model(name)
    assert found.entry is not None
    pipeline = prepare(found.path, found.entry.task, folder, stages=1)
    sensor, rng = build_sensor(pipeline, list(pipeline.task.inputs), combine=True), np.random.default_rng(0)
    length = pipeline.task.stream.length
    samples = {source: rng.normal(0, 6, (length, pipeline.channels(source))) for source in pipeline.task.inputs}
    values = {source: array.astype(np.float32) for source, array in samples.items()}

    def turn(sandbox: bool) -> Turn:
        setup = build_setup(pipeline, 0, sandbox=sandbox)
        stage = make_stage(setup, clock=time.time, monotonic=time.monotonic)

        def run(number: int) -> None:
            (message,) = sensor.handle([Window("s", number, 0, values, None)], [float(number)])
            (result,) = stage.handle(Delivery(message.topic, message.payload, (1, number)))
            assert "/result/" in result.topic

        return run

    return turn(False), turn(True)


def model_turns(content: bytes) -> tuple[Turn, Turn]:
    """Return what runs a model, in this process and in a sandbox."""
    plain, boxed = Interpreter(content), SandboxedInterpreter(content, "the model")
    values = sample(plain.inputs, np.random.default_rng(0))
    return lambda _: plain.run(values) and None, lambda _: boxed.run(values) and None


def report(what: str, plain: Turn, boxed: Turn, pairs: int, seconds: float) -> None:
    """Let both take turns, and print the medians."""
    numbers, rates = [0, 0], []
    for pair in range(-1, pairs):  # the first one warms up
        found = {}
        for place in (0, 1) if pair % 2 else (1, 0):
            turn, before = (plain, boxed)[place], numbers[place]
            began = time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds:
                turn(numbers[place])
                numbers[place] += 1
            found[place] = (numbers[place] - before) / passed
        if pair >= 0:
            rates.append((found[0], found[1]))
    here, there = median(one for one, _ in rates), median(one for _, one in rates)
    ratios = [second / first for first, second in rates]
    low, middle, high = quantiles(ratios, n=4)
    more = median(1e6 / second - 1e6 / first for first, second in rates)
    print(f"{what:<34}{here:>10.1f}{there:>11.1f}{middle:>8.3f}{f'{low:.3f} to {high:.3f}':>16}{more:>9.0f}")


if __name__ == "__main__":
    main()
