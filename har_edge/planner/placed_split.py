"""Forecast groups of shards on the nodes that run them, where a node may run several shards after another was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from har_edge.planner.relocation import Forecast
from har_edge.planner.simulation import Simulator, SplitForecast
from har_edge.planner.split_costs import SplitCosts
from har_edge.tflite.split.plan import Block, SplitPlan


@dataclass(frozen=True, slots=True)
class PlacedForecast:
    """The forecast of a placement, and for each shard the seconds that its node needs for a window and its bytes of
    memory, those of the process without a model left out.
    """

    figures: Forecast
    seconds: tuple[float, ...]
    memory_bytes: tuple[int, ...]


def forecast_placed(
    costs: SplitCosts, plans: Sequence[SplitPlan], homes: Sequence[int], cores: Sequence[int]
) -> PlacedForecast:
    """Return what shards take on the devices of `costs`.

    Shard k of all, in the order of the plans, runs on device `homes[k]`, and a device runs as many shards at once as it
    has `cores`. Shards of one device reach each other through the broker, as others do. A
    device whose memory does not hold its shards has an infinite period.
    """
    blocks = _placed_blocks(plans, len(homes))
    own = replace(
        costs,
        devices=[costs.devices[k] for k in homes],
        seconds=[costs.seconds[k] for k in homes],
        own_brokers=frozenset(shard for shard, home in enumerate(homes) if home in costs.own_brokers),
    )
    before = [list(homes[:k]).count(home) for k, home in enumerate(homes)]
    slots = [(home, count % max(1, cores[home])) for home, count in zip(homes, before, strict=True)]
    simulator = Simulator(
        own,
        border_first=any(plan.border_first for plan in plans if plan.shards > 1),
        processors=[slots.index(slot) for slot in slots],
        links=[homes.index(home) for home in homes],
    )
    found = simulator.forecast(blocks)
    seconds = tuple(compute + sent for compute, sent in zip(found.compute_s, found.message_s, strict=True))
    bases = [costs.devices[k].kind.base_bytes for k in homes]
    memory = tuple(max(0, taken - base) for taken, base in zip(found.memory_bytes, bases, strict=True))
    period = _period(costs, homes, cores, found, memory)
    return PlacedForecast(Forecast(period, found.latency_s, seconds), seconds, memory)


def _placed_blocks(plans: Sequence[SplitPlan], shards: int) -> list[Block]:
    """Return the blocks of all plans, each with a share for every shard of all."""
    blocks = []
    for plan, stop in zip(plans, accumulate(plan.shards for plan in plans), strict=True):
        first = stop - plan.shards
        for block in plan.blocks:
            bounds = (*(0,) * first, *block.bounds, *(block.bounds[-1],) * (shards - stop))
            blocks.append(replace(block, bounds=bounds))
    return blocks


def _period(
    costs: SplitCosts, homes: Sequence[int], cores: Sequence[int], found: SplitForecast, memory: Sequence[int]
) -> float:
    """Return the seconds between two windows that every node, every link and the broker's link keep up with."""
    periods = [found.broker_s]
    for k in sorted(set(homes)):
        kind, mine = costs.devices[k].kind, [shard for shard, home in enumerate(homes) if home == k]
        if kind.memory_bytes is not None and kind.base_bytes + sum(memory[one] for one in mine) > kind.memory_bytes:
            return math.inf
        busy = [found.compute_s[one] + found.message_s[one] for one in mine]
        up, down = sum(found.up_bytes[one] for one in mine), sum(found.down_bytes[one] for one in mine)
        link = (max(up, down) if kind.duplex else up + down) / kind.link_bytes_per_s
        periods += [max(busy), sum(busy) / max(1, cores[k]), link]
    return max(periods)
