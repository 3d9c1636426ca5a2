"""The share of each device of a split, and the groups of devices, for `har-edge slice`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from har_edge.tflite.split.methods import UNITS
from har_edge.tflite.split.plan import SplitMethod, SplitPlan
from har_edge.units import plural


class ShareView(msgspec.Struct, frozen=True):
    """The share of one stage in operators [start, stop): [low, high) of `extent` along the axis of the method."""

    start: int
    stop: int
    method: SplitMethod
    low: int
    high: int
    extent: int


class ShardGroup(msgspec.Struct, frozen=True):
    """The stages from `first` on, so many `devices`, that compute operators [start, stop) together."""

    first: int
    devices: int
    start: int
    stop: int


def groups_of(plans: Sequence[SplitPlan]) -> tuple[ShardGroup, ...]:
    """Return the groups of devices of a split."""
    groups, first = [], 0
    for plan in plans:
        groups.append(ShardGroup(first, plan.shards, plan.start, plan.stop))
        first += plan.shards
    return tuple(groups)


def shares_of(plans: Sequence[SplitPlan]) -> list[tuple[ShareView, ...]]:
    """Return what each stage of a split computes; a stage that is not split has one share, the whole."""
    return [
        tuple(
            ShareView(block.start, block.stop, block.method, *block.share(shard), block.bounds[-1])
            for block in plan.blocks
            if block.bounds[shard] < block.bounds[shard + 1]
        )
        for plan in plans
        for shard in range(plan.shards)
    ]


def group_lines(groups: Sequence[ShardGroup]) -> list[str]:
    """Return how many devices a split is for, and which stages share operators."""
    lines = [f"{plural(sum(one.devices for one in groups), 'device')} in {plural(len(groups), 'group')}:"]
    for one in groups:
        operators = f"operators [{one.start}, {one.stop})"
        if one.devices > 1:
            lines.append(f"    shards {one.first} to {one.first + one.devices - 1} share {operators}")
        else:
            lines.append(f"    slice {one.first} computes {operators} alone")
    return lines


def share_lines(shares: Sequence[ShareView]) -> list[str]:
    """Return what a shard computes, a line for each block of operators."""
    lines = []
    for one in shares:
        operators = f"operators [{one.start}, {one.stop})"
        if one.method is SplitMethod.WHOLE:
            lines.append(f"computes {operators} whole")
        else:
            lines.append(f"computes {UNITS[one.method]} [{one.low}, {one.high}) of {one.extent} in {operators}")
    return lines or ["computes nothing"]
