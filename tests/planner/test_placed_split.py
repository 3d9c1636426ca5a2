"""Shards where a plan has put them, or on fewer devices after one was lost."""

from __future__ import annotations

import math

import pytest

from har_edge.planner.placed_split import forecast_placed
from har_edge.planner.simulation import Simulator
from har_edge.planner.split_model import SplitModel
from har_edge.planner.split_plan import groups_of
from har_edge.planner.split_search import best_split
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from tests.planner.split_models import costs_of, network


@pytest.mark.parametrize("seed", range(8))
def test_each_shard_on_a_device_of_its_own_is_what_was_searched_for(seed: int) -> None:
    costs = costs_of(network(seed, 4), (1.0, 0.5, 0.8), seconds=(0.2,) * 4, broker=5e6)
    found = best_split(costs, border_first=False)
    assert found is not None
    searched = Simulator(costs, border_first=False).forecast(found.blocks)
    groups = groups_of(found.blocks)
    plans = [SplitPlan(len(group.devices), group.blocks, border_first=False) for group in groups]
    homes = [k for group in groups for k in group.devices]
    placed = forecast_placed(costs, plans, homes, [1, 1, 1])
    assert placed.figures.latency_s == pytest.approx(searched.latency_s)
    assert placed.figures.period_s == pytest.approx(searched.period_s)
    assert placed.seconds == pytest.approx([searched.compute_s[k] + searched.message_s[k] for k in homes])


def shared(model: SplitModel) -> list[SplitPlan]:
    size = model.tensors[model.places[2]].rows
    rows = Block(0, 2, SplitMethod.ROWS, (0, size // 2, size))
    return [SplitPlan(2, (rows, Block(2, model.n, SplitMethod.WHOLE, (0, 1, 1))), border_first=False)]


def test_two_shards_on_one_core_take_turns_and_on_two_cores_do_not() -> None:
    model = network(3, 4)
    costs = costs_of(model, (1.0, 1.0), seconds=(0.2,) * 4)
    apart = forecast_placed(costs, shared(model), [0, 1], [1, 1])
    both = forecast_placed(costs, shared(model), [0, 0], [1, 1])
    cores = forecast_placed(costs, shared(model), [0, 0], [2, 1])
    assert both.seconds == apart.seconds == cores.seconds
    assert both.figures.period_s == pytest.approx(sum(apart.seconds))
    assert cores.figures.period_s == pytest.approx(max(apart.seconds))
    assert both.figures.latency_s > cores.figures.latency_s >= apart.figures.latency_s


def test_a_device_that_does_not_hold_its_shards_has_no_pace() -> None:
    model = network(3, 4)
    free = forecast_placed(costs_of(model, seconds=(0.2,) * 4), shared(model), [0, 1], [1, 1])
    limit = 1000 + max(free.memory_bytes)
    costs = costs_of(model, seconds=(0.2,) * 4, memory_bytes=limit)
    assert forecast_placed(costs, shared(model), [0, 1], [1, 1]).figures.period_s < math.inf
    assert forecast_placed(costs, shared(model), [0, 0], [1, 1]).figures.period_s == math.inf
