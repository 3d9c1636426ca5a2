"""One training step on one thread: har_edge, TensorFlow's graph mode and NumPy, in turn, each in a process of its own.

    python bench/training_step.py [--batch 32] [--rounds 15]

Weights are random and samples synthetic. Prints the median milliseconds of a step with the least and the largest of the
rounds, the ratio to TensorFlow in the same round, the memory that the process holds, and how far the gradients are
from TensorFlow's, of the largest of each tensor. Needs the extra `training`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 20
SIDES = ("har_edge", "tensorflow", "numpy")
# One thread for every library that a process may load.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
    "1",
)


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.folder)
        return
    from bench.training_networks import NETWORKS
    from har_edge.inference.wheels import installed

    print(f"runtime {installed()}, batch {args.batch}, {args.rounds} rounds of {STEPS} steps, one thread,")
    print("random weights, synthetic samples")
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, args.batch, Path(folder))
            measure(name, args.rounds, Path(folder))


def prepare(name: str, batch: int, folder: Path) -> None:
    """Write the training graph, its description, the weights and the samples."""
    from bench.training_networks import write_network
    from har_edge.tflite.gradient.losses import Loss
    from har_edge.tflite.gradient.training_graph import write_training_graph
    from har_edge.tflite.gradient.weights import read_weights
    from har_edge.tflite.model import read_model

    model = read_model(bytes(write_network(name)))
    graph = write_training_graph(model, batch=batch, loss=Loss.CROSS_ENTROPY)
    (folder / "name").write_text(name)
    (folder / "graph.tflite").write_bytes(graph.data)
    (folder / "spec.json").write_bytes(graph.spec.encode())
    np.savez(folder / "weights.npz", **read_weights(model))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 28, 28, 1)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x, y=np.eye(10, dtype=np.float32)[rng.integers(0, 10, batch)])


def measure(name: str, rounds: int, folder: Path) -> None:
    """Print the figures of one network."""
    command = [sys.executable, "-m", "bench.training_step", "--folder", str(folder), "--side"]
    environment = {**os.environ, **ONE_THREAD, "TF_CPP_MIN_LOG_LEVEL": "3"}
    children = {
        side: subprocess.Popen(
            [*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for side in SIDES
    }
    try:
        for child in children.values():
            ask(child)  # warms up
        taken: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, child in children.items():
                taken[side].append(ask(child)["ms"])
        memory = {side: ask(child)["mb"] for side, child in children.items()}
    finally:
        for child in children.values():
            if child.stdin:
                child.stdin.close()
            child.wait()
    weights = np.load(folder / "weights.npz")
    print(f"\n{name}: {sum(weights[key].size for key in weights.files):,} parameters")
    for side in SIDES:
        ratios = [own / other for own, other in zip(taken[side], taken["tensorflow"], strict=True)]
        print(
            f"  {side:10} {statistics.median(taken[side]):7.2f} ms ({min(taken[side]):.2f} to {max(taken[side]):.2f}), "
            f"{statistics.median(ratios):.2f} of TensorFlow, {memory[side]:.0f} MB"
        )
    wanted = np.load(folder / "tensorflow.npz")
    for side in ("har_edge", "numpy"):
        found = np.load(folder / f"{side}.npz")
        off = max(np.abs(found[key] - wanted[key]).max() / np.abs(wanted[key]).max() for key in wanted.files)
        print(f"  {side:10} at most {off:.1e} from TensorFlow's loss, softmax and gradients")


def ask(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a process answers to one round."""
    assert child.stdin and child.stdout
    child.stdin.write("round\n")
    child.stdin.flush()
    answer: dict[str, Any] = json.loads(child.stdout.readline())
    return answer


def serve(side: str, folder: Path) -> None:
    """Run STEPS steps for each line that comes, and print how long one took."""
    weights = dict(np.load(folder / "weights.npz"))
    samples = np.load(folder / "samples.npz")
    x, y = samples["x"], samples["y"]
    step = make_step(side, folder, weights)
    found = step(x, y)
    np.savez(folder / f"{side}.npz", *found)
    for _ in sys.stdin:
        before = time.perf_counter()
        for _ in range(STEPS):
            step(x, y)
        taken = (time.perf_counter() - before) / STEPS * 1000
        print(json.dumps({"ms": taken, "mb": resident()}), flush=True)


def make_step(side: str, folder: Path, weights: dict[str, np.ndarray]) -> Any:
    """Return a function of x and y that gives loss, softmax and the gradients."""
    if side == "har_edge":
        from har_edge.inference.training_step import TrainingStep
        from har_edge.tflite.gradient.spec import decode_spec

        spec = decode_spec((folder / "spec.json").read_bytes())
        own = TrainingStep((folder / "graph.tflite").read_bytes(), spec)

        def step(x: np.ndarray, y: np.ndarray) -> list[Any]:
            result = own.run(weights, x, y)
            return [result.loss_sum, result.predictions, *result.gradients.values()]

        return step
    from bench.training_networks import numpy_step, tensorflow_step

    name = (folder / "name").read_text()
    return tensorflow_step(name, weights) if side == "tensorflow" else numpy_step(name, weights)


def resident() -> float:
    """Return the most memory that this process has held, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
