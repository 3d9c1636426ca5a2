"""Splits that take little memory, tried before the search: rows up to a place, and then output channels.

Rows need all weights of their operators on each device, output channels a share of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_shares import lean_shares, whole_shares
from har_edge.tflite.split.plan import Block, SplitMethod

_FUSED = (1, 3, 4)  # operators between two places that a block by rows has


def best_lean_split(costs: SplitCosts) -> tuple[tuple[Block, ...], float] | None:
    """Return the quickest of the lean splits that fits every memory, and its latency; None where none fits."""
    simulator, best = Simulator(costs, border_first=False), None
    for blocks in _lean_splits(costs):
        forecast = simulator.forecast(blocks)
        fits = all(
            device.kind.memory_bytes is None or taken <= device.kind.memory_bytes
            for device, taken in zip(costs.devices, forecast.memory_bytes, strict=True)
        )
        if fits and (best is None or forecast.latency_s < best[1]):
            best = blocks, forecast.latency_s
    return best


def _lean_splits(costs: SplitCosts) -> Iterator[tuple[Block, ...]]:
    places = [*sorted(costs.model.places), costs.model.n]
    for number in range(len(places)):
        for fused in _FUSED:
            yield tuple(_merged(_lean_split(costs, places, number, fused)))


def _lean_split(costs: SplitCosts, places: list[int], number: int, fused: int) -> Iterator[Block]:
    """Yield the blocks of a split with rows up to the place of that number."""
    rows = places[: number + 1 : fused]
    ends = [*rows, *(place for place in places if place > rows[-1])]
    weights = [0.0] * costs.n
    for start, stop in pairwise(ends):
        methods = (SplitMethod.ROWS,) if stop <= rows[-1] else ()
        for method in (*methods, SplitMethod.OUTPUT, SplitMethod.WHOLE):
            if costs.is_legal(start, stop, method):
                break
        draft = Block(start, stop, method, (0,) * costs.n + (1,))
        if method is SplitMethod.WHOLE:
            bounds = whole_shares(costs.n, min(range(costs.n), key=lambda k: (weights[k], k)))
        else:
            bounds = lean_shares(costs, draft)
        block = replace(draft, bounds=bounds)
        total = sum(one.weight_bytes for one in costs.model.operators[start:stop])
        for k, (low, high) in enumerate(pairwise(bounds)):
            part = (high - low) / bounds[-1] if method is SplitMethod.OUTPUT else float(low < high)
            weights[k] += total * part
        yield block


def _merged(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield blocks with consecutive ones of one device put together."""
    last: Block | None = None
    for block in blocks:
        if last is not None and last.method is block.method is SplitMethod.WHOLE and last.bounds == block.bounds:
            last = replace(last, stop=block.stop)
            continue
        if last is not None:
            yield last
        last = block
    if last is not None:
        yield last
