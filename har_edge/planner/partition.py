"""Spread segments over stages so that the slowest stage is as fast as can be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from har_edge.errors import CutError


def balance(costs_s: Sequence[float], stages: int, crossing_bytes: Sequence[int]) -> tuple[int, ...]:
    """Return the borders at which to cut a chain of segments into `stages` runs.

    Args:
        costs_s: Seconds of each segment.
        stages: Number of stages, 1 to the number of segments.
        crossing_bytes: Bytes that cross the border before segment i + 1; one entry fewer than segments.

    Returns a border b, 1 <= b < len(costs_s), for each cut before segment b. The slowest stage is as fast as possible;
    of all such plans, the function takes the one with the fewest crossing bytes, then the one with the earliest cuts.

    The result is exact. Dynamic programming over prefixes finds the bottleneck (the linear partition problem, Skiena,
    The Algorithm Design Manual, 2nd ed., section 8.5), and then the fewest bytes among plans that keep to it.

    Raises CutError when there are fewer segments than stages.
    """
    n = len(costs_s)
    if len(crossing_bytes) != max(0, n - 1):
        raise ValueError(f"{n} segments have {max(0, n - 1)} borders, got {len(crossing_bytes)} crossing sizes")
    if stages < 1 or stages > n:
        raise CutError(
            f"cannot make {stages} stages; this model has {n - 1} legal cuts, so 1 to {n} stages are possible"
        )
    # Sums run from the start of each stage, so that two plans with the same stage have exactly the same cost.
    cost = [[0.0] * (n + 1) for _ in range(n)]
    for start in range(n):
        for stop in range(start + 1, n + 1):
            cost[start][stop] = cost[start][stop - 1] + costs_s[stop - 1]
    bottleneck = _bottleneck(cost, stages)
    return _fewest_bytes(cost, stages, crossing_bytes, bottleneck)


def _bottleneck(cost: Sequence[Sequence[float]], stages: int) -> float:
    """Return the smallest possible cost of the slowest stage."""
    n = len(cost)
    best = [0.0] + [math.inf] * n
    for _ in range(stages):
        best = [
            min((max(best[start], cost[start][stop]) for start in range(stop)), default=math.inf)
            for stop in range(n + 1)
        ]
    return best[n]


def _fewest_bytes(
    cost: Sequence[Sequence[float]], stages: int, crossing_bytes: Sequence[int], bottleneck: float
) -> tuple[int, ...]:
    """Return the borders of the plan with the fewest crossing bytes whose stages all keep to `bottleneck`."""
    n = len(cost)
    # plans[stop]: bytes and borders of the best plan for the segments before `stop`, one stage longer each round.
    plans: list[tuple[int, tuple[int, ...]] | None] = [(0, ())] + [None] * n
    for _ in range(stages):
        longer: list[tuple[int, tuple[int, ...]] | None] = [None] * (n + 1)
        for stop in range(1, n + 1):
            longer[stop] = min(
                (
                    (plan[0] + (crossing_bytes[start - 1] if start else 0), (*plan[1], start))
                    for start, plan in enumerate(plans[:stop])
                    if plan is not None and cost[start][stop] <= bottleneck
                ),
                default=None,
            )
        plans = longer
    plan = plans[n]
    assert plan is not None  # the plan that has this bottleneck is among them
    return plan[1][1:]
