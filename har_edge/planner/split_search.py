"""Find the blocks, methods and shares with which several devices answer one window soonest.

Dynamic programming over the places between blocks. A label is a plan for the operators before a place, and the block
that comes next: with it, the rows are known that others wait for, so the block before it can be timed. Times are maxima
and sums (simulation.py), so a label that is later or larger nowhere replaces another one at the same block. The search
is exact for the shares it is given while no place has more labels than are kept; then shares move by local search.

Fused blocks by rows: Zhao, Barijough, Gerstlauer, "DeepThings", IEEE TCAD 37(11), 2018; their borders by dynamic
programming: Zhou et al., "Adaptive parallel execution of deep neural networks on heterogeneous edge devices" (AOFL),
SEC 2019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import mul

from har_edge.planner.simulation import Simulator, Timeline
from har_edge.planner.split_costs import BlockTransfer, SplitCosts
from har_edge.planner.split_shares import Shares, even_shares, likely_shares, shifted
from har_edge.planner.transfer_times import TransferTimes
from har_edge.tflite.split.plan import Block, SplitMethod

WIDTH = 3  # labels kept for each block
BREADTH = 24  # labels kept for each place, times the former
HOPE = 1.0  # labels that promise more than this factor of the best latency are left out unless all are kept
MAX_PAYLOAD = 2**28 - 1  # MQTT 5.0, 2.1.4: the remaining length of a packet
_MOVES = (1, -1, 2, -2, 4, -4)
_EVALUATIONS = 400  # of local search
_TWO_BLOCKS = 3  # plans of two blocks that local search starts from


@dataclass(frozen=True, slots=True)
class SplitSolution:
    """The best blocks that were found; `exact` says that no other plan with shares that were tried is better."""

    blocks: tuple[Block, ...]
    latency_s: float
    border_first: bool
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Label:
    """The operators before a block are done, and what it takes has arrived."""

    bound_s: float
    timeline: Timeline
    weights: tuple[int, ...]
    tiles: tuple[int, ...]
    choice: _Choice
    before: _Label | None

    def beats(self, other: _Label) -> bool:
        """Return whether no figure of this label is above that of the other."""
        return (
            all(map(float.__le__, self.timeline.processors, other.timeline.processors))
            and all(map(float.__le__, self.timeline.links, other.timeline.links))
            and all(map(int.__le__, self.weights, other.weights))
            and all(map(int.__le__, self.tiles, other.tiles))
        )

    def blocks(self) -> tuple[Block, ...]:
        found, label = [self.choice.block], self.before
        while label is not None:
            found.append(label.choice.block)
            label = label.before
        return tuple(reversed(found))


def find_split(
    costs: SplitCosts,
    *,
    border_first: bool,
    shares: Shares = likely_shares,
    width: int = WIDTH,
    best_s: float = math.inf,
    full_s: float = 0.0,
) -> SplitSolution | None:
    """Return the blocks with the least latency below `best_s`; None where there are none, or none fits the memory.

    If labels are left out, those are kept that promise the least latency, a full memory counted as `full_s` seconds.
    """
    return _Search(costs, border_first, shares, width, best_s, full_s).run()


def best_split(
    costs: SplitCosts, *, border_first: bool, best_s: float = math.inf, quick: bool = False
) -> SplitSolution | None:
    """Return the best blocks below `best_s`, with shares that local search has moved; None where there are none.

    A `quick` search keeps one label a block, and tries the shares of all devices alone.
    """
    whole = sum(min(each[i] for each in costs.seconds) for i in range(costs.model.n))
    limited = any(device.kind.memory_bytes is not None for device in costs.devices)
    weights_of_memory = (0.0, whole, 8 * whole) if limited else (0.0,)
    best, best_weight = None, None
    for full_s in weights_of_memory:
        found = find_split(costs, border_first=border_first, shares=even_shares, width=1, best_s=best_s, full_s=full_s)
        if found is not None:
            best = improve(costs, found)
            best_s, best_weight = best.latency_s, full_s
    for found in _two_blocks(costs, border_first=border_first)[: 1 if quick else _TWO_BLOCKS]:
        moved = improve(costs, found)
        if moved.latency_s < best_s:
            best, best_s = moved, moved.latency_s
    # The wide search takes most of the time: once, with the weight that served the narrow one best. If that found
    # nothing below a limit of memory, memory comes first.
    if best_weight is None:
        best_weight = weights_of_memory[-1] if best_s == math.inf else 0.0
    for full_s in () if quick else (best_weight,):
        found = find_split(
            costs, border_first=border_first, shares=likely_shares, width=WIDTH, best_s=best_s, full_s=full_s
        )
        if found is not None:
            best = improve(costs, found)
            best_s = best.latency_s
    return best


def _two_blocks(costs: SplitCosts, *, border_first: bool) -> list[SplitSolution]:
    """Return rows in even shares up to a place, and all else on one device, the soonest first.

    The best blocks are as few if links are slow, and shares gain only after local search has moved rows to the
    device that goes on alone: the search above leaves them out before that.
    """
    simulator, found = Simulator(costs, border_first=border_first), list[SplitSolution]()
    for place in costs.model.places:
        if not (costs.is_legal(0, place, SplitMethod.ROWS) and costs.is_legal(place, costs.model.n, SplitMethod.WHOLE)):
            continue
        draft = Block(0, place, SplitMethod.ROWS, (0,) * costs.n + (1,))
        whole = Block(place, costs.model.n, SplitMethod.WHOLE, draft.bounds)
        for first in even_shares(costs, draft):
            for bounds in likely_shares(costs, whole):
                blocks = (replace(draft, bounds=first), replace(whole, bounds=bounds))
                if fits(costs, blocks, border_first=border_first):
                    found.append(SplitSolution(blocks, simulator.latency(blocks), border_first, exact=False))
    return sorted(found, key=lambda each: each.latency_s)


@dataclass(slots=True, eq=False)
class _Choice:
    """A block with shares: its work in seconds like those of `_Search.free`, and what moves to those that may follow.

    There is one for each block, so that they are compared by identity: a hash of all bounds would take longer than a
    step of the search.
    """

    block: Block
    work: float
    transfers: dict[_Choice, tuple[BlockTransfer, TransferTimes] | None] = field(default_factory=dict)


class _Search:
    def __init__(
        self, costs: SplitCosts, border_first: bool, shares: Shares, width: int, best_s: float, full_s: float
    ) -> None:
        self.costs, self.shares, self.width, self.full_s = costs, shares, width, full_s
        self.simulator = Simulator(costs, border_first=border_first)
        self.border_first, self.best_s = border_first, best_s
        self.best: tuple[Block, ...] | None = None
        self.exact, self.hasty = True, width <= WIDTH
        self.labels: dict[int, dict[_Choice, list[_Label]]] = {}
        self._choices: dict[int, list[_Choice]] = {}
        least = [min(each[i] for each in costs.seconds) for i in range(costs.model.n)]
        self.rates = [
            max((least[i] / each[i] for i in range(costs.model.n) if each[i] > 0), default=1.0)
            for each in costs.seconds
        ]
        self.total = sum(self.rates)
        self.rooms = [
            (k, self.simulator.room(k))
            for k, device in enumerate(costs.devices)
            if device.kind.memory_bytes is not None
        ]
        weights = [operator.weight_bytes for operator in costs.model.operators]
        self.rest_weights = [sum(weights[i:]) for i in range(costs.model.n + 1)]
        self.rest = self._least_work()

    def run(self) -> SplitSolution | None:
        n = self.costs.n
        for choice in self.choices(0):
            timeline = self.simulator.start(choice.block)
            self.keep(_Label(self.bound(timeline, choice), timeline, (0,) * n, (0,) * n, choice, None))
        for place in [*sorted(self.costs.model.places), self.costs.model.n]:
            found = self.labels.pop(place, {}).values()
            labels = [label for each in found for label in each if label.bound_s < self.best_s]
            labels.sort(key=self.promise)
            for number, label in enumerate(labels):
                if number >= self.width * BREADTH or (self.hasty and self.promise(label) > HOPE * self.best_s):
                    self.exact = False
                    break
                self.extend(label)
            for choice in {label.choice for label in labels}:
                choice.transfers.clear()  # no label before this place comes any more
        if self.best is None:
            return None
        return SplitSolution(self.best, self.best_s, self.border_first, self.exact)

    def choices(self, start: int) -> list[_Choice]:
        """Return the blocks that may begin at a place."""
        if start not in self._choices:
            self._choices[start] = [_Choice(block, self._work(block)) for block in self._blocks(start)]
        return self._choices[start]

    def _blocks(self, start: int) -> Iterator[Block]:
        costs = self.costs
        for stop in [*(place for place in costs.model.places if place > start), costs.model.n]:
            for method in (SplitMethod.ROWS, SplitMethod.OUTPUT, SplitMethod.WHOLE):
                if not costs.is_legal(start, stop, method):
                    continue
                draft = Block(start, stop, method, (0,) * costs.n + (1,))
                for bounds in self.shares(costs, draft):
                    yield replace(draft, bounds=bounds)

    def extend(self, label: _Label) -> None:
        """Run a label's block, with each block that may follow."""
        choice, block = label.choice, label.choice.block
        if block.stop == self.costs.model.n:
            if self.held(label, self.costs.transfer(block, None, self.border_first)) is not None:
                seconds = self.simulator.finish(label.timeline, block)
                if seconds < self.best_s:
                    self.best, self.best_s = label.blocks(), seconds
            return
        total, free = self.total, self.free(label.timeline) + choice.work
        latest = max(label.timeline.processors) + choice.work / total
        for after in self.choices(block.stop):
            if after.block.method is block.method is SplitMethod.WHOLE and after.block.bounds == block.bounds:
                continue  # one block of both costs less
            rest = after.work + self.rest[after.block.stop]
            if free + rest >= self.best_s * total:
                continue
            if self.hasty and latest + rest / total > HOPE * self.best_s:
                self.exact = False
                continue
            moved = self.moved(choice, after)
            if moved is None:
                continue
            transfer, times = moved
            held = self.held(label, transfer)
            if held is None:
                continue
            timeline = self.simulator.moved(label.timeline, times)
            bound = self.bound(timeline, after)
            if bound < self.best_s:
                self.keep(_Label(bound, timeline, *held, after, label))

    def moved(self, choice: _Choice, after: _Choice) -> tuple[BlockTransfer, TransferTimes] | None:
        """Return what moves between two blocks, None where a message would be too large."""
        if after not in choice.transfers:
            transfer = self.costs.transfer(choice.block, after.block, self.border_first)
            large = any(piece.bytes > MAX_PAYLOAD for piece in transfer.pieces)
            choice.transfers[after] = None if large else (transfer, self.simulator.timed(transfer))
        return choice.transfers[after]

    def free(self, timeline: Timeline) -> float:
        """Return the seconds before all processors are free, those of slow ones counted for less."""
        return float(sum(map(mul, self.rates, timeline.processors)))

    def bound(self, timeline: Timeline, choice: _Choice) -> float:
        """Return a lower bound: all processors at work until the end, from when they are free."""
        return (self.free(timeline) + choice.work + self.rest[choice.block.stop]) / self.total

    def promise(self, label: _Label) -> float:
        """Return the latency that a label promises: the last processor is free, and then all share the rest."""
        rest = label.choice.work + self.rest[label.choice.block.stop]
        latency = max(label.timeline.processors) + rest / self.total
        return latency + self.full_s * self.fullness(label) if self.full_s else latency

    def fullness(self, label: _Label) -> float:
        """Return how full the fullest memory would be if the remaining weights were shared evenly."""
        rest, limited = self.rest_weights[label.choice.block.start] // self.costs.n, 0.0
        for k, device in enumerate(self.costs.devices):
            if device.kind.memory_bytes is not None:
                taken = self.simulator.resident(k, label.weights[k] + rest, label.tiles[k])
                limited = max(limited, taken / device.kind.memory_bytes)
        return limited

    def _work(self, block: Block) -> float:
        shares = ((k, *block.share(k)) for k in range(self.costs.n))
        return sum(
            self.rates[k] * self.costs.step_seconds(block, k, low, high) for k, low, high in shares if low < high
        )

    def _least_work(self) -> dict[int, float]:
        """Return the least work from each place on, in seconds like those of `free`."""
        found = {self.costs.model.n: 0.0}
        for start in sorted(self.costs.model.places, reverse=True):
            found[start] = min(choice.work + found[choice.block.stop] for choice in self.choices(start))
        return found

    def held(self, label: _Label, transfer: BlockTransfer) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the weights and tiles of every device with this block, None where one's memory is too small."""
        weights = tuple([have + more for have, (more, _) in zip(label.weights, transfer.memory, strict=True)])
        tiles = tuple([max(have, more) for have, (_, more) in zip(label.tiles, transfer.memory, strict=True)])
        for k, room in self.rooms:
            if weights[k] + tiles[k] >= room:
                return None
        return weights, tiles

    def keep(self, label: _Label) -> None:
        """Keep a label unless another one at its block is as good."""
        labels = self.labels.setdefault(label.choice.block.stop, {}).setdefault(label.choice, [])
        if any(other.beats(label) for other in labels):
            return
        labels[:] = [other for other in labels if not label.beats(other)]
        labels.append(label)
        if len(labels) > self.width:
            labels.sort(key=self.promise)
            self.exact = False
            labels.pop()


