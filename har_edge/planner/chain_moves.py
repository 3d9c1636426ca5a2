"""Local search on the blocks of a chain of stages: shares, borders of blocks, methods, and who computes what.

A move is kept if the loads of all processors and links, each to a high power, add up to less: so the highest one
counts most, and yet the next ones count, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from har_edge.planner.simulation import Simulator
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_search import fits
from har_edge.planner.split_shares import shifted, whole_shares
from har_edge.tflite.split.plan import Block, SplitMethod

_POWERS = (16, 64)
_TURNS = 2
_SHIFTS = (1, -1, 3, -3)
_NEAR = 6  # places at the ends of a block where its work is shared

Blocks = tuple[Block, ...]


def improve_shares(costs: SplitCosts, blocks: Blocks, evaluations: int) -> Blocks:
    """Return the blocks with shares moved between devices while that lowers the highest loads."""
    return _climb(costs, blocks, _POWERS[0], _share_moves, evaluations)[0]


def improve_chain(costs: SplitCosts, blocks: Blocks, evaluations: int) -> Blocks:
    """Return the blocks after all moves that lower the highest loads, at most so many tried.

    A low power evens out many loads before the highest one falls, a high one is after that alone: they take turns, and
    each ends where the other may go on.
    """
    best, best_s = blocks, _highest(costs, blocks)
    for powers in (_POWERS, _POWERS[::-1]):
        found, left = blocks, evaluations
        for power in powers * _TURNS:
            found, left = _climb(costs, found, power, _moves, left)
            seconds = _highest(costs, found)
            if seconds < best_s:
                best, best_s = found, seconds
    return best


def _highest(costs: SplitCosts, blocks: Blocks) -> float:
    return max(Simulator(costs, border_first=False).loads(blocks))


def _climb(
    costs: SplitCosts,
    blocks: Blocks,
    power: int,
    moves: Callable[[SplitCosts, Blocks], Iterator[Blocks]],
    left: int,
) -> tuple[Blocks, int]:
    """Return the blocks after all moves that lower the sum of loads to this power, and how many may still be tried."""
    simulator, moved, seen = Simulator(costs, border_first=False), True, {blocks}
    scale = max(simulator.loads(blocks))

    def norm(each: Blocks) -> float:
        return sum((load / scale) ** power for load in simulator.loads(each))

    best = norm(blocks)
    while moved:
        moved = False
        for other in moves(costs, blocks):
            if other in seen:
                continue
            if not left:
                return blocks, 0
            left -= 1
            seen.add(other)
            value = norm(other)
            if value < best * (1 - 1e-9) and fits(costs, other, border_first=False):
                blocks, best, moved = other, value, True
                break
    return blocks, left


def _share_moves(costs: SplitCosts, blocks: Blocks) -> Iterator[Blocks]:
    """Yield the chain with the share of one device in one block made smaller for another one."""
    for amount in _SHIFTS:
        for index, block in enumerate(blocks):
            if block.method is SplitMethod.WHOLE:
                continue
            for number in range(1, costs.n):
                found = shifted(costs, blocks, index, number, amount)
                if found is not None:
                    yield found


def _moves(costs: SplitCosts, blocks: Blocks) -> Iterator[Blocks]:
    """Yield the neighbours of a chain."""
    yield from _share_moves(costs, blocks)
    for index, block in enumerate(blocks):
        if block.method is SplitMethod.WHOLE:
            owner = users(block)[0]
            for device in range(costs.n):
                if device != owner:
                    yield _with(blocks, index, replace(block, bounds=whole_shares(costs.n, device)))
    yield from _borders(costs, blocks)
    for index, block in enumerate(blocks):
        for other in (*_shared(costs, block, 2), *_alone(costs, block)):
            yield _with(blocks, index, other)
    yield from _relieved(costs, blocks)


def _borders(costs: SplitCosts, blocks: Blocks) -> Iterator[Blocks]:
    """Yield the chain with a border between two blocks moved, or taken away, or one more of them."""
    places = [*sorted(costs.model.places), costs.model.n]
    for index, (first, second) in enumerate(pairwise(blocks)):
        at = places.index(first.stop)
        for place in (places[at - 1], places[at + 1]):
            if first.start < place < second.stop:
                parts = (_resized(costs, first, first.start, place), _resized(costs, second, place, second.stop))
                yield from _legal(costs, blocks, index, index + 2, parts)
        for kept in (first, second):
            yield from _legal(costs, blocks, index, index + 2, (_resized(costs, kept, first.start, second.stop),))
    for index, block in enumerate(blocks):
        inside = [place for place in places if block.start < place < block.stop]
        for place in inside[:: max(1, len(inside) // 4)]:
            parts = (_resized(costs, block, block.start, place), _resized(costs, block, place, block.stop))
            yield from _legal(costs, blocks, index, index + 1, parts)


def _relieved(costs: SplitCosts, blocks: Blocks) -> Iterator[Blocks]:
    """Yield the chain with a part of the rows of the first or last operators of a whole block on another device."""
    places = [*sorted(costs.model.places), costs.model.n]
    for index, block in enumerate(blocks):
        if block.method is not SplitMethod.WHOLE:
            continue
        inside = [place for place in places if block.start < place < block.stop]
        for place in dict.fromkeys([*inside[:_NEAR], *inside[-_NEAR:]]):
            first, last = replace(block, stop=place), replace(block, start=place)
            for parts in (2, 4, 8):
                for shared in _shared(costs, first, parts):
                    yield (*blocks[:index], shared, last, *blocks[index + 1 :])
                for shared in _shared(costs, last, parts):
                    yield (*blocks[:index], first, shared, *blocks[index + 1 :])


def _shared(costs: SplitCosts, block: Block, parts: int) -> Iterator[Block]:
    """Yield a whole block by rows: one of so many parts of them on each of the other devices."""
    if block.method is not SplitMethod.WHOLE or not costs.is_legal(block.start, block.stop, SplitMethod.ROWS):
        return
    owner, draft = users(block)[0], replace(block, method=SplitMethod.ROWS)
    size = costs.axis_size(draft)
    for device in range(costs.n):
        if device != owner and size >= parts:
            first, last = min(owner, device), max(owner, device)
            middle = size // parts if device < owner else size - size // parts
            bounds = [0] * (first + 1) + [middle] * (last - first) + [size] * (costs.n - last)
            yield replace(draft, bounds=tuple(bounds))


def _alone(costs: SplitCosts, block: Block) -> Iterator[Block]:
    """Yield a shared block on each of its devices alone."""
    if block.method is not SplitMethod.WHOLE:
        for device in users(block):
            yield replace(block, method=SplitMethod.WHOLE, bounds=whole_shares(costs.n, device))


def _resized(costs: SplitCosts, block: Block, start: int, stop: int) -> Block | None:
    """Return the block with other operators and shares in proportion; None where its method cannot take these."""
    found = replace(block, start=start, stop=stop)
    if not costs.is_legal(start, stop, block.method):
        return None
    before, after = costs.axis_size(block), costs.axis_size(found)
    return found if before == after else replace(found, bounds=tuple(b * after // before for b in block.bounds))


def _legal(
    costs: SplitCosts, blocks: Blocks, start: int, stop: int, parts: tuple[Block | None, ...]
) -> Iterator[Blocks]:
    """Yield the chain with other blocks in the place of [start, stop), if all of them are legal."""
    found = [part for part in parts if part is not None and part.bounds[-1]]
    if len(found) == len(parts):
        yield (*blocks[:start], *found, *blocks[stop:])


def _with(blocks: Blocks, index: int, block: Block) -> Blocks:
    return (*blocks[:index], block, *blocks[index + 1 :])


def users(block: Block) -> tuple[int, ...]:
    """Return the devices that have a share of a block."""
    return tuple(k for k, (low, high) in enumerate(pairwise(block.bounds)) if low < high)
