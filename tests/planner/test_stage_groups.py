"""Chains of stages that may be groups of devices: near the best of all plans, legal, and within memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import PackingCost
from har_edge.planner.split_plan import groups_of
from har_edge.planner.stage_groups import best_groups
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from tests.planner.split_models import costs_of, network
from tests.planner.test_split_search import every_plan


@pytest.mark.parametrize("message_s", [2e-4, 5e-3])
@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 0.6)])
def test_a_chain_is_near_the_best_of_all_plans_and_often_that(speeds: tuple[float, ...], message_s: float) -> None:
    gaps = []
    for seed in (0, 2, 4, 5):
        costs = costs_of(network(seed, 4, 6), speeds, seconds=(0.02, 0.05, 0.03, 0.01), message_s=message_s)
        simulator = Simulator(costs, border_first=False)
        best = min(simulator.forecast(plan).period_s for plan in every_plan(costs))
        found = best_groups(costs)
        assert found is not None
        gaps.append(simulator.forecast(found).period_s / best - 1)
    assert min(gaps) > -1e-9 and max(gaps) < 0.04
    assert sum(gap < 1e-9 for gap in gaps) >= 2


def test_dear_messages_make_fewer_blocks() -> None:
    def messages(message_s: float) -> int:
        costs = costs_of(network(3, 6, 24), (1.0,) * 4, message_s=message_s)
        found = best_groups(costs)
        assert found is not None
        transfers = [
            costs.transfer(one, after, False) for one, after in zip((None, *found), (*found, None), strict=True)
        ]
        return sum(1 + len(piece.takers) for one in transfers for piece in one.pieces)

    assert messages(1e-5) > messages(2e-3) > messages(0.1)
    assert messages(0.1) == 2 * 4  # a chain of devices, each of which takes one from before it: who sends counts, too


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 6),
    st.lists(st.floats(0.3, 2.0), min_size=2, max_size=5),
    st.one_of(st.none(), st.floats(1e5, 1e7)),
    st.one_of(st.none(), st.floats(0.3, 1.5)),
)
def test_a_chain_is_legal_and_within_memory(
    seed: int, operators: int, speeds: list[float], broker: float | None, memory: float | None
) -> None:
    model = network(seed, operators, 12)
    free = costs_of(model, tuple(speeds))
    whole = Block(0, model.n, SplitMethod.WHOLE, (0, *(1,) * free.n))
    most = Simulator(free, border_first=False).forecast([whole]).memory_bytes[0]
    limit = None if memory is None else int(memory * most)
    costs = costs_of(model, tuple(speeds), broker=broker, memory_bytes=limit)
    found = best_groups(costs)
    if found is None:
        assert limit is not None and limit < most  # one device would hold all of it
        return
    forecast = Simulator(costs, border_first=False).forecast(found)
    assert limit is None or max(forecast.memory_bytes) <= limit
    assert all(costs.is_legal(block.start, block.stop, block.method) for block in found)
    groups = groups_of(found)
    assert [0, *(group.blocks[-1].stop for group in groups)] == [*(g.blocks[0].start for g in groups), model.n]
    taken = [k for group in groups for k in group.devices]
    assert len(taken) == len(set(taken))
    for group in groups:
        SplitPlan(len(group.devices), group.blocks)
        assert all(
            any(low < high for low, high in [b.share(k) for b in group.blocks]) for k in range(len(group.devices))
        )


def test_the_broker_s_link_is_shared_by_all_stages() -> None:
    model = network(3, 6, 24)
    free, slow = (
        Simulator(costs, border_first=False).forecast(found)
        for costs in (costs_of(model, (1.0,) * 6, broker=rate) for rate in (None, 3e5))
        if (found := best_groups(costs)) is not None
    )
    assert sum(slow.broker_bytes) < sum(free.broker_bytes)  # fewer cuts
    assert free.period_s < slow.period_s
    costs = costs_of(model, (1.0,) * 6, broker=3e5)
    costs.packing = PackingCost(8.0)
    packed = best_groups(costs)
    assert packed is not None
    assert Simulator(costs, border_first=False).forecast(packed).period_s < slow.period_s


def test_groups_begin_where_no_device_goes_on() -> None:
    blocks = [
        Block(0, 2, SplitMethod.ROWS, (0, 0, 6, 12, 12)),
        Block(2, 3, SplitMethod.WHOLE, (0, 0, 1, 1, 1)),
        Block(3, 4, SplitMethod.WHOLE, (0, 1, 1, 1, 1)),
        Block(4, 6, SplitMethod.OUTPUT, (0, 4, 4, 4, 8)),
    ]
    first, second = groups_of(blocks)
    assert (first.devices, second.devices) == ((1, 2), (0, 3))
    assert [block.bounds for block in first.blocks] == [(0, 6, 12), (0, 1, 1)]
    assert [block.bounds for block in second.blocks] == [(0, 1, 1), (0, 4, 8)]
    alone = groups_of([Block(0, 2, SplitMethod.WHOLE, (0, 1, 1)), Block(2, 3, SplitMethod.WHOLE, (0, 0, 1))])
    assert [(group.devices, group.blocks) for group in alone] == [
        ((0,), (Block(0, 2, SplitMethod.WHOLE, (0, 1)),)),
        ((1,), (Block(2, 3, SplitMethod.WHOLE, (0, 1)),)),
    ]
