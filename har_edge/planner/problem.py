"""The search problem of the planner: a path of stages through a graph, and devices for each stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEVER = 1 << 14


@dataclass(frozen=True, slots=True)
class StageAssignment:
    """One stage of a plan: its edge, and how many devices of each class run it."""

    edge: int
    devices: tuple[int, ...]

    @property
    def replicas(self) -> int:
        return sum(self.devices)


@dataclass(frozen=True, slots=True, eq=False)
class SearchProblem:
    """Stages to choose from, and devices to run them.

    Node 0 is the start and the last node the end. `tails` and `heads` hold the two ends of each edge, sorted by tail,
    every head above its tail. `period_s` and `latency_s`, float64 [classes, edges], are the shortest time between two
    windows and the time of one window on such a device; inf where it cannot run the stage. `counts` is the number of
    devices of each class. A `shareable` edge may have up to `replicas` devices: r of them take turns and need the r-th
    part of the slowest one's period. A plan has `least` to `most` devices. `shared_s`, float64 [edges], is what each
    edge takes of a resource that all stages of a plan share; their sum limits the plan as a stage does.
    """

    nodes: int
    tails: Ints
    heads: Ints
    period_s: Floats
    latency_s: Floats
    shareable: NDArray[np.bool_]
    counts: tuple[int, ...]
    replicas: int = 1
    least: int = 1
    most: int = NEVER
    shared_s: Floats | None = None

    def period_of(self, step: StageAssignment) -> float:
        """Return the seconds between two windows that a stage can keep up."""
        used = [k for k, count in enumerate(step.devices) if count]
        return float(self.period_s[used, step.edge].max()) / step.replicas

    def latency_of(self, step: StageAssignment) -> float:
        """Return the seconds that one window takes, on the slowest replica."""
        used = [k for k, count in enumerate(step.devices) if count]
        return float(self.latency_s[used, step.edge].max())


@dataclass(frozen=True, slots=True, eq=False)
class FeasibleEdges:
    """The edges of a problem that can keep to a bottleneck, and their costs.

    `need[k, j]` is the smallest number of replicas with which a device of class k keeps to the bottleneck on edge
    `edges[j]`, NEVER where none does. `first[v]` to `first[v + 1]` are the edges that leave node v. `latency_s` is zero
    where latency does not count, and inf where the need is NEVER.
    """

    problem: SearchProblem
    edges: Ints
    heads: Ints
    first: list[int]
    need: NDArray[np.int16]
    shareable: NDArray[np.bool_]
    latency_s: Floats
    devices: int

    def only(self, kept: NDArray[np.bool_]) -> FeasibleEdges:
        """Return the edges that are kept; `kept` is bool [classes, edges]."""
        columns = np.flatnonzero(kept.any(axis=0))
        kept, edges = kept[:, columns], self.edges[columns]
        return FeasibleEdges(
            problem=self.problem,
            edges=edges,
            heads=self.heads[columns],
            first=np.searchsorted(self.problem.tails[edges], np.arange(self.problem.nodes + 1)).tolist(),
            need=np.where(kept, self.need[:, columns], NEVER).astype(np.int16),
            shareable=self.shareable[columns],
            latency_s=np.where(kept, self.latency_s[:, columns], np.inf),
            devices=self.devices,
        )


def feasible_edges(problem: SearchProblem, bottleneck_s: float, *, timed: bool) -> FeasibleEdges:
    """Return the edges that can keep to a bottleneck; `timed` says that latency counts."""
    need = _need(problem, bottleneck_s)
    edges = np.flatnonzero((need < NEVER).any(axis=0))
    need = need[:, edges]
    latency = problem.latency_s[:, edges] if timed else np.zeros(need.shape)
    return FeasibleEdges(
        problem=problem,
        edges=edges,
        heads=problem.heads[edges],
        first=np.searchsorted(problem.tails[edges], np.arange(problem.nodes + 1)).tolist(),
        need=need,
        shareable=problem.shareable[edges] & (problem.replicas > 1),
        latency_s=np.where(need < NEVER, latency, np.inf),
        devices=min(sum(problem.counts), problem.most),
    )


def _need(problem: SearchProblem, bottleneck_s: float) -> NDArray[np.int16]:
    """Return the smallest r with period / r <= bottleneck, in the same floating-point operations as everywhere else."""
    period = problem.period_s
    cap = np.where(problem.shareable, min(problem.replicas, sum(problem.counts), problem.most), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rough = np.where(np.isfinite(period), np.ceil(period / bottleneck_s), np.inf)
        need = np.clip(rough, 1, NEVER)
        need = np.where((need > 1) & (period / (need - 1) <= bottleneck_s), need - 1, need)
        need = np.where(period / need <= bottleneck_s, need, need + 1)
    need = np.where(np.isfinite(period) & (need <= cap), need, NEVER)
    return need.astype(np.int16)
