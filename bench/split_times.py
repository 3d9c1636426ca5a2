"""Time the shards of operators against the whole operator: two even shares by each method.

    python bench/split_times.py MODEL.tflite ...

For each operator of at least --macs multiply-adds and each method, the whole and both shards run in turns, --repeats
times. A line gives, by kind of operator and type, the median over the operators of the slower shard's time over the
time of the whole: 0.5 would be ideal, and above 1 the split is slower than one device. `input` counts both of its
steps. Messages are not timed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from har_edge.inference.interpreter import RUNTIME, Array, Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import RegionStore, run_split
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.block import BlockSplit, StepDraft
from har_edge.tflite.split.methods import find_refusal, share_bounds, split_block
from har_edge.tflite.split.plan import Block, SplitMethod

METHODS = (SplitMethod.ROWS, SplitMethod.OUTPUT, SplitMethod.INPUT, SplitMethod.HEADS)


def main() -> int:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--macs", type=float, default=5e6, metavar="N", help="the smallest operators (default: 5e6)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}, two shards, medians of {args.repeats} turns")
    found: dict[tuple[str, str, str], list[float]] = {}
    for path in args.models:
        model = read_model(path)
        flow = trace_dataflow(model)
        for operator in model.main.operators:
            if operator.index in flow.folded or not operator.outputs:
                continue
            whole = block(model, flow, operator.index, SplitMethod.WHOLE, (0, 1))
            (step,) = whole.steps(0)
            if step.macs < args.macs:
                continue
            dtype = model.main.tensors[operator.outputs[0]].dtype or "other"
            for method in METHODS:
                if find_refusal(model, flow, operator.index, operator.index + 1, method) is None:
                    ratio = time_method(model, flow, operator.index, method, step, args.repeats)
                    found.setdefault((operator.name, dtype, method.value), []).append(ratio)
    print(f"{'operator':27} {'type':8} {'method':7} {'operators':>9} {'median':>7} {'lowest':>7} {'highest':>8}")
    for (name, dtype, kind), ratios in sorted(found.items()):
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{name[:27]:27} {dtype:8} {kind:7} {len(ratios):9} {middle:7.2f} {low:7.2f} {high:8.2f}")
    return 0


def block(model: Model, flow: Dataflow, index: int, method: SplitMethod, bounds: tuple[int, ...]) -> BlockSplit:
    """Return the split of one operator."""
    return split_block(model, flow, Block(index, index + 1, method, bounds))


def time_method(model: Model, flow: Dataflow, index: int, method: SplitMethod, whole: StepDraft, repeats: int) -> float:
    """Return the time of the slower shard over that of the whole."""
    interpreter = Interpreter(bytes(whole.write()))
    values = sample(interpreter.inputs, np.random.default_rng(0))
    split = block(model, flow, index, method, share_bounds(model, flow, index, index + 1, method, (1, 1)))
    store = run_split(split, values)  # the second step of a shard takes what all first steps make
    runs: list[list[Callable[[], Mapping[str, Array]]]] = [[bind(interpreter, values)]]
    for shard in range(2):
        runs.append([load(step, store) for step in split.steps(shard)])
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for steps, own in zip(runs, times, strict=True):
            started = time.perf_counter()
            for step in steps:
                step()
            own.append(time.perf_counter() - started)
    own = [statistics.median(one) for one in times]
    return max(own[1:]) / own[0]


def load(step: StepDraft, store: RegionStore) -> Callable[[], Mapping[str, Array]]:
    """Return a run of a step on its regions, after one run to warm up."""
    taken = {spec.name: value for spec in step.inputs if (value := store.get(spec)) is not None}
    return bind(Interpreter(bytes(step.write())), taken)


def bind(interpreter: Interpreter, values: Mapping[str, Array]) -> Callable[[], Mapping[str, Array]]:
    interpreter.run(values)
    return lambda: interpreter.run(values)


if __name__ == "__main__":
    sys.exit(main())
