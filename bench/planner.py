"""Seconds and gaps of the planner's search, on made-up models and devices.

    python bench/planner.py [--operators 200] [--devices 32] [--seeds 3] [--replicas 1,4]

Operators take log-normal times, tensors have log-normal sizes; each kind of device has a speed of its own (0.3 to 2), a
link (1 to 10 MB/s), and a memory limit of 10 to 40 % of the model. `gap` is how much smaller, at most, a bottleneck
that was not found could be (0: the plan is proven the best); `equal` is what slices of equal time on the devices in
order reach, as a factor of the plan's bottleneck; `-` where they do not fit the memory. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass

import numpy as np

from har_edge.planner.partition import balance
from har_edge.planner.problem import SearchProblem, StageAssignment
from har_edge.planner.search import minimize_bottleneck


@dataclass(frozen=True)
class Case:
    """A problem, and the seconds of each operator for the plan of equal times."""

    problem: SearchProblem
    work: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, default=200)
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replicas", default="1,4")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{args.operators} operators, {args.devices} devices")
    print(f"{'kinds':>5} {'replicas':>8} {'seed':>4} {'seconds':>8} {'gap':>7} {'stages':>6} {'used':>5} {'equal':>6}")
    kinds = [k for k in (1, 2, 4, 8, 16, 32) if k <= args.devices and args.devices % k == 0]
    for count in kinds:
        for replicas in map(int, args.replicas.split(",")):
            for seed in range(args.seeds):
                row(count, replicas, seed, args)


def row(kinds: int, replicas: int, seed: int, args: argparse.Namespace) -> None:
    """Solve one case and print it."""
    case = make(seed, args.operators, [args.devices // kinds] * kinds, replicas)
    started = time.process_time()
    found = minimize_bottleneck(case.problem)
    seconds = time.process_time() - started
    if found is None:
        print(f"{kinds:5} {replicas:8} {seed:4} {seconds:8.2f} no plan fits")
        return
    gap = 0.0 if found.proven else found.period_s / found.bound_s - 1
    used = sum(step.replicas for step in found.steps)
    naive = equal(case)
    factor = "-" if np.isinf(naive) else f"{naive / found.period_s:.2f}"
    print(f"{kinds:5} {replicas:8} {seed:4} {seconds:8.2f} {gap:7.2%} {len(found.steps):6} {used:5} {factor:>6}")


def make(seed: int, operators: int, counts: list[int], replicas: int) -> Case:
    """Return a case; one seed gives one model, and the same kinds of devices."""
    rng = np.random.default_rng(seed)
    work, moved = rng.lognormal(0, 1, operators) * 1e-3, rng.lognormal(8, 1, operators + 1)
    weights = np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, operators))])
    speed, link = rng.uniform(0.3, 2, len(counts)), rng.uniform(1e6, 1e7, len(counts))
    latency, limit = rng.uniform(1e-3, 5e-3, len(counts)), rng.uniform(0.1, 0.4, len(counts)) * weights[-1]
    tails, heads = np.triu_indices(operators + 1, 1)
    total = np.concatenate([[0.0], np.cumsum(work)])
    busy = (total[heads] - total[tails] + 4e-4) / speed[:, None]
    bytes_s = (moved[tails] + moved[heads]) / link[:, None]
    fits = weights[heads] - weights[tails] <= limit[:, None]
    problem = SearchProblem(
        nodes=operators + 1,
        tails=tails,
        heads=heads,
        period_s=np.where(fits, np.maximum(busy, bytes_s), np.inf),
        latency_s=np.where(fits, busy + bytes_s + 2 * latency[:, None], np.inf),
        shareable=np.ones(len(tails), np.bool_),
        counts=tuple(counts),
        replicas=replicas,
    )
    return Case(problem, work.tolist())


def equal(case: Case) -> float:
    """Return the bottleneck of slices of equal time, on the devices in order."""
    problem = case.problem
    order = [k for k, count in enumerate(problem.counts) for _ in range(count)]
    operators = len(case.work)
    places = [0, *balance(case.work, min(len(order), operators), [0] * (operators - 1)), operators]
    slowest = 0.0
    for k, start, stop in zip(order, places, places[1:], strict=False):
        edge = int(np.flatnonzero((problem.tails == start) & (problem.heads == stop))[0])
        slowest = max(
            slowest,
            problem.period_of(StageAssignment(edge, tuple(int(k == other) for other in range(len(problem.counts))))),
        )
    return slowest


if __name__ == "__main__":
    main()
