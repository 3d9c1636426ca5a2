"""Find the chain of stages with most windows a second, where a stage is one device or several that share layers.

A stage of m devices runs blocks by rows or by output channels. Its period is first estimated for m equal devices, by
dynamic programming over its blocks; then over the cuts between stages, with devices in the order of their speed. The
best chain is laid out, its shares follow the speeds, and they move by local search on the exact loads.

Source: Yang et al., "PICO: pipeline inference framework for versatile CNNs on diverse mobile devices", arXiv
2206.08662, sections 4 and 5: stages by dynamic programming, tiles within a stage, unequal devices matched afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from har_edge.planner.chain_moves import improve_chain, improve_shares
from har_edge.planner.simulation import Simulator
from har_edge.planner.slice_graph import HEAD_BYTES
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_search import fits
from har_edge.planner.split_shares import proportional, speeds_of, whole_shares
from har_edge.tflite.split.plan import Block, SplitMethod

_LABELS = 4  # ways to run a stage, or to come to a place, that are kept
_FACTOR = 2.0  # blocks whose redundant work is more than this factor are not tried
_FINALISTS = 6  # chains that are laid out
_EVALUATIONS = 400  # of local search on shares, for each of these
_IMPROVED = 4  # of these, those whose blocks move, too
_MOVES = 2500  # of local search on blocks, for each of these


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to run operators on so many devices: the busiest one's seconds, bytes of a link and of the broker's."""

    seconds: float
    link_bytes: float
    broker_bytes: float
    weights: float
    blocks: tuple[tuple[int, int, SplitMethod], ...]


@dataclass(frozen=True, slots=True)
class _Chain:
    """Stages up to a place: seconds of the slowest, bytes of the broker's link, the stages and their devices."""

    period_s: float
    broker_bytes: float
    stages: tuple[tuple[int, _Way], ...]


def best_groups(costs: SplitCosts) -> tuple[Block, ...] | None:
    """Return the blocks of the best chain that was found; None where none fits the memory."""
    found = list[tuple[float, tuple[Block, ...]]]()
    for order in _orders(costs):
        for chain in _Chains(costs, order).find()[:_FINALISTS]:
            blocks = _lay_out(costs, order, chain)
            if fits(costs, blocks, border_first=False):
                blocks = improve_shares(costs, blocks, _EVALUATIONS)
                found.append((_period(costs, blocks), blocks))
    found.sort(key=lambda each: each[0])
    starts = [blocks for _, blocks in found[:_IMPROVED]]
    fastest = min(range(costs.n), key=lambda k: sum(costs.seconds[k]))
    alone = (Block(0, costs.model.n, SplitMethod.WHOLE, whole_shares(costs.n, fastest)),)
    if fits(costs, alone, border_first=False):
        starts.append(alone)  # from here on, as few messages as need be
    for blocks in starts:
        better = improve_chain(costs, blocks, _MOVES)
        found.append((_period(costs, better), better))
    return min(found, key=lambda each: each[0], default=(math.inf, None))[1]


def _period(costs: SplitCosts, blocks: tuple[Block, ...]) -> float:
    return Simulator(costs, border_first=False).forecast(blocks).period_s


def _orders(costs: SplitCosts) -> list[list[int]]:
    """Return the orders of devices to try: the fastest first, the slowest first."""
    speeds = speeds_of(costs, Block(0, costs.model.n, SplitMethod.WHOLE, (0,) * costs.n + (1,)))
    order = sorted(range(costs.n), key=lambda k: (-speeds[k], k))
    equal = max(speeds) - min(speeds) < 1e-9 * max(speeds)
    return [order] if equal else [order, order[::-1]]


