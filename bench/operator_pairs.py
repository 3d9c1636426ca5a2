"""Find pairs of operators that the runtime makes one of, and that have other bits apart: a cut between them is refused.

    python bench/operator_pairs.py                   # every pair of kinds, three shapes, 30 inputs each
    python bench/operator_pairs.py --write DIR       # write SQUARE, MEAN and both for some widths, for another machine
    python bench/operator_pairs.py --read DIR        # run them there; needs nothing but the runtime and NumPy

float32, one thread, the runtime's defaults. har_edge/tflite/cuts.py keeps what differs together.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = (16, 32, 64, 128)
SHAPES = ([1, 128], [1, 9, 37], [1, 4, 5, 24])
RUNS = 30
REDUCTIONS = {"MEAN": -1, "SUM": -1, "REDUCE_MAX": -1, "MEAN over places": 1, "SUM over places": 1}
UNARY = (
    *("SQUARE", "EXP", "ABS", "NEG", "SQRT", "RSQRT", "TANH", "LOGISTIC", "SOFTMAX", "RELU", "LOG", "GELU"),
    "HARD_SWISH",
)
BINARY = ("MUL", "ADD", "SUB", "DIV", "SQUARED_DIFFERENCE")
KINDS = (*REDUCTIONS, *UNARY, *(f"{name} constant" for name in BINARY), "MUL itself", "ADD input", "FULLY_CONNECTED")


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="DIR")
    parser.add_argument("--read", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.read:
        return read(args.read)
    if args.write:
        return write(args.write)
    tried = 0
    for shape, first, second in itertools.product(SHAPES, KINDS, KINDS):
        places = any(kind.endswith("places") for kind in (first, second))
        if (places and len(shape) < 3) or (second == "ADD input" and first in (*REDUCTIONS, "FULLY_CONNECTED")):
            continue
        tried += 1
        unequal = compare(*pieces(shape, first, second), shape, RUNS)
        if unequal:
            print(f"{shape}: {first}, {second}: {unequal} of {RUNS} inputs have other bits apart", flush=True)
    print(f"{tried} pairs on {platform.machine()}")
    return 0


def pieces(shape: Sequence[int], *kinds: str) -> tuple[bytes, bytes, bytes]:
    """Return a model of two operators, and each of them as a model."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from har_edge.tflite import slices
    from har_edge.tflite.model import read_model
    from tests.tflite.models import Draft

    draft = Draft()
    graph = draft.graph()
    x, sizes = graph.input(list(shape), "x"), list(shape)
    for kind in kinds:
        x, sizes = add(graph, kind, x, sizes)
    graph.output(x)
    model = read_model(draft.build())
    slices.slice_refusal, slices.check_cuts = lambda *_: None, lambda graph, flow, cuts: list(cuts)  # type: ignore
    first, second = slices.slice_model(model, [1])
    return bytes(model.data), bytes(slices.write_slice(model, first)), bytes(slices.write_slice(model, second))


def add(graph: Any, kind: str, x: int, sizes: list[int]) -> tuple[int, list[int]]:
    """Add an operator; return its result and that one's shape."""
    from tests.tflite.models import tflite

    rng = np.random.default_rng(len(kind))
    name = kind.split()[0]
    if kind in REDUCTIONS:
        axis = REDUCTIONS[kind] % len(sizes)
        sizes = [1 if place == axis else size for place, size in enumerate(sizes)]
        options, result = tflite.ReducerOptionsT(), graph.tensor(sizes)
        options.keepDims = True
        graph.op(name, [x, graph.const(np.array([axis], np.int32))], [result], options)
        return result, sizes
    if name == "FULLY_CONNECTED":
        options, weights = tflite.FullyConnectedOptionsT(), rng.standard_normal((24, sizes[-1])).astype(np.float32)
        options.keepNumDims = True
        sizes = [*sizes[:-1], 24]
        result = graph.tensor(sizes)
        graph.op(name, [x, graph.const(weights), graph.const(np.ones(24, np.float32))], [result], options)
        return result, sizes
    result = graph.tensor(sizes)
    make = getattr(tflite, "".join(part.capitalize() for part in name.split("_")) + "OptionsT", None)
    options = make() if make else None
    if name == "SOFTMAX":
        options.beta = 1.0
    other = {"constant": lambda: graph.const(rng.standard_normal(sizes).astype(np.float32)), "itself": lambda: x}
    second = other.get(kind.split()[-1], lambda: 0)
    graph.op(name, [x] if name in UNARY else [x, second()], [result], options)
    return result, sizes


def compare(whole: bytes, first: bytes, second: bytes, shape: Sequence[int], runs: int) -> int:
    """Return for how many inputs the two apart give other bits than both together."""
    together, *apart = map(load, (whole, first, second))
    rng, unequal = np.random.default_rng(1), 0
    for _ in range(runs):
        x = np.abs(rng.standard_normal(shape)).astype(np.float32) + np.float32(0.1)
        y = apart[0]([x])
        unequal += together([x]).tobytes() != apart[1]([y, x]).tobytes()
    return unequal


def load(content: bytes) -> Callable[[Sequence[Any]], Any]:
    """Return what runs a model on as many of the given inputs as it takes."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter
    runtime = Interpreter(model_content=content, num_threads=1)
    runtime.allocate_tensors()
    feeds, fetch = runtime.get_input_details(), runtime.get_output_details()[0]["index"]

    def run(values: Sequence[Any]) -> Any:
        ordered = values if len(feeds) == 1 or feeds[0]["name"] != "x" else values[::-1]
        for feed, value in zip(feeds, ordered, strict=False):
            runtime.set_tensor(feed["index"], value)
        runtime.invoke()
        return runtime.get_tensor(fetch)

    return run


def write(folder: Path) -> int:
    """Write the models that another machine is to run."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        for name, content in zip(("both", "square", "mean"), pieces([1, width], "SQUARE", "MEAN"), strict=True):
            (folder / f"{width}-{name}.tflite").write_bytes(content)
    return 0


def read(folder: Path) -> int:
    """Run them."""
    for width in WIDTHS:
        models = [(folder / f"{width}-{name}.tflite").read_bytes() for name in ("both", "square", "mean")]
        unequal = compare(models[0], models[1], models[2], [1, width], 200)
        print(f"{platform.machine()}: the mean of {width} squares: {unequal} of 200 inputs have other bits apart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
