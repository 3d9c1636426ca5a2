"""The choices about the flows of a split, once its blocks are known: how they are packed, and through whose broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import msgspec

from har_edge.errors import ConfigError
from har_edge.planner.flow_packing import choose_flow_packings
from har_edge.planner.plan import Objective, Plan
from har_edge.planner.profile import PackingFigures, Profile
from har_edge.planner.split_costs import SOURCE, UNPACKED, PackingCost, SplitCosts
from har_edge.planner.split_plan import SplitCandidate, find_candidate, make_candidate, with_packing
from har_edge.planner.split_search import fits
from har_edge.tflite.model import Model
from har_edge.units import plural

AUTO = "auto"  # among ways to pack: each tensor in the way that is best for it
LOSSLESS = "zstd"
_GAIN = 1 - 1e-9
_MOST = 8  # senders whose brokers are tried in every combination


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """The choices that are allowed for flows: ways to pack them, and brokers on the devices.

    With `apart`, each tensor travels in its own way, else all travel alike.
    """

    ways: Mapping[str, PackingFigures] = field(default_factory=dict)
    apart: bool = False
    own_brokers: bool = False


@dataclass(frozen=True, slots=True)
class ChosenFlows:
    """A candidate, whose costs have its packings and brokers, and the names of these packings: one way for all, or one
    for each place.
    """

    candidate: SplitCandidate
    packing: str = ""
    packings: Mapping[int, str] = field(default_factory=dict)

    def name(self, plan: Plan, model: Model) -> Plan:
        """Return the plan of the candidate with what its flows are told."""
        places, tensors = self.candidate.costs.model.places, model.main.tensors
        by_tensor = {tensors[places[place]].name: way for place, way in self.packings.items()}
        return msgspec.structs.replace(plan, packing=self.packing or msgspec.UNSET, packings=by_tensor or msgspec.UNSET)

    @property
    def remarks(self) -> list[str]:
        """Lines for a person."""
        if not self.packings:
            return []
        ways = dict[str, list[str]]()
        for place, way in sorted(self.packings.items()):
            ways.setdefault(way, []).append(str(place))
        parts = [f"{way} before operator{'s' * (len(places) > 1)} {', '.join(places)}" for way, places in ways.items()]
        plain = len(self.candidate.blocks) - 1 - len(self.packings)
        rest = f", as they are at {plural(plain, 'other place')}" if plain else ""
        return [f"activations travel as {'; '.join(parts)}{rest}; cut with --pack {AUTO}"]


def find_options(profile: Profile, packings: Sequence[str], *, own_brokers: bool) -> FlowOptions:
    """Return what may be done with flows. Raises ConfigError for a way to pack that the profile has no figures for.

    `auto` allows the lossless way, beside those that are named.
    """
    apart = AUTO in packings
    names = dict.fromkeys([*([LOSSLESS] if apart else []), *(name for name in packings if name != AUTO)])
    return FlowOptions({name: _figures(profile, name) for name in names}, apart, own_brokers)


def _figures(profile: Profile, name: str) -> PackingFigures:
    found = profile.packing(name)
    if found is None:
        known = () if profile.packings is msgspec.UNSET else [one.packing for one in profile.packings]
        raise ConfigError(
            f"--pack {name} came, but the profile has no figures for it (it has {', '.join(known) or 'none'}); "
            "measure them with 'har-edge profile --again'"
        )
    return found


def packing_cost(costs: SplitCosts, profile: Profile, name: str) -> PackingCost | None:
    """Return what a way to pack activations costs on these devices, None where the profile has no figures for it."""
    way = profile.packing(name)
    return None if way is None else _cost(costs, profile, way)


def planned_costs(
    costs: SplitCosts, profile: Profile, model: Model, packing: str, packings: Mapping[str, str]
) -> SplitCosts:
    """Return the costs with the packings of a plan: one for all, or by name of the tensor; others are none."""
    places = {model.main.tensors[index].name: place for place, index in costs.model.places.items() if index >= 0}
    found = {places[name]: packing_cost(costs, profile, way) for name, way in packings.items() if name in places}
    return costs.with_flows(
        packing=packing_cost(costs, profile, packing) or UNPACKED,
        packings={place: cost for place, cost in found.items() if cost is not None},
    )


def _cost(costs: SplitCosts, profile: Profile, way: PackingFigures) -> PackingCost:
    """Return a measured way to pack, with the seconds of one end on the fastest device."""
    work = sum(max(0.0, segment.seconds - profile.overhead_s) for segment in profile.segments)
    scale = min(map(sum, costs.seconds)) / work if work else 1.0
    return PackingCost(way.ratio, way.seconds_per_byte / 2 * scale)


def choose_flows(
    candidate: SplitCandidate, options: FlowOptions, profile: Profile, objective: Objective
) -> ChosenFlows:
    """Return the best that the options allow for a candidate; for throughput its blocks may be others then."""
    candidate = _with_own_brokers(candidate, objective) if options.own_brokers else candidate
    ways = {name: _cost(candidate.costs, profile, way) for name, way in options.ways.items()}
    packed = {name: with_packing(candidate, cost, objective) for name, cost in ways.items()}
    if options.apart:
        bases = {(one.blocks, one.border_first): one for one in (candidate, *packed.values())}
        found = [_apart(one, ways, objective) for one in bases.values()]
    else:
        found = [ChosenFlows(one, packing=name) for name, one in packed.items()]
    return min([ChosenFlows(candidate), *found], key=lambda one: one.candidate.value(objective))


def _apart(candidate: SplitCandidate, ways: Mapping[str, PackingCost], objective: Objective) -> ChosenFlows:
    """Return the blocks of a candidate with the best way for each tensor between them."""
    costs, blocks, border_first = candidate.costs, candidate.blocks, candidate.border_first
    found = choose_flow_packings(costs, blocks, ways, objective, border_first=border_first).ways
    costs = costs.with_flows(packing=UNPACKED, packings={place: ways[name] for place, name in found.items()})
    return ChosenFlows(make_candidate(costs, blocks, border_first=border_first), packings=found)


def _with_own_brokers(candidate: SplitCandidate, objective: Objective) -> SplitCandidate:
    """Return a candidate whose devices carry brokers where that gains; its blocks may be others then."""
    costs = candidate.costs
    other = find_candidate(costs.with_flows(own_brokers=frozenset(range(costs.n))), objective)
    bases = [candidate, *([] if other is None else [other])]
    return min((_carried(base, objective) for base in bases), key=lambda one: one.value(objective))


def _carried(candidate: SplitCandidate, objective: Objective) -> SplitCandidate:
    """Return the blocks of a candidate with the brokers that serve them best, and no more of these than that takes."""
    plain = candidate.costs.with_flows(own_brokers=frozenset())
    blocks, border_first = candidate.blocks, candidate.border_first

    def carrying(devices: frozenset[int]) -> SplitCandidate:
        return make_candidate(plain.with_flows(own_brokers=devices), blocks, border_first=border_first)

    def is_better(one: SplitCandidate, than: SplitCandidate) -> bool:
        return one.value(objective) < than.value(objective) * _GAIN and fits(
            one.costs, blocks, border_first=border_first
        )

    senders = senders_of(candidate)
    best = carrying(frozenset())
    if len(senders) <= _MOST:
        for count in range(1, len(senders) + 1):
            for devices in combinations(senders, count):
                one = carrying(frozenset(devices))
                best = one if is_better(one, best) else best
        return best
    every = carrying(frozenset(senders))
    best, moved = (every if is_better(every, best) else best), True
    while moved:
        moved = False
        for device in senders:
            one = carrying(best.costs.own_brokers ^ {device})
            if is_better(one, best):
                best, moved = one, True
    return best


def senders_of(candidate: SplitCandidate) -> list[int]:
    """Return the devices that send to others."""
    blocks = candidate.blocks
    transfers = [candidate.costs.transfer(block, after, candidate.border_first) for block, after in pairwise(blocks)]
    return sorted({piece.sender for one in transfers for piece in one.pieces if piece.sender != SOURCE})
