"""Bytes that workers send, and what is lost by sending fewer: LeNet-5 on MNIST, data parallel, all in one process.

    HAR_EDGE_DATA=... python bench/compression.py --methods none topk:0.01 --epochs 10 --seeds 3 --keep runs.jsonl

Every step, each worker computes the gradients of a batch of its own, as `har-edge train --on-devices` does with
synchronous SGD; they are compressed, decoded, added, and the optimizer steps. Samples are drawn anew in each epoch. A
seed gives weights and order, the same for each method. A line counts the bytes a worker sends in an epoch, without
headers of messages, and has the accuracy on the test samples after the first and the last epoch: mean over seeds,
standard error, and the difference to the first method. `--keep` holds finished runs, so that a stopped one goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from har_edge.data.mnist import find_mnist
from har_edge.inference.interpreter import RUNTIME
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.dataset_files import LabelledData, read_data
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.updates.compression import decode, make_compressor
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.training_graph import write_training_graph
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import read_model

# Samples a step of the evaluation.
EVALUATED = 500


class Run(msgspec.Struct, frozen=True):
    """One training: what was asked, bytes a worker sent in an epoch, and the accuracy after each epoch."""

    method: str
    seed: int
    setting: str
    sent: float
    accuracy: list[float]


class Network:
    """LeNet-5 with its training graph for one batch size."""

    def __init__(self, batch: int, seed: int) -> None:
        model = read_model(bytes(write_lenet5(seed=seed)))
        graph = write_training_graph(model, batch=batch, loss=Loss.CROSS_ENTROPY)
        self.spec, self.step = graph.spec, TrainingStep(graph.data, graph.spec)
        self.start = flatten(read_weights(model), self.spec.weights)

    def run(self, weights: Vector, samples: Dataset, chosen: np.ndarray) -> tuple[Vector, int]:
        """Return the sum of gradients, and how many answers were right."""
        arrays = unflatten(weights, self.spec.weights)
        result = self.step.run(arrays, samples.values(chosen), samples.one_hot(chosen))
        right = np.count_nonzero(result.predictions.argmax(axis=1) == samples.y[chosen])
        return flatten(result.gradients, self.spec.weights), int(right)


def main() -> int:
    """Train, and print a line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=find_mnist(), metavar="PATH")
    parser.add_argument("--methods", nargs="+", default=["none", "float16", "int8", "topk:0.01"], metavar="METHOD")
    parser.add_argument("--epochs", type=int, default=1, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="samples of a worker in a step")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON lines of finished runs")
    parser.add_argument("--optimizer", default="momentum:lr=0.05", metavar="TEXT")
    args = parser.parse_args()
    if args.data is None:
        parser.error("no MNIST here: har-edge data fetch mnist")
    data = read_data(args.data)
    data = LabelledData(data.train.reshaped((28, 28, 1)), data.test.reshaped((28, 28, 1)), data.how)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {RUNTIME}; {data.train.origin}")
    setting = f"{args.workers} workers of batch {args.batch}, {args.optimizer}, {args.epochs} epochs"
    print(f"{setting}, {args.seeds} seeds", flush=True)
    runs = [run for run in read_runs(args.keep) if run.setting == setting]
    for seed in range(args.seeds):
        for method in args.methods:
            if not any((run.method, run.seed) == (method, seed) for run in runs):
                begun = time.monotonic()
                runs.append(train(method, seed, data, args, setting))
                keep_run(args.keep, runs[-1])
                print(
                    f"  seed {seed} {method}: {runs[-1].accuracy[-1]:.4f}, {time.monotonic() - begun:.0f} s", flush=True
                )
    show({method: [run for run in runs if run.method == method and run.seed < args.seeds] for method in args.methods})
    return 0


def read_runs(path: Path | None) -> list[Run]:
    """Return the finished runs in a file."""
    if path is None or not path.exists():
        return []
    return [msgspec.json.decode(line, type=Run) for line in path.read_bytes().splitlines()]


def keep_run(path: Path | None, run: Run) -> None:
    """Add a run to a file."""
    if path is not None:
        with path.open("ab") as file:
            file.write(msgspec.json.encode(run) + b"\n")


def train(method: str, seed: int, data: LabelledData, args: argparse.Namespace, setting: str) -> Run:
    """Train once."""
    network, test = Network(args.batch, seed), Network(EVALUATED, seed)
    weights, size = network.start.copy(), network.start.size
    optimizer, random = make_optimizer(args.optimizer, size), np.random.default_rng(seed)
    workers = [make_compressor(method, size) for _ in range(args.workers)]
    together, sent, reached = args.workers * args.batch, 0, []
    for _ in range(args.epochs):
        order = random.permutation(len(data.train))
        for start in range(0, len(order), together):
            chosen, total = order[start : start + together], np.zeros(size, np.float32)
            for worker, own in zip(workers, np.array_split(chosen, args.workers), strict=True):
                packed = worker.encode(network.run(weights, data.train, own)[0])
                total += decode(packed, size)
                sent += len(packed.data)
            optimizer.step(weights, total / np.float32(len(chosen)))
        reached.append(accuracy(test, weights, data.test))
    return Run(method, seed, setting, sent / args.workers / args.epochs, reached)


def accuracy(network: Network, weights: Vector, samples: Dataset) -> float:
    """Return the share of right answers."""
    parts = [np.arange(start, min(start + EVALUATED, len(samples))) for start in range(0, len(samples), EVALUATED)]
    return sum(network.run(weights, samples, part)[1] for part in parts) / len(samples)


def show(table: dict[str, list[Run]]) -> None:
    """Print a line a method."""
    dense = next(iter(table.values()))
    epochs = f"after {len(dense[0].accuracy)}"
    print(f"{'method':10} {'bytes an epoch':>14} {'of first':>9} {'after 1':>16} {epochs:>16} {'lost, points':>13}")
    for method, runs in table.items():
        sent, most = (float(np.mean([run.sent for run in some])) for some in (runs, dense))
        lost = [100 * (own.accuracy[-1] - run.accuracy[-1]) for own, run in zip(dense, runs, strict=True)]
        print(
            f"{method:10} {sent:14,.0f} {f'1/{most / sent:.1f}':>9} {spread([run.accuracy[0] for run in runs], 4):>16} "
            f"{spread([run.accuracy[-1] for run in runs], 4):>16} {spread(lost, 2):>13}"
        )


def spread(values: list[float], digits: int) -> str:
    """Return mean and standard error."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.{digits}f} +- {error:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
