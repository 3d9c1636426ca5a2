"""Splits for small memories: one is found wherever the search for speed alone finds none."""

from __future__ import annotations

import pytest

from har_edge.planner.lean_splits import best_lean_split
from har_edge.planner.plan import Objective
from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_model import SplitModel, SplitOperator, SplitTensor
from har_edge.planner.split_plan import find_candidate
from tests.planner.split_models import Window, chain_model, costs_of
from tests.planner.test_split_search import every_plan

SPEEDS = (1.0, 0.4)


def heavy() -> SplitModel:
    """Two convolutions and a dense layer, each with many weights, as the end of VGG16."""
    picture = SplitTensor(6, 4, 4 * 6 * 64 * 4)
    operators = [
        SplitOperator("CONV_2D", (0,), 1, 40_000, linear=True),
        SplitOperator("CONV_2D", (1,), 2, 40_000, linear=True),
        SplitOperator("FULLY_CONNECTED", (2,), 3, 400_000, linear=True),
        SplitOperator("SOFTMAX", (3,), 4, 0),
    ]
    sizes = [picture, picture, picture, SplitTensor(0, 16, 64), SplitTensor(0, 16, 64)]
    return chain_model(operators, sizes, [Window(1, 3, 1), Window(1, 3, 1), None, None])


def costs(limit: int | None) -> SplitCosts:
    return costs_of(heavy(), SPEEDS, seconds=(0.2, 0.2, 0.2, 1e-3), memory_bytes=limit)


def least_memory() -> int:
    """The limit below which no plan of all fits two devices."""
    free = costs(None)
    simulator = Simulator(free, border_first=False)
    return min(max(simulator.forecast(plan).memory_bytes) for plan in every_plan(free))


@pytest.mark.parametrize(("room", "within"), [(1.1, 2.0), (1.2, 1.05), (1.5, 1.35), (2.0, 1.05)])
def test_a_plan_is_found_where_memory_is_hardly_enough(room: float, within: float) -> None:
    limit = int(room * least_memory())
    limited = costs(limit)
    found = find_candidate(limited, Objective.LATENCY)
    assert found is not None and max(found.forecast.memory_bytes) <= limit
    simulator = Simulator(limited, border_first=False)
    best = min(
        forecast.latency_s
        for plan in every_plan(limited)
        if max((forecast := simulator.forecast(plan)).memory_bytes) <= limit
    )
    assert found.forecast.latency_s <= within * best


def test_a_lean_split_shares_weights_by_memory_and_not_by_speed() -> None:
    found = best_lean_split(costs(int(1.1 * least_memory())))
    assert found is not None
    (dense,) = (block for block in found[0] if block.start == 2)
    assert dense.bounds == (0, 8, 16)  # though the second device is far slower


def test_nothing_is_found_where_nothing_fits() -> None:
    limited = costs(least_memory() // 2)
    assert best_lean_split(limited) is None and find_candidate(limited, Objective.LATENCY) is None
