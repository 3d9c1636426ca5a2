"""Balancing stages, against trying every plan."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import CutError
from har_edge.planner.partition import balance


def _brute_force(costs: list[float], stages: int, crossing: list[int]) -> tuple[int, ...]:
    def quality(borders: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
        bounds = (0, *borders, len(costs))
        slowest = max(sum(costs[start:stop]) for start, stop in pairwise(bounds))
        return slowest, sum(crossing[border - 1] for border in borders), borders

    return min(quality(borders) for borders in combinations(range(1, len(costs)), stages - 1))[2]


@given(st.data())
def test_balance_is_what_trying_every_plan_finds(data: st.DataObject) -> None:
    # Whole numbers, so that ties are common and sums exact.
    costs = [float(c) for c in data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=9))]
    crossing = data.draw(st.lists(st.integers(0, 5), min_size=len(costs) - 1, max_size=len(costs) - 1))
    stages = data.draw(st.integers(1, len(costs)))
    assert balance(costs, stages, crossing) == _brute_force(costs, stages, crossing)


def test_the_slowest_stage_counts_first_then_the_bytes() -> None:
    assert balance([1.0, 1.0, 1.0, 9.0], 2, [0, 0, 1000]) == (3,)
    assert balance([5.0, 0.0, 0.0, 5.0], 2, [300, 100, 200]) == (2,)
    assert balance([1.0, 2.0], 1, [7]) == ()


def test_fractions_that_do_not_add_up_exactly_still_give_a_plan() -> None:
    assert balance([0.1] * 6, 3, [1] * 5) == (2, 4)


@pytest.mark.parametrize("stages", [0, 4, -1])
def test_an_impossible_number_of_stages_says_what_is_possible(stages: int) -> None:
    text = f"cannot make {stages} stages; this model has 2 legal cuts, so 1 to 3 stages are possible"
    with pytest.raises(CutError, match=text):
        balance([1.0, 1.0, 1.0], stages, [0, 0])


def test_sizes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="3 segments have 2 borders, got 1 crossing sizes"):
        balance([1.0, 1.0, 1.0], 2, [0])
