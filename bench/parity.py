"""Lose each share of every linear operator of models once, and decode it from the parity shard and the others.

    python bench/parity.py MODEL.tflite ...

2, 3, 4 and 8 even shares, and some as 1 : 2 : 3; random inputs. A line counts decoded shares by kind of operator and
type: those with all the bits of the missing one, the largest difference over the largest value of the whole operator's
sums, and that difference over the stated bound (`float_bound`). Ends with 1 where an integer differs or a bound fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.errors import CutError
from har_edge.inference.interpreter import RUNTIME, Array, Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import RegionStore
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.block import StepDraft
from har_edge.tflite.split.methods import find_refusal, share_bounds, split_block
from har_edge.tflite.split.parity import CodedSplit, float_bound
from har_edge.tflite.split.plan import Block, SplitMethod

WEIGHTS = ((1, 1), (1, 1, 1), (1,) * 4, (1,) * 8, (1, 2, 3))


@dataclass
class Decoded:
    """The decoded shares of one kind of operator."""

    shares: int = 0
    equal: int = 0
    error: float = 0.0
    of_bound: float = 0.0


def main() -> int:
    """Decode, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    args = parser.parse_args()
    table: dict[tuple[str, str], Decoded] = {}
    for path in args.models:
        model = read_model(path)
        flow = trace_dataflow(model)
        for operator in model.main.operators:
            if operator.index in flow.folded or not operator.outputs:
                continue
            if find_refusal(model, flow, operator.index, operator.index + 1, SplitMethod.OUTPUT) is None:
                dtype = model.main.tensors[operator.outputs[0]].dtype or "other"
                lose(model, flow, operator.index, table.setdefault((operator.name, dtype), Decoded()))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}, random inputs")
    print(f"{'operator':20} {'type':8} {'decoded':>8} {'equal':>8} {'error':>8} {'of bound':>9}")
    for (name, dtype), row in sorted(table.items()):
        if row.shares:
            of_bound = f"{row.of_bound:.1e}" if row.equal < row.shares else "-"
            print(f"{name:20} {dtype:8} {row.shares:8} {row.equal:8} {row.error:8.1e} {of_bound:>9}")
    wrong = [row for (_, dtype), row in table.items() if row.equal < row.shares and not dtype.startswith("float")]
    return 1 if wrong or any(row.of_bound > 1 for row in table.values()) else 0


def lose(model: Model, flow: Dataflow, index: int, row: Decoded) -> None:
    """Lose each share of an operator once, for several numbers of shares."""
    (whole,) = split_block(model, flow, Block(index, index + 1, SplitMethod.WHOLE, (0, 1))).steps(0)
    values = sample(Interpreter(bytes(whole.write())).inputs, np.random.default_rng(0))
    for weights in WEIGHTS:
        try:
            bounds = share_bounds(model, flow, index, index + 1, SplitMethod.OUTPUT, weights)
            split = CodedSplit(model, flow, Block(index, index + 1, SplitMethod.OUTPUT, bounds))
        except CutError:
            continue
        sums = [run(split.share_step(number), values) for number in range(len(split.shares))]
        parity = run(split.parity_step(), values)
        largest = max(float(np.abs(one).max()) for one in sums)
        limit = bound(split, values, sums)
        for missing, share in enumerate(sums):
            got = split.decode(missing, parity, {k: one for k, one in enumerate(sums) if k != missing})
            gap = float(np.abs(got.astype(np.float64) - share).max())
            row.shares += 1
            row.equal += got.tobytes() == share.tobytes()
            row.error = max(row.error, gap / largest)
            row.of_bound = max(row.of_bound, gap / limit)


def bound(split: CodedSplit, values: Mapping[str, Array], sums: list[Array]) -> float:
    """Return the stated bound, with the largest value and the largest weight for all of them."""
    weights = split.weights
    products = int(np.prod(weights.shape)) // weights.shape[split.view.places.filters_axis]
    largest = max(float(np.abs(one.astype(np.float64)).max()) for one in values.values())
    magnitude = products * largest * float(np.abs(weights.astype(np.float64)).max())
    results = max(float(np.abs(one.astype(np.float64)).max()) for one in sums)
    return float_bound(products, len(sums), len(sums) * (magnitude + results))


def run(step: StepDraft, values: Mapping[str, Array]) -> Array:
    """Return the sums that a step makes."""
    store = RegionStore(values)
    taken = {spec.name: value for spec in step.inputs if (value := store.get(spec)) is not None}
    return Interpreter(bytes(step.write())).run(taken)[step.outputs[0].name]


if __name__ == "__main__":
    sys.exit(main())