def improve(costs: SplitCosts, solution: SplitSolution, evaluations: int = _EVALUATIONS) -> SplitSolution:
    """Return a solution with shares moved between neighbours while that makes it faster."""
    simulator = Simulator(costs, border_first=solution.border_first)
    best, left, moved = solution, evaluations, True
    while moved:
        moved = False
        for index, number, amount in _moves(costs, best.blocks):
            blocks = shifted(costs, best.blocks, index, number, amount)
            if blocks is None:
                continue
            if not left:
                return best
            left -= 1
            seconds = simulator.latency(blocks)
            if seconds < best.latency_s * (1 - 1e-9) and fits(costs, blocks, border_first=solution.border_first):
                best, moved = replace(best, blocks=blocks, latency_s=seconds), True
    return best


def _moves(costs: SplitCosts, blocks: Sequence[Block]) -> list[tuple[int, int, int]]:
    return [
        (index, number, amount)
        for amount in _MOVES
        for index, block in enumerate(blocks)
        if block.method is not SplitMethod.WHOLE
        for number in range(1, costs.n)
    ]


def fits(costs: SplitCosts, blocks: Sequence[Block], *, border_first: bool) -> bool:
    """Return whether every device's memory, and a message, hold what the blocks need."""
    simulator = Simulator(costs, border_first=border_first)
    sums = simulator.sums(blocks)
    return sums.largest_bytes <= MAX_PAYLOAD and all(
        device.kind.memory_bytes is None or taken <= device.kind.memory_bytes
        for device, taken in zip(costs.devices, simulator.memory(sums), strict=True)
    )