class _Chains:
    """Dynamic programming over the places between stages."""

    def __init__(self, costs: SplitCosts, order: Sequence[int]) -> None:
        self.costs, self.order = costs, order
        self.places = [*sorted(costs.model.places), costs.model.n]
        self.fastest = min(range(costs.n), key=lambda k: sum(costs.seconds[k]))
        total = sum(costs.seconds[self.fastest]) or 1.0
        self.speed = [total / (sum(costs.seconds[k]) or total) for k in range(costs.n)]
        self.part_s = total / costs.n  # one device of several computes no more than its part whole
        self.ways = {m: self._ways(m) for m in range(1, costs.n + 1)}
        self.rate = costs.broker.link_bytes_per_s or math.inf

    def find(self) -> list[_Chain]:
        """Return the best chains, the fastest first."""
        n, last = self.costs.n, self.places[-1]
        chains: dict[tuple[int, int], list[_Chain]] = {(self.places[0], 0): [_Chain(0.0, 0.0, ())]}
        for place in self.places:
            for used in range(n + 1):
                for chain in chains.get((place, used), ()):
                    for stop, m, way in self._next(place, n - used):
                        period = self._period(way, self.order[used : used + m])
                        longer = _Chain(
                            max(chain.period_s, period),
                            chain.broker_bytes + way.broker_bytes,
                            (*chain.stages, (m, way)),
                        )
                        _keep_chain(chains.setdefault((stop, used + m), []), longer, self._value)
        found = [chain for (place, _), each in chains.items() if place == last for chain in each]
        return sorted(found, key=self._value)

    def _value(self, chain: _Chain) -> float:
        return max(chain.period_s, chain.broker_bytes / self.rate)

    def _next(self, start: int, left: int) -> Iterator[tuple[int, int, _Way]]:
        for m in range(1, left + 1):
            for stop, ways in self.ways[m].get(start, {}).items():
                for way in ways:
                    yield stop, m, way

    def _period(self, way: _Way, devices: Sequence[int]) -> float:
        """Return the seconds of a stage on these devices; inf where their memory is too small."""
        kinds = [self.costs.devices[k].kind for k in devices]
        for kind in kinds:
            if kind.memory_bytes is not None and kind.base_bytes + kind.growth * way.weights > kind.memory_bytes:
                return math.inf
        speed = sum(self.speed[k] for k in devices) / len(devices)
        return max(way.seconds / speed, *(way.link_bytes / kind.link_bytes_per_s for kind in kinds))

    def _ways(self, m: int) -> dict[int, dict[int, list[_Way]]]:
        """Return the ways to run the operators between two places on m devices."""
        found: dict[int, dict[int, list[_Way]]] = {}
        blocks = {start: list(self._blocks(start, m)) for start in self.places[:-1]}
        for start in self.places[:-1]:
            reached: dict[int, list[_Way]] = {start: [_Way(0.0, 0.0, 0.0, 0.0, ())]}
            for place in self.places[self.places.index(start) :]:
                for way in reached.get(place, ()):
                    for block in blocks.get(place, ()):
                        _keep_way(reached.setdefault(block[1], []), self._longer(way, block, m))
            del reached[start]
            found[start] = reached
        return found

    def _blocks(self, start: int, m: int) -> Iterator[tuple[int, int, SplitMethod]]:
        """Return the blocks from a place that m devices may run: one of all where there is one device."""
        fused = True
        for stop in (place for place in self.places if place > start):
            if m == 1:
                yield start, stop, SplitMethod.WHOLE
                continue
            if sum(self.costs.seconds[self.fastest][start:stop]) < self.part_s:
                yield start, stop, SplitMethod.WHOLE  # the others have more of the rest
            if fused and self.costs.is_legal(start, stop, SplitMethod.ROWS):
                whole = sum(self.costs.seconds[self.fastest][start:stop])
                fused = m * self._work(start, stop, SplitMethod.ROWS, m) <= _FACTOR * whole or stop == start + 1
                if fused:
                    yield start, stop, SplitMethod.ROWS
            if stop - start < 4 and self.costs.is_legal(start, stop, SplitMethod.OUTPUT):
                yield start, stop, SplitMethod.OUTPUT

    def _work(self, start: int, stop: int, method: SplitMethod, m: int) -> float:
        """Return the seconds of the busiest of m equal devices on a block, without the overhead of a run."""
        seconds = self.costs.step_seconds(*self._middle(start, stop, method, m))
        return seconds - self.costs.devices[self.fastest].kind.overhead_s

    def _middle(self, start: int, stop: int, method: SplitMethod, m: int) -> tuple[Block, int, int, int]:
        """Return a share in the middle of a block, the largest of m equal ones."""
        block = Block(start, stop, method, (0,) * self.costs.n + (1,))
        size = self.costs.axis_size(block)
        share = -(-size // m)
        low = min(size - share, (m // 2) * share)
        return block, self.fastest, max(0, low), max(0, low) + share

    def _longer(self, way: _Way, block: tuple[int, int, SplitMethod], m: int) -> _Way:
        """Return a way with one more block."""
        start, stop, method = block
        costs, kind = self.costs, self.costs.devices[self.fastest].kind
        drawn = self._middle(start, stop, method, m)
        draft, _, low, high = drawn
        tensor = costs.model.tensors[costs.model.places[start]]
        entering = float(tensor.bytes)
        if method is SplitMethod.ROWS:
            needed = costs.rows(start, stop, low, high).needed
            entering = tensor.bytes * ((needed[1] - needed[0]) / tensor.rows if needed else 1.0)
        if way.blocks:  # the same devices have a share of it
            entering -= tensor.bytes / m
        packing = costs.packing_at(start)
        entering, packed_s = packing.packed(max(0.0, entering))
        messages = 2 if way.blocks and method is SplitMethod.ROWS else 1 if m == 1 else 2
        taken = entering + messages * HEAD_BYTES
        # Each device sends about as much as it takes: what goes in at one block went out at another one.
        # One device that gives the answer has less of the other blocks.
        own = costs.step_seconds(*drawn) / (m if method is SplitMethod.WHOLE else 1)
        message_s, byte_s = kind.message_after(own / (2 * messages))
        busy = own + 2 * (messages * message_s + taken * byte_s + packed_s)
        weights = sum(one.weight_bytes for one in costs.model.operators[start:stop])
        share = (high - low) / costs.axis_size(draft) if method is SplitMethod.OUTPUT else 1.0
        return _Way(
            way.seconds + busy,
            way.link_bytes + taken * (1 if kind.duplex else 2),
            way.broker_bytes + m * taken * (1 if costs.broker.duplex else 2),
            way.weights + weights * share,
            (*way.blocks, block),
        )


def _keep_way(ways: list[_Way], way: _Way) -> None:
    """Keep a way unless another one is no worse; of too many, those with the fewest seconds."""
    if any(
        one.seconds <= way.seconds and one.broker_bytes <= way.broker_bytes and one.weights <= way.weights
        for one in ways
    ):
        return
    ways[:] = [
        one
        for one in ways
        if not (way.seconds <= one.seconds and way.broker_bytes <= one.broker_bytes and way.weights <= one.weights)
    ]
    ways.append(way)
    if len(ways) > _LABELS:
        ways.sort(key=lambda one: one.seconds)
        least = min(ways, key=lambda one: one.broker_bytes)
        small = min(ways, key=lambda one: one.weights)
        kept = [*ways[: _LABELS - 2], least, small]
        ways[:] = [one for one in ways if any(one is other for other in kept)]


def _keep_chain(chains: list[_Chain], chain: _Chain, value: Callable[[_Chain], float]) -> None:
    if chain.period_s == math.inf or any(
        one.period_s <= chain.period_s and one.broker_bytes <= chain.broker_bytes for one in chains
    ):
        return
    chains[:] = [
        one for one in chains if not (chain.period_s <= one.period_s and chain.broker_bytes <= one.broker_bytes)
    ]
    chains.append(chain)
    if len(chains) > _LABELS:
        chains.sort(key=value)
        chains.pop()


def _lay_out(costs: SplitCosts, order: Sequence[int], chain: _Chain) -> tuple[Block, ...]:
    """Return the blocks of a chain with the shares of all devices."""
    found, used = [], 0
    for m, way in chain.stages:
        devices = sorted(order[used : used + m])
        loads = dict.fromkeys(devices, 0.0)
        used += m
        for start, stop, method in way.blocks:
            draft = Block(start, stop, method, (0,) * costs.n + (1,))
            if method is SplitMethod.WHOLE:
                bounds = whole_shares(costs.n, min(devices, key=lambda k: (loads[k], k)))
            else:
                bounds = proportional(costs, draft, devices)
            block = replace(draft, bounds=bounds)
            for k in devices:
                low, high = block.share(k)
                loads[k] += costs.step_seconds(block, k, low, high) if low < high else 0.0
            found.append(block)
    return tuple(found)
