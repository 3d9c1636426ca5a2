"""The shares of a block that the planner tries: those that speeds or memories suggest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heapify, heapreplace
from itertools import accumulate

from har_edge.planner.split_costs import CHANNEL_TILE, SplitCosts
from har_edge.tflite.split.plan import Block, SplitMethod

_SAME = 1e-12
_HEAVY = 0.25  # weights of this part of a device's memory are shared by memory, too

# The shares that a block may have: bounds for the devices in order.
Shares = Callable[[SplitCosts, Block], Sequence[tuple[int, ...]]]


def likely_shares(costs: SplitCosts, block: Block) -> list[tuple[int, ...]]:
    """Return shares by speed: of all devices, of as few as do not make the largest share larger, and of half."""
    speeds = speeds_of(costs, block)
    order = sorted(range(costs.n), key=lambda k: (-speeds[k], k))
    if block.method is SplitMethod.WHOLE:
        return [whole_shares(costs.n, k) for k in _likely_devices(costs, order)]
    tiles = costs.axis_size(block) // _tile(costs, block)
    few = -(-tiles // -(-tiles // costs.n))
    counts = dict.fromkeys([costs.n, few, (costs.n + 1) // 2])
    return list(dict.fromkeys(proportional(costs, block, order[:count]) for count in counts if count > 1))


def even_shares(costs: SplitCosts, block: Block) -> list[tuple[int, ...]]:
    """Return the share by speed of all devices alone, or the fastest one for a whole block."""
    return likely_shares(costs, block)[:1]


def lean_shares(costs: SplitCosts, block: Block) -> tuple[int, ...]:
    """Return the share of all devices: by memory, where all have limits and channels' weights take much, or speed."""
    if block.method is SplitMethod.OUTPUT and _is_heavy(costs, block, _HEAVY):
        return _apportioned(costs, block, range(costs.n), _rooms(costs))
    return even_shares(costs, block)[0]


def _is_heavy(costs: SplitCosts, block: Block, part: float) -> bool:
    """Return whether a block's weights take at least this part of the smallest memory, where all have limits."""
    rooms = _rooms(costs)
    weights = sum(one.weight_bytes for one in costs.model.operators[block.start : block.stop])
    return len(rooms) == costs.n and min(rooms) > 0 and weights * costs.devices[0].kind.growth >= part * min(rooms)


def _rooms(costs: SplitCosts) -> list[int]:
    """Return the bytes for a model on each device with a limit."""
    kinds = (device.kind for device in costs.devices)
    return [kind.memory_bytes - kind.base_bytes for kind in kinds if kind.memory_bytes is not None]


def speeds_of(costs: SplitCosts, block: Block) -> list[float]:
    whole = replace(block, method=SplitMethod.WHOLE)
    return [1 / max(_SAME, costs.step_seconds(whole, k, 0, 1)) for k in range(costs.n)]


def whole_shares(n: int, device: int) -> tuple[int, ...]:
    """Return the shares of a block that one device computes."""
    return (0,) * (device + 1) + (1,) * (n - device)


def _likely_devices(costs: SplitCosts, order: Sequence[int]) -> list[int]:
    """Return the two fastest devices, and the one that has most memory."""
    limits = [device.kind.memory_bytes for device in costs.devices]
    largest = max(order, key=lambda k: float("inf") if limits[k] is None else float(limits[k] or 0))
    return list(dict.fromkeys([*order[:2], largest]))


def proportional(costs: SplitCosts, block: Block, devices: Sequence[int]) -> tuple[int, ...]:
    """Return bounds in proportion to the speeds of some devices; each row or tile goes to who would end it first."""
    key = (block.start, block.stop, block.method, tuple(devices))
    if key not in costs.shares:
        costs.shares[key] = _apportioned(costs, block, devices, speeds_of(costs, block))
    return costs.shares[key]


def _apportioned(costs: SplitCosts, block: Block, devices: Sequence[int], parts: Sequence[float]) -> tuple[int, ...]:
    """Return bounds in proportion to the parts of some devices."""
    tile, shares = _tile(costs, block), [0] * costs.n
    waiting = [(tile / parts[k], k) for k in devices]
    heapify(waiting)
    for _ in range(costs.axis_size(block) // tile):
        k = waiting[0][1]
        shares[k] += tile
        heapreplace(waiting, ((shares[k] + tile) / parts[k], k))
    return (0, *accumulate(shares))


def _tile(costs: SplitCosts, block: Block) -> int:
    """Return how many rows or channels go to one device together."""
    size = costs.axis_size(block)
    if block.method is not SplitMethod.OUTPUT or not costs.has_tiles(block):
        return 1
    return CHANNEL_TILE if size % CHANNEL_TILE == 0 and size >= 2 * CHANNEL_TILE else 1


def shifted(
    costs: SplitCosts, blocks: tuple[Block, ...], index: int, number: int, amount: int
) -> tuple[Block, ...] | None:
    """Return the blocks with one bound moved, None where it would pass another one."""
    block = blocks[index]
    if block.method is SplitMethod.OUTPUT:
        amount *= CHANNEL_TILE // 2
    bounds = list(block.bounds)
    bounds[number] += amount
    if not bounds[number - 1] <= bounds[number] <= bounds[number + 1]:
        return None
    return (*blocks[:index], replace(block, bounds=tuple(bounds)), *blocks[index + 1 :])
