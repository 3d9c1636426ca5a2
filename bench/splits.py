"""Split every operator of models by every method, and compare the shards with the whole operator.

    python bench/splits.py MODEL.tflite ...           # 2 to 8 even shares, and shares as 1 : 2 : 3 and 5 : 1
    python bench/splits.py --shards 2,4 MODEL.tflite  # fewer

An operator runs alone on random inputs: integers of the whole range of their type, floats of a normal distribution. The
table counts splits by kind of operator, type and method: those whose bits are all equal, the largest difference over
the largest value of the tensor, and the operators that a method refuses. Ends with 1 where an integer differs, or a
float by more than 1e-5.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from har_edge.errors import CutError, MessageError, ModelError
from har_edge.inference.interpreter import RUNTIME, Delegate, Interpreter
from har_edge.inference.sampling import sample
from har_edge.inference.split_check import compare, run_split
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.split.methods import find_refusal, share_bounds, share_extent, split_block
from har_edge.tflite.split.plan import Block, SplitMethod

METHODS = (SplitMethod.ROWS, SplitMethod.OUTPUT, SplitMethod.INPUT, SplitMethod.HEADS)
UNEVEN = ((1, 2, 3), (5, 1))
FLOAT_BOUND = 1e-5


class Counted(msgspec.Struct):
    """The splits of one kind of operator by one method."""

    operator: str
    dtype: str
    method: str

    splits: int = 0
    equal: int = 0
    error: float = 0.0
    operators: int = 0
    refused: int = 0
    unaligned: int = 0  # shares that a method takes in other proportions only
    wrong: list[str] = []


def main() -> int:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    parser.add_argument("--shards", default="2,3,4,5,6,7,8", metavar="N[,M..]", help="numbers of even shares")
    parser.add_argument("--counts", type=Path, metavar="FILE", help="add to the counts of earlier runs in this file")
    parser.add_argument("--delegate", choices=[one.value for one in Delegate], default="xnnpack")
    args = parser.parse_args()
    delegate = Delegate(args.delegate)
    numbers = [int(number) for number in args.shards.split(",")]
    weights = [(1,) * number for number in numbers] + list(UNEVEN)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}, {delegate.value}, random inputs")
    table: dict[tuple[str, str, str], Counted] = {}
    if args.counts and args.counts.exists():
        rows = msgspec.json.decode(args.counts.read_bytes(), type=list[Counted])
        table |= {(row.operator, row.dtype, row.method): row for row in rows}
    for path in args.models:
        started, before = time.perf_counter(), sum(row.splits for row in table.values())
        model = read_model(path)
        try_model(model, weights, table, delegate)
        made = sum(row.splits for row in table.values()) - before
        print(f"{path.name}: {made} splits in {time.perf_counter() - started:.0f} s", flush=True)
        if args.counts:
            args.counts.write_bytes(msgspec.json.encode(list(table.values())))
    show(table)
    wrong = [line for row in table.values() for line in row.wrong]
    print(*wrong[:20], sep="\n")
    return 1 if wrong else 0


def try_model(
    model: Model, weights: Sequence[Sequence[int]], table: dict[tuple[str, str, str], Counted], delegate: Delegate
) -> None:
    """Split each operator of a model that does not only unpack constants."""
    flow, rng = trace_dataflow(model), np.random.default_rng(0)
    for operator in model.main.operators:
        if operator.index in flow.folded or not operator.outputs:
            continue
        dtype = model.main.tensors[operator.outputs[0]].dtype or "other"
        for method in METHODS:
            row = table.setdefault((operator.name, dtype, method.value), Counted(operator.name, dtype, method.value))
            row.operators += 1
            if find_refusal(model, flow, operator.index, operator.index + 1, method) is not None:
                row.refused += 1
                continue
            for equal, error, said in try_operator(model, flow, operator.index, method, weights, rng, row, delegate):
                row.splits += 1
                row.equal += equal
                row.error = max(row.error, error)
                if not equal and (error > FLOAT_BOUND or not dtype.startswith("float")):
                    where = f"{model.name}: operator {operator.index} ({operator.name})"
                    row.wrong.append(f"{where} {said}: {error:.3g}")


def try_operator(
    model: Model,
    flow: Dataflow,
    index: int,
    method: SplitMethod,
    weights: Sequence[Sequence[int]],
    rng: np.random.Generator,
    row: Counted,
    delegate: Delegate,
) -> Iterator[tuple[bool, float, str]]:
    """Yield for each split whether all bits are equal, the largest difference, and what was split."""
    (step,) = split_block(model, flow, Block(index, index + 1, SplitMethod.WHOLE, (0, 1))).steps(0)
    whole = Interpreter(bytes(step.write()), delegate=delegate)
    values = sample(whole.inputs, rng)
    try:
        results = whole.run(values)
    except MessageError:  # an operator that random values do not suit
        return
    wanted = [(spec, results[spec.name]) for spec in step.outputs]
    extent = share_extent(model, flow, index, index + 1, method)
    for shares in weights:
        if len(shares) > extent:
            continue
        bounds = share_bounds(model, flow, index, index + 1, method, shares)
        try:
            split = split_block(model, flow, Block(index, index + 1, method, bounds))
        except CutError:
            row.unaligned += 1
            continue
        said = f"{method.value} {list(bounds)}"
        try:
            found = compare(wanted, run_split(split, values, delegate=delegate))
        except (MessageError, ModelError) as error:
            yield False, float("inf"), f"{said}: {error}"
            continue
        yield found.equal, found.error, said


def show(table: dict[tuple[str, str, str], Counted]) -> None:
    """Print the table, and the sums by method."""
    print(f"{'operator':27} {'type':8} {'method':7} {'splits':>6} {'equal':>6} {'error':>8} {'refused':>9}")
    sums: dict[str, Counter[str]] = {}
    for (name, dtype, method), row in sorted(table.items()):
        total = sums.setdefault(method, Counter())
        total.update(splits=row.splits, equal=row.equal, unaligned=row.unaligned, refused=row.refused)
        if row.splits or row.unaligned:
            error = "0" if row.equal == row.splits else f"{row.error:.1e}"
            refused = f"{row.refused} of {row.operators}"
            print(f"{name[:27]:27} {dtype:8} {method:7} {row.splits:6} {row.equal:6} {error:>8} {refused:>9}")
    for method, total in sums.items():
        print(
            f"{method}: {total['equal']} of {total['splits']} splits equal to the bit, {total['refused']} operators "
            f"refused, {total['unaligned']} shares in other proportions only"
        )


if __name__ == "__main__":
    sys.exit(main())
