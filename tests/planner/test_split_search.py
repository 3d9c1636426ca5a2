"""Splits for one window: against every plan there is, legal, within memory, and no slower than one device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_search import best_split, find_split, fits
from har_edge.planner.split_shares import likely_shares
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from tests.planner.split_models import all_shares, costs_of, network


def every_plan(costs: SplitCosts, start: int = 0) -> Iterator[tuple[Block, ...]]:
    """Return every way to go through the operators from `start` on."""
    n = costs.model.n
    if start == n:
        yield ()
        return
    for stop in range(start + 1, n + 1):
        for method in (SplitMethod.ROWS, SplitMethod.OUTPUT, SplitMethod.WHOLE):
            if costs.is_legal(start, stop, method):
                draft = Block(start, stop, method, (0,) * costs.n + (1,))
                for bounds in all_shares(costs, draft):
                    for rest in every_plan(costs, stop):
                        yield (Block(start, stop, method, bounds), *rest)


@pytest.mark.parametrize("border_first", [False, True])
@pytest.mark.parametrize("broker", [None, 3e5])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_the_best_of_all_plans(seed: int, broker: float | None, border_first: bool) -> None:
    costs = costs_of(network(seed, 3, 5), (1.0, 0.6), seconds=(0.02, 0.05, 0.01), broker=broker)
    simulator = Simulator(costs, border_first=border_first)
    latencies = {plan: simulator.latency(plan) for plan in every_plan(costs)}
    found = find_split(costs, border_first=border_first, shares=all_shares, width=10**6)
    assert found is not None and found.exact
    assert len(latencies) > 100
    assert found.latency_s == pytest.approx(min(latencies.values()), rel=1e-12)
    assert latencies[found.blocks] == pytest.approx(found.latency_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_the_search_finds_the_best_plan_of_three_unequal_devices(seed: int) -> None:
    costs = costs_of(network(seed, 4, 4), (1.0, 0.8, 1.3), seconds=(0.02, 0.03, 0.02, 0.01), broker=1e6)
    simulator = Simulator(costs, border_first=True)
    found = find_split(costs, border_first=True, shares=all_shares, width=10**6)
    assert found is not None and found.exact
    assert found.latency_s == pytest.approx(min(map(simulator.latency, every_plan(costs))), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_plan_within_memory(seed: int) -> None:
    model = network(seed, 3, 4)
    free = costs_of(model, (1.0, 1.0), seconds=(0.02, 0.05, 0.01))
    plans = list(every_plan(free))
    simulator = Simulator(free, border_first=True)
    need = sorted({max(simulator.forecast(plan).memory_bytes) for plan in plans})
    limit = need[len(need) // 3]
    costs = costs_of(model, (1.0, 1.0), seconds=(0.02, 0.05, 0.01), memory_bytes=limit)
    small = [plan for plan in plans if fits(costs, plan, border_first=True)]
    found = find_split(costs, border_first=True, shares=all_shares, width=10**6)
    assert found is not None and 0 < len(small) < len(plans)
    assert found.latency_s == pytest.approx(min(map(simulator.latency, small)), rel=1e-12)
    assert max(simulator.forecast(found.blocks).memory_bytes) <= limit


def test_no_plan_is_made_up_where_memory_is_too_small() -> None:
    assert best_split(costs_of(network(0), memory_bytes=1001), border_first=True) is None


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 5),
    st.lists(st.floats(0.2, 3.0), min_size=2, max_size=4),
    st.one_of(st.none(), st.floats(1e4, 1e7)),
    st.booleans(),
)
def test_a_plan_is_legal_and_never_slower_than_one_device(
    seed: int, operators: int, speeds: list[float], broker: float | None, border_first: bool
) -> None:
    costs = costs_of(network(seed, operators, 12), tuple(speeds), broker=broker)
    found = best_split(costs, border_first=border_first)
    assert found is not None
    SplitPlan(costs.n, found.blocks)  # raises for gaps, and for shares that do not add up
    assert (found.blocks[0].start, found.blocks[-1].stop) == (0, costs.model.n)
    for block in found.blocks:
        assert costs.is_legal(block.start, block.stop, block.method)
        assert block.bounds[-1] == costs.axis_size(block)
    simulator = Simulator(costs, border_first=border_first)
    whole = Block(0, costs.model.n, SplitMethod.WHOLE, (0,) * costs.n + (1,))
    alone = [simulator.latency([Block(0, whole.stop, whole.method, bounds)]) for bounds in all_shares(costs, whole)]
    assert found.latency_s <= min(alone) * (1 + 1e-9)
    assert simulator.latency(found.blocks) == pytest.approx(found.latency_s, rel=1e-12)


def test_several_devices_share_slow_rows_and_one_takes_what_messages_cost_more_than() -> None:
    model = network(1, 4, 24)
    slow = best_split(costs_of(model, (1.0,) * 4, seconds=(1.0, 1.0, 1.0, 0.001)), border_first=True)
    fast = best_split(costs_of(model, (1.0,) * 4, seconds=(1e-4,) * 4, message_s=0.01), border_first=True)
    assert slow is not None and slow.blocks[0].method is SplitMethod.ROWS and slow.latency_s < 3.0 / 3
    assert fast is not None and [block.method for block in fast.blocks] == [SplitMethod.WHOLE]


def test_shares_follow_speeds_and_leave_out_devices_that_change_nothing() -> None:
    model = network(1, 3, 14)
    block = Block(0, 1, SplitMethod.ROWS, (0,) * 8 + (1,))
    even = likely_shares(costs_of(model, (1.0,) * 8), block)
    assert (0, 2, 4, 6, 8, 10, 12, 14, 14) in even  # seven devices have no more rows than eight
    uneven = likely_shares(costs_of(model, (1.0, 2.0)), block)
    assert uneven[0] == (0, 5, 14)


def test_no_plan_is_returned_that_is_not_below_the_bound() -> None:
    costs = costs_of(network(2))
    found = best_split(costs, border_first=True)
    assert found is not None
    assert best_split(costs, border_first=True, best_s=found.latency_s) is None
    assert find_split(costs, border_first=True, best_s=1e-9) is None
