"""Dual prices of devices: a lower bound for every plan, and a start for the search.

A plan may use each device once. The relaxation drops this constraint and lets a path pay for each device it takes. The
cheapest path is then found at once, and its cost minus the price of all devices is at most the cost of the best plan
(Lagrangian relaxation; Fisher, "The Lagrangian relaxation method for solving integer programming problems", Management
Science 27, 1981).

A stage that needs r replicas of one class costs at least r times the price of one device, and a mixed group at least
the mean of such costs of its members. So each edge costs the least of latency + price * need over the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from har_edge.planner.problem import NEVER, FeasibleEdges, Floats

ROUNDS = 60
_SURE = 1e-9
_AIM = 0.02
_PATIENCE = 6


@dataclass(frozen=True, slots=True, eq=False)
class DualPrices:
    """The price of a device of each class, the price of any device on top, and the cheapest way from each node to the
    end.

    `bound` is a lower bound of the objective; inf says that no plan exists. `path` is the cheapest path, as pairs
    (column of the feasible edges, class). `fits` says that the path is a plan.
    """

    each: Floats
    any: float
    to_end: Floats
    bound: float
    path: tuple[tuple[int, int], ...]
    fits: bool

    def worth(self, left: Floats, allowed: int) -> float:
        """Return the price of the devices that are left, of which a plan may still use `allowed`."""
        return float(self.each @ left) + self.any * allowed


def evaluate(options: FeasibleEdges, each: Floats, extra: float) -> DualPrices:
    """Return the cheapest path at these prices, and the bound that follows from it."""
    cost = options.latency_s + (each + extra)[:, None] * options.need  # latency is inf where the need is NEVER
    return _walk(options, cost, each, extra)


def _walk(options: FeasibleEdges, cost: Floats, each: Floats, extra: float) -> DualPrices:
    problem, first, heads = options.problem, options.first, options.heads
    best = cost.argmin(axis=0)
    weight = cost[best, np.arange(cost.shape[1])] if cost.size else np.empty(0)
    to_end = np.full(problem.nodes, np.inf)
    to_end[-1] = 0.0
    pick = [-1] * problem.nodes
    for node in range(problem.nodes - 2, -1, -1):
        start, stop = first[node], first[node + 1]
        if start < stop:
            sums = weight[start:stop] + to_end[heads[start:stop]]
            j = int(sums.argmin())
            to_end[node], pick[node] = sums[j], start + j
    path, node = [], 0
    while node != problem.nodes - 1 and pick[node] >= 0 and np.isfinite(to_end[0]):
        path.append((pick[node], int(best[pick[node]])))
        node = int(heads[pick[node]])
    counts = np.array(problem.counts, float)
    all_of_it = float(each @ counts) + extra * options.devices
    bound = float(to_end[0]) - all_of_it
    return DualPrices(each, extra, to_end, bound, tuple(path), _fits(options, path))


def trim(options: FeasibleEdges, prices: DualPrices, target_s: float) -> FeasibleEdges:
    """Return the edges without those that, by the prices, no plan below the target can contain."""
    problem, first = options.problem, options.first
    cost = options.latency_s + (prices.each + prices.any)[:, None] * options.need
    weight = cost.min(axis=0)
    from_start = np.full(problem.nodes, np.inf)
    from_start[0] = 0.0
    for node in range(problem.nodes - 1):
        start, stop = first[node], first[node + 1]
        if np.isfinite(from_start[node]):  # the heads of a node's edges may repeat
            np.minimum.at(from_start, options.heads[start:stop], from_start[node] + weight[start:stop])
    worth = prices.worth(np.array(problem.counts, float), options.devices) + target_s
    cost += from_start[problem.tails[options.edges]] + prices.to_end[options.heads]
    kept = cost <= worth + _SURE * (abs(worth) + 1)
    # A dear device may share a stage with cheap ones, so there only the whole stage can be ruled out.
    return options.only(np.where(options.shareable, kept.any(axis=0) & (options.need < NEVER), kept))


def usage(options: FeasibleEdges, path: tuple[tuple[int, int], ...]) -> Floats:
    """Return how many devices of each class a path takes, and how many in all."""
    used = np.zeros(len(options.problem.counts) + 1)
    for j, k in path:
        used[k] += options.need[k, j]
    used[-1] = used.sum()
    return used


def _fits(options: FeasibleEdges, path: list[tuple[int, int]]) -> bool:
    used = usage(options, tuple(path))
    return bool(path) and bool((used <= _counts(options)).all()) and options.problem.least <= used[-1]


def price_devices(options: FeasibleEdges, guess: Floats, rounds: int = ROUNDS) -> DualPrices:
    """Search prices at which no plan can exist (bound inf), or at which the path is a plan (`fits`); else the best
    prices.

    The prices of all devices add up to 1, so a cheapest path that costs more proves that there is no plan.
    """
    counts, weights = _counts(options), np.append(guess, guess.mean() / 4)
    if not _capped(options):
        weights[-1] = 0.0
    best: DualPrices | None = None
    pace, patience = 1.0, 0
    for _ in range(rounds):
        total = float(weights @ counts)
        if total <= 0:  # devices that cost nothing: only a plan that needs more of them than it would take goes there
            break
        weights /= total
        found = evaluate(options, weights[:-1], float(weights[-1]))
        if found.fits:
            return found
        if found.bound > _SURE:
            return DualPrices(found.each, found.any, found.to_end, np.inf, (), False)
        if best is None or found.bound > best.bound:
            best, patience = found, 0
        else:
            patience += 1
        if patience == _PATIENCE:
            pace, patience = pace * 0.7, 0
            weights = np.append(best.each, best.any)
            continue
        # The slope of (cheapest path) / (price of all), and a step as long as it takes to a bound just above 0.
        slope = usage(options, found.path) - counts * (found.bound + 1)
        weights = _subgradient_step(options, weights, slope, pace * (_AIM - found.bound))
    assert best is not None
    return best


def price_latency(options: FeasibleEdges, target_s: float, rounds: int = ROUNDS) -> DualPrices:
    """Return prices with a high lower bound of the latency; some plan reaches `target_s`."""
    counts = _counts(options)
    weights, pace, patience = np.zeros(len(counts)), 1.0, 0
    best: DualPrices | None = None
    for _ in range(rounds):
        found = evaluate(options, weights[:-1], float(weights[-1]))
        if best is None or found.bound > best.bound:
            best, patience = found, 0
        else:
            patience += 1
        if found.bound >= target_s or (found.fits and not weights.any()):
            break
        if patience == _PATIENCE:
            pace, patience = pace * 0.7, 0
        weights = _subgradient_step(
            options, weights, usage(options, found.path) - counts, pace * (target_s - found.bound)
        )
    assert best is not None
    return best


def _subgradient_step(options: FeasibleEdges, weights: Floats, slope: Floats, rise: float) -> Floats:
    """Return prices one step up the slope, long enough for a gain of `rise` (Polyak's subgradient step)."""
    slope = np.where((weights <= 0) & (slope < 0), 0.0, slope)
    if not _capped(options):
        slope[-1] = 0.0
    return np.asarray(np.maximum(0.0, weights + slope * (rise / max(float(slope @ slope), 1e-300))))


def _counts(options: FeasibleEdges) -> Floats:
    """Return the number of devices of each class, and the number that a plan may use in all."""
    return np.append(np.array(options.problem.counts, float), options.devices)


def _capped(options: FeasibleEdges) -> bool:
    return options.devices < sum(options.problem.counts)
