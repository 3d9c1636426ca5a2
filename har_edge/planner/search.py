"""Find the best path of stages through a model, and the devices that run each stage.

The search decides from two sides whether a plan keeps to a bottleneck. Dual prices of the devices (dual_prices.py) give
a lower bound: if the cheapest path costs more than all devices together, no plan exists. Otherwise a dynamic program
over the counts of devices that are left (beam_dp.py) looks for a plan and skips what the prices rule out.

Both are exact. A gap between the plan and the bound stays open only where a node has more states than are kept; the
solution then reports the gap. With devices of any speed the problem is NP-hard (Pinar, Tabak, Aykanat,
"One-dimensional partitioning for heterogeneous systems", J. Parallel Distrib. Comput. 68, 2008), so some limit is
needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from har_edge.errors import InputError
from har_edge.planner.beam_dp import BeamSearch
from har_edge.planner.dual_prices import DualPrices, price_devices, price_latency, trim
from har_edge.planner.problem import FeasibleEdges, Floats, SearchProblem, StageAssignment, feasible_edges

WIDTH = 48  # states kept for each place to cut
_FEW = 4
_PROOFS = 8
_SHARED = 24  # bottlenecks to try where stages share a resource
_SAME = 1e-12  # sums in another order differ by so much
_NEAR = 1e-3  # without a proof, a plan this near to the bound ends the search


class SearchLimit(InputError):
    """The search kept too few states to find a plan, which does not prove that there is none."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The stages of the best plan that was found, and a bound for all plans.

    `bound_s` is a proven lower bound of the objective; `proven` says that the plan meets it.
    """

    steps: tuple[StageAssignment, ...]
    period_s: float
    latency_s: float
    bound_s: float
    proven: bool


@dataclass(frozen=True, slots=True)
class _Feasibility:
    """A plan that keeps to a bottleneck; if there is none, `exact` says that none exists."""

    steps: tuple[StageAssignment, ...] | None
    exact: bool


def minimize_bottleneck(problem: SearchProblem, width: int = WIDTH) -> Solution | None:
    """Return the plan with the smallest bottleneck, and among these one with a short latency; None where there is no
    plan.

    Raises SearchLimit when `width` states for each node do not decide whether a plan exists.
    """
    free = _minimize_slowest(replace(problem, shared_s=None), width)
    return free if free is None or problem.shared_s is None else _share(problem, free, width)


def _share(problem: SearchProblem, free: Solution, width: int) -> Solution:
    """Return the plan with the smallest bottleneck, where the resource that stages share counts, too.

    `free` is the best plan without that resource. The least load of the resource is a sum over edges, as latency is, so
    the search for the least latency within a bottleneck finds it. A plan with a higher limit has no higher least load:
    the best one is where the two meet.
    """
    assert problem.shared_s is not None
    load = np.where(np.isfinite(problem.period_s), problem.shared_s, np.inf)
    loads = replace(problem, latency_s=load, shared_s=None)
    steps, high, bound = free.steps, _bottleneck(problem, free.steps), free.bound_s
    low, target = free.period_s, math.inf
    for _ in range(_SHARED):
        if low >= high * (1 - _SAME):
            break
        found = _shorten(loads, steps if _bottleneck(loads, steps) <= target else free.steps, target, width)
        value = _bottleneck(problem, found.steps)
        if value < high:
            steps, high = found.steps, value
        if found.latency_s > target or target == math.inf:
            # Up to this limit nothing has a smaller load; above it, the next limit is the least that a plan has.
            above = math.inf if target == math.inf else _next(loads, target)
            bound = max(bound, min(found.bound_s, above))
            low = max(low, min(found.latency_s, above))
        target = low if target == math.inf else (low + high) / 2
    within = _shorten(replace(problem, shared_s=None), steps, high, width)
    if _bottleneck(problem, within.steps) <= high:
        steps, high = within.steps, _bottleneck(problem, within.steps)
    bound = min(bound, high)
    return Solution(steps, high, _latency(problem, steps), bound, bound >= high * (1 - _SAME))


def _minimize_slowest(problem: SearchProblem, width: int) -> Solution | None:
    answer = _start(problem, width)
    if answer is None:
        return None
    steps, high = answer, _bottleneck(problem, answer)
    bound = low = 0.0
    while low < high * (1 - _SAME):
        # Quarters until a bottleneck is out of reach, then halves.
        target = (low + high) / 2 if low else high / 4
        found = _decide(problem, target, width)
        if found.steps is not None:
            steps, high = found.steps, _bottleneck(problem, found.steps)
            continue
        low = _next(problem, target)
        bound = low if found.exact else bound
        if not found.exact and high <= low * (1 + _NEAR):
            break
    if bound < high * (1 - _SAME):
        bound = _raise_bound(problem, bound, high)
    steps = _shorten(problem, steps, high, width).steps
    high = _bottleneck(problem, steps)  # a narrow search may have overlooked these steps before
    return Solution(steps, high, _latency(problem, steps), min(bound, high), bound >= high * (1 - _SAME))


def minimize_latency(problem: SearchProblem, width: int = WIDTH) -> Solution | None:
    """Return the plan with the smallest latency; None where there is no plan.

    Raises SearchLimit as `minimize_bottleneck` does.
    """
    answer = _start(problem, width)
    if answer is None:
        return None
    return _shorten(problem, answer, math.inf, width)


def _start(problem: SearchProblem, width: int) -> tuple[StageAssignment, ...] | None:
    """Return any plan, None where there is none."""
    answer = _decide(problem, math.inf, width)
    if answer.steps is None and not answer.exact:
        raise SearchLimit(
            "no way to place the slices within the memory of the devices was found, though there may be one; offer "
            "more memory, or more devices of one kind"
        )
    return answer.steps


def _decide(problem: SearchProblem, bottleneck_s: float, width: int) -> _Feasibility:
    """Look for a plan that keeps to a bottleneck."""
    options = feasible_edges(problem, bottleneck_s, timed=False)
    if not len(options.edges):
        return _Feasibility(None, True)
    prices = price_devices(options, _speeds(problem, options))
    if prices.bound == math.inf:
        return _Feasibility(None, True)
    if prices.fits:
        return _Feasibility(_steps(options, prices), True)
    options = trim(options, prices, 0.0)
    found = BeamSearch(options, prices, 0.0, min(_FEW, width), first=True).run()  # often enough, and soon done
    if found.steps is None and not found.exact and width > _FEW:
        found = BeamSearch(options, prices, 0.0, width, first=True).run()
    return _Feasibility(found.steps, found.exact)


def _shorten(problem: SearchProblem, steps: tuple[StageAssignment, ...], bottleneck_s: float, width: int) -> Solution:
    """Return the plan of least latency that keeps to a bottleneck; `steps` is one that does."""
    options = feasible_edges(problem, bottleneck_s, timed=True)
    target = _latency(problem, steps)
    prices = price_latency(options, target)
    bound, exact = prices.bound, True
    if prices.fits and not prices.each.any() and not prices.any:
        steps = _steps(options, prices)
    else:
        options = trim(options, prices, target)
        found = BeamSearch(options, prices, target, width, first=False).run()
        steps, exact = found.steps or steps, found.exact
    latency = _latency(problem, steps)
    bound = latency if exact else min(bound, latency)
    return Solution(steps, _bottleneck(problem, steps), latency, bound, exact)


def _raise_bound(problem: SearchProblem, low: float, high: float) -> float:
    """Return a better lower bound of the bottleneck, by prices alone."""
    bound = low
    for _ in range(_PROOFS):
        if not low < high:
            break
        target = (low + high) / 2
        options = feasible_edges(problem, target, timed=False)
        if not len(options.edges) or price_devices(options, _speeds(problem, options)).bound == math.inf:
            bound = low = _next(problem, target)
        else:
            high = target
    return bound


def _next(problem: SearchProblem, bottleneck_s: float) -> float:
    """Return the smallest bottleneck above this one that a stage can have, inf where there is none.

    A stage of r replicas takes the r-th part of a period, so the result is the least such part above.
    """
    period = problem.period_s[np.isfinite(problem.period_s)]
    shared = np.broadcast_to(problem.shareable, problem.period_s.shape)[np.isfinite(problem.period_s)]
    cap = np.where(shared, min(problem.replicas, sum(problem.counts), problem.most), 1)
    # The largest r whose period / r is still above; r + 1 replicas keep to the bottleneck.
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.clip(np.ceil(period / bottleneck_s) if bottleneck_s > 0 else cap, 1, cap)
    for _ in range(2):  # the quotient may round to the other side of a whole number
        r = np.where(period / np.maximum(r, 1) > bottleneck_s, r, r - 1)
    above = np.where(r > 0, period / np.maximum(r, 1), np.inf)
    above = above[above > bottleneck_s]
    return float(above.min()) if len(above) else math.inf


def _speeds(problem: SearchProblem, options: FeasibleEdges) -> Floats:
    """Return the fraction of the work that each class can do: good prices to begin with."""
    period = problem.period_s[:, options.edges]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(np.isfinite(period), period.min(axis=0) / period, np.nan)
    ratio = np.where(np.isfinite(ratio), ratio, 0.0)
    return np.asarray(ratio.mean(axis=1) + 1e-3)


def _steps(options: FeasibleEdges, prices: DualPrices) -> tuple[StageAssignment, ...]:
    """Return the stages of the path that belongs to the prices."""
    classes = range(len(options.problem.counts))
    return tuple(
        StageAssignment(int(options.edges[j]), tuple(int(options.need[k, j]) if other == k else 0 for other in classes))
        for j, k in prices.path
    )


def _bottleneck(problem: SearchProblem, steps: tuple[StageAssignment, ...]) -> float:
    shared = 0.0 if problem.shared_s is None else sum(float(problem.shared_s[step.edge]) for step in steps)
    return max(shared, *(problem.period_of(step) for step in steps))


def _latency(problem: SearchProblem, steps: tuple[StageAssignment, ...]) -> float:
    return sum(problem.latency_of(step) for step in steps)
