"""How each tensor travels: against every choice there is, and as it is where packing gains nothing."""

from __future__ import annotations

from itertools import product

import pytest

from har_edge.planner.flow_packing import choose_flow_packings
from har_edge.planner.plan import Objective
from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import PackingCost, SplitCosts
from har_edge.planner.split_plan import make_candidate
from har_edge.tflite.split.plan import Block, SplitMethod
from tests.planner.split_models import costs_of, network

# A quarter of the bytes for much work, half of them for little.
WAYS = {"zstd": PackingCost(4.0, 3e-7), "f2": PackingCost(2.0, 2e-8)}


def chain(costs: SplitCosts) -> tuple[Block, ...]:
    """Return a block by rows for each operator but the last."""
    n, blocks = costs.model.n, []
    for start in range(n - 1):
        size = costs.model.tensors[start + 1].rows
        bounds = tuple(size * k // costs.n for k in range(costs.n + 1))
        blocks.append(Block(start, start + 1, SplitMethod.ROWS, bounds))
    return (*blocks, Block(n - 1, n, SplitMethod.WHOLE, (0,) + (1,) * costs.n))


def value(costs: SplitCosts, blocks: tuple[Block, ...], chosen: dict[int, PackingCost], objective: Objective) -> float:
    return make_candidate(costs.with_flows(packings=chosen), blocks, border_first=True).value(objective)


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("link", [4e4, 4e5, 4e6])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_best_of_all(seed: int, link: float, objective: Objective) -> None:
    costs = costs_of(network(seed, 5, 12), (1.0, 0.7), broker=3 * link, link_bytes_per_s=link)
    blocks = chain(costs)
    every = {
        names: value(
            costs,
            blocks,
            {block.start: WAYS[name] for block, name in zip(blocks[1:], names, strict=True) if name},
            objective,
        )
        for names in product(("", *WAYS), repeat=len(blocks) - 1)
    }
    found = choose_flow_packings(costs, blocks, WAYS, objective, border_first=True, width=10**6)
    assert found.exact and len(every) == 81
    assert found.value_s == pytest.approx(min(every.values()), rel=1e-12)
    kept = {place: WAYS[name] for place, name in found.ways.items()}
    assert value(costs, blocks, kept, objective) == pytest.approx(found.value_s, rel=1e-12)
    narrow = choose_flow_packings(costs, blocks, WAYS, objective, border_first=True, width=2)
    assert found.value_s * (1 - 1e-12) <= narrow.value_s <= min(every[(name,) * 4] for name in ("", *WAYS))


def test_slow_links_are_packed_for_and_fast_ones_are_not() -> None:
    model = network(1, 5, 12)
    slow, fast = costs_of(model, link_bytes_per_s=1e4), costs_of(model, link_bytes_per_s=1e9)
    ways = [
        choose_flow_packings(costs, chain(costs), WAYS, Objective.LATENCY, border_first=True).ways
        for costs in (slow, fast)
    ]
    assert set(ways[0].values()) == {"zstd"} and ways[1] == {}


def test_what_is_not_named_travels_as_it_is_and_so_does_the_window() -> None:
    costs = costs_of(network(1, 4, 12))
    blocks = chain(costs)
    packed = costs.with_flows(packings={blocks[-1].start: WAYS["zstd"]})
    for block, after in zip((None, *blocks), blocks, strict=False):
        pairs = zip(costs.transfer(block, after, True).pieces, packed.transfer(block, after, True).pieces, strict=True)
        for plain, other in pairs:
            assert (other.bytes < plain.bytes) == (other.packed_s > 0) == (after.start == blocks[-1].start)
    plain_s, packed_s = (Simulator(one, border_first=True).forecast(blocks).message_s for one in (costs, packed))
    assert all(map(float.__lt__, plain_s, packed_s))
