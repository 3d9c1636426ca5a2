"""The share of each device of a split, and the groups of devices, for `har-edge slice`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from har_edge.tflite.split.methods import UNITS
from har_edge.tflite.split.plan import PARITIES, SplitMethod, SplitPlan, parity_shard
from har_edge.units import plural


class ShareView(msgspec.Struct, frozen=True):
    """The share of one stage in operators [start, stop): [low, high) of `extent` along the axis of the method.

    A parity shard has none, and both are 0.
    """

    start: int
    stop: int
    method: SplitMethod
    low: int
    high: int
    extent: int


class ShardGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """The stages from `first` on, so many `devices`, that compute operators [start, stop) together.

    With `float_parity`, answers depend in their last bits on which of them is late.
    """

    first: int
    devices: int
    start: int
    stop: int
    float_parity: bool = False


def groups_of(plans: Sequence[SplitPlan]) -> tuple[ShardGroup, ...]:
    """Return the groups of devices of a split."""
    groups, first = [], 0
    for plan in plans:
        rounds = any(block.method is SplitMethod.FLOAT_PARITY for block in plan.blocks)
        groups.append(ShardGroup(first, plan.shards, plan.start, plan.stop, rounds))
        first += plan.shards
    return tuple(groups)


def shares_of(plans: Sequence[SplitPlan]) -> list[tuple[ShareView, ...]]:
    """Return what each stage of a split computes; a stage that is not split has one share, the whole."""
    return [tuple(_views(plan, shard)) for plan in plans for shard in range(plan.shards)]


def _views(plan: SplitPlan, shard: int) -> Iterator[ShareView]:
    for block in plan.blocks:
        low, high = block.share(shard)
        if low < high:
            yield ShareView(block.start, block.stop, block.method, low, high, block.bounds[-1])
        elif block.method in PARITIES and shard == parity_shard(block):
            yield ShareView(block.start, block.stop, block.method, 0, 0, block.bounds[-1])


def group_lines(groups: Sequence[ShardGroup]) -> list[str]:
    """Return how many devices a split is for, and which stages share operators."""
    lines = [f"{plural(sum(one.devices for one in groups), 'device')} in {plural(len(groups), 'group')}:"]
    for one in groups:
        operators = f"operators [{one.start}, {one.stop})"
        if one.devices > 1:
            lines.append(f"    shards {one.first} to {one.first + one.devices - 1} share {operators}")
        else:
            lines.append(f"    slice {one.first} computes {operators} alone")
    if any(one.float_parity for one in groups):
        lines.append("parity of floats: the last bits of an answer depend on which shard is late")
    return lines


def share_lines(shares: Sequence[ShareView]) -> list[str]:
    """Return what a shard computes, a line for each block of operators."""
    lines = []
    for one in shares:
        operators = f"operators [{one.start}, {one.stop})"
        if one.method is SplitMethod.WHOLE:
            lines.append(f"computes {operators} whole")
        elif one.low == one.high:
            lines.append(f"computes the parity of {one.extent} {UNITS[one.method]} in {operators}")
        else:
            lines.append(f"computes {UNITS[one.method]} [{one.low}, {one.high}) of {one.extent} in {operators}")
    return lines or ["computes nothing"]
