"""Choose, for each tensor between two blocks, how its pieces travel: as they are, or packed in a way that is allowed.

A packed piece is shorter on every link, and costs the processors of both ends. So what is best at one place depends on
what binds there. The choices follow each other along the blocks, by dynamic programming: a label is a choice for all
places so far, and one that is later or larger nowhere replaces another one. The result is the best of all choices as
long as no label is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import le
from typing import Protocol

from har_edge.planner.plan import Objective
from har_edge.planner.simulation import Simulator, SplitSums, Timeline
from har_edge.planner.split_costs import UNPACKED, BlockTransfer, PackingCost, SplitCosts
from har_edge.tflite.split.plan import Block

WIDTH = 48  # labels kept at a place
_GAIN = 1 - 1e-9  # packing that gains less is left out


@dataclass(frozen=True, slots=True)
class FlowPackings:
    """The way at each place whose tensor is packed, by name, what the plan takes then, and whether none is better."""

    ways: Mapping[int, str]
    value_s: float
    exact: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Label:
    """The ways at the places so far, and what they lead to."""

    ways: tuple[str, ...]
    state: _State
    figures: tuple[float, ...]


class _State(Protocol):
    """The times that the choices so far lead to; `figures` are such that none may be larger in a better state."""

    @property
    def figures(self) -> tuple[float, ...]: ...

    def after(self, transfer: BlockTransfer) -> _State: ...

    def value(self) -> float: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Latency:
    simulator: Simulator
    timeline: Timeline
    last: Block

    @property
    def figures(self) -> tuple[float, ...]:
        return (*self.timeline.processors, *self.timeline.links)

    def after(self, transfer: BlockTransfer) -> _Latency:
        return _Latency(self.simulator, self.simulator.advance(self.timeline, transfer), self.last)

    def value(self) -> float:
        return self.simulator.finish(self.timeline, self.last)


@dataclass(frozen=True, slots=True, eq=False)
class _Period:
    simulator: Simulator
    sums: SplitSums

    @property
    def figures(self) -> tuple[float, ...]:
        sums = self.sums
        return (*sums.message_s, *sums.up_bytes, *sums.down_bytes, *sums.broker_bytes)

    def after(self, transfer: BlockTransfer) -> _Period:
        sums = self.sums.copy()
        self.simulator.add_pieces(sums, transfer)
        return _Period(self.simulator, sums)

    def value(self) -> float:
        return max(self.simulator.busy(self.sums))


def choose_flow_packings(
    costs: SplitCosts,
    blocks: Sequence[Block],
    ways: Mapping[str, PackingCost],
    objective: Objective,
    *,
    border_first: bool,
    width: int = WIDTH,
) -> FlowPackings:
    """Return how the tensors between blocks should travel; of equal ways, the first one counts, and first none at all.

    Args:
        ways: The costs of each way that is allowed, by name, in the order of preference.
    """
    plain = costs.with_flows(packing=UNPACKED, packings={})
    variants = {"": plain, **{name: plain.with_flows(packing=cost) for name, cost in ways.items()}}
    simulator = Simulator(plain, border_first=border_first)
    start = _start(simulator, blocks, objective)
    transfers = [
        {name: one.transfer(block, after, border_first) for name, one in variants.items()}
        for block, after in pairwise(blocks)
    ]

    def value(chosen: Sequence[str]) -> float:
        state = start
        for name, each in zip(chosen, transfers, strict=True):
            state = state.after(each[name])
        return state.value()

    labels, exact = [_Label((), start, start.figures)], True
    for each in transfers:
        labels = _kept([_longer(label, name, each[name]) for label in labels for name in each])
        if len(labels) > width:
            labels, exact = sorted(labels, key=lambda label: label.state.value())[:width], False
    found = [label.ways for label in labels] + [(name,) * len(transfers) for name in variants]
    best = min(found, key=value)
    if not exact:
        best = _improved(best, list(variants), value)
    unpacked = ("",) * len(transfers)
    if value(best) >= value(unpacked) * _GAIN:
        best = unpacked
    chosen = {block.start: name for block, name in zip(blocks[1:], best, strict=True) if name}
    return FlowPackings(chosen, value(best), exact)


def _start(simulator: Simulator, blocks: Sequence[Block], objective: Objective) -> _State:
    """Return the state before the first block has run, with everything that no packing changes."""
    if objective is Objective.LATENCY:
        return _Latency(simulator, simulator.start(blocks[0]), blocks[-1])
    return _Period(simulator, simulator.sums(blocks, between=False))


def _longer(label: _Label, name: str, transfer: BlockTransfer) -> _Label:
    state = label.state.after(transfer)
    return _Label((*label.ways, name), state, state.figures)


def _kept(labels: Sequence[_Label]) -> list[_Label]:
    """Return the labels without those that another one replaces; of equal ones, the first stays."""
    kept = list[_Label]()
    for label in labels:
        if any(all(map(le, other.figures, label.figures)) for other in kept):
            continue
        kept = [other for other in kept if not all(map(le, label.figures, other.figures))]
        kept.append(label)
    return kept


def _improved(ways: tuple[str, ...], names: Sequence[str], value: Callable[[Sequence[str]], float]) -> tuple[str, ...]:
    """Return the ways with one after the other changed while that gains."""
    best, best_s, moved = ways, value(ways), True
    while moved:
        moved = False
        for place in range(len(ways)):
            for name in names:
                other = (*best[:place], name, *best[place + 1 :])
                seconds = value(other)
                if seconds < best_s * _GAIN:
                    best, best_s, moved = other, seconds, True
    return best
