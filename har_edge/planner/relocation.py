"""Place stages on nodes that come and go: stages without a node move at once, and nodes become devices for the planner.

A relocation keeps the cuts and needs no planner, so it takes no time. Several stages may then share a node.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from har_edge.planner.devices import DeviceEntry, DevicesFile, PlannerDevice, make_devices, names_of
from har_edge.planner.plan import PlanningProblem
from har_edge.planner.profile import Profile
from har_edge.units import duration, speed

# The planner assumes this link until a node has measured its own: Wi-Fi of a Raspberry Pi.
LINK_BYTES_PER_S = 5e6
LATENCY_S = 0.002
# Processor seconds of a message on the reference device, where no profile measured it.
MESSAGE_S = 0.0002
# Figures within this factor count as equal, so that similar nodes form one device class.
GRAIN = 1.15

# One replica of a stage: generation, stage, replica.
Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may run stages; None stands for a part of the link that was not measured.

    `speed` is a factor on the reference profile. The node proved to be `slow` times as slow as that. With `own_broker`
    it carries a broker of its own.
    """

    name: str
    speed: float
    cores: int = 1
    memory_bytes: int | None = None
    link_bytes_per_s: float | None = None
    latency_s: float | None = None
    slow: float = 1.0
    own_broker: bool = False

    @property
    def effective_speed(self) -> float:
        """The speed to plan with."""
        return self.speed / self.slow


@dataclass(frozen=True, slots=True)
class StageLoad:
    """The load of a stage: seconds for a window on the reference device, and bytes; `node` runs it, if not None.

    Loads that are `apart` in the same group should not be on one node, as long as there are nodes for it.
    """

    key: Key
    seconds: float
    memory_bytes: int
    node: str | None = None
    apart: int | None = None


@dataclass(frozen=True, slots=True)
class StagePlacement:
    """A stage, or one of its replicas, on a node."""

    stage: int
    node: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted figures of a placement: seconds between windows, of one window, and of each stage for a window."""

    period_s: float
    latency_s: float
    stages_s: tuple[float, ...]


def relocate(loads: Sequence[StageLoad], candidates: Sequence[Candidate]) -> dict[Key, str]:
    """Return a node for every load that has none among the candidates; empty without candidates.

    The largest load goes first, each to the node with memory for it that will then be least busy. A spare node
    therefore comes before a busy one, unless it is much slower. If no node has the memory, the load goes to the node
    that lacks least, since a pipeline that may be short of memory is better than one that stands still. Replicas of a
    stage share a node only when they must; loads that are apart, when they must or when memory is short.
    """
    busy = {candidate.name: 0.0 for candidate in candidates}
    used = dict.fromkeys(busy, 0)
    stages: dict[str, set[tuple[int, int]]] = {name: set() for name in busy}
    groups = {name: set[int | None]() for name in busy}
    by_name = {candidate.name: candidate for candidate in candidates}

    def put(load: StageLoad, name: str) -> None:
        busy[name] += load.seconds / by_name[name].effective_speed
        used[name] += load.memory_bytes
        stages[name].add(load.key[:2])
        groups[name].add(load.apart)

    orphans = []
    for load in loads:
        if load.node in by_name:
            put(load, load.node)
        else:
            orphans.append(load)
    found: dict[Key, str] = {}
    for load in sorted(orphans, key=lambda load: (-load.seconds, load.key)) if by_name else ():

        def rank(name: str, load: StageLoad = load) -> tuple[bool, float, bool, float, int, str]:
            limit = by_name[name].memory_bytes
            lacking = 0 if limit is None else max(0, used[name] + load.memory_bytes - limit)
            then = busy[name] + load.seconds / by_name[name].effective_speed
            together = load.apart is not None and load.apart in groups[name]
            return (load.key[:2] in stages[name], lacking, together, then, len(stages[name]), name)

        found[load.key] = min(by_name, key=rank)
        put(load, found[load.key])
    return found


def apply_overrides(candidates: Sequence[Candidate], file: DevicesFile | None) -> list[Candidate]:
    """Return the candidates with the figures of a devices file, which override what nodes report of themselves."""
    known = {name: entry for entry in (file.device if file else ()) for name in names_of(entry)}
    found = []
    for candidate in candidates:
        entry = known.get(candidate.name, DeviceEntry(candidate.name))
        found.append(
            replace(
                candidate,
                speed=1.0 if entry.profile else candidate.speed if entry.speed is None else entry.speed,
                memory_bytes=candidate.memory_bytes if entry.memory_bytes is None else entry.memory_bytes,
                link_bytes_per_s=_first(entry.link_bytes_per_s, candidate.link_bytes_per_s),
                latency_s=_first(entry.latency_s, candidate.latency_s),
            )
        )
    return found


def devices_of(
    candidates: Sequence[Candidate], reference: Profile, file: DevicesFile | None, path: Path
) -> tuple[list[PlannerDevice], list[str]]:
    """Return candidates, with the overrides applied, as devices for the planner, and remarks on the origin of the
    figures.

    `file`, at `path`, may name a profile of a node and its time for a message. Raises ConfigError as `make_devices`
    does.
    """
    known = {name: entry for entry in (file.device if file else ()) for name in names_of(entry)}
    entries, assumed = [], []
    for candidate in candidates:
        entry, link, latency = known.get(candidate.name), candidate.link_bytes_per_s, candidate.latency_s
        message = entry.message_s if entry else None
        if message is None and reference.message is None:
            message = _round(MESSAGE_S / candidate.effective_speed)
        if link is None or latency is None:
            assumed.append(candidate.name)
        entries.append(
            DeviceEntry(
                candidate.name,
                speed=candidate.effective_speed,
                profile=entry.profile if entry else None,
                memory_bytes=candidate.memory_bytes,
                link_bytes_per_s=LINK_BYTES_PER_S if link is None else link,
                latency_s=LATENCY_S if latency is None else latency,
                message_s=message,
            )
        )
    remarks = []
    if assumed:
        remarks.append(
            f"the link of {', '.join(assumed)} was not measured: taken for {speed(LINK_BYTES_PER_S)} and "
            f"{duration(LATENCY_S)} one way"
        )
    devices, more = make_devices(DevicesFile(entries), path, reference)
    return devices, [*remarks, *more]


def quantize(candidate: Candidate) -> Candidate:
    """Return a candidate with its effective speed, and with figures rounded to about 15 %.

    Similar nodes then form one device class for the planner.
    """
    link, latency, memory = candidate.link_bytes_per_s, candidate.latency_s, candidate.memory_bytes
    return replace(
        candidate,
        speed=_round(candidate.effective_speed),
        slow=1.0,
        memory_bytes=None if memory is None else _floor(memory),
        link_bytes_per_s=None if link is None else _round(link),
        latency_s=None if latency is None else _round(latency),
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _round(value: float) -> float:
    """Round to a power of GRAIN."""
    return float(f"{GRAIN ** round(math.log(value, GRAIN)):.6g}") if 0 < value < math.inf else value


def _floor(size: int) -> int:
    """Round down to two significant digits."""
    unit: int = 10 ** max(0, len(str(size)) - 2)
    return size - size % unit


def forecast(
    planning: PlanningProblem, cuts: Collection[int], places: Sequence[StagePlacement], cores: Mapping[str, int]
) -> Forecast | None:
    """Return the figures of a placement with several stages on a node; None for cuts or nodes that it does not know.

    A node is limited by its cores together, by one core for each slice, and by its link. A node whose memory does not
    hold its stages has an infinite period.
    """
    try:
        edges = planning.slice_graph.walk([planning.slice_graph.bounds.index(cut) for cut in sorted(cuts)])
    except ValueError:
        return None
    kinds = {name: number for number, names in enumerate(planning.names) for name in names}
    if edges is None or any(place.node not in kinds for place in places):
        return None
    costs, turns = planning.costs, {place.stage: 0 for place in places}
    for place in places:
        turns[place.stage] += 1
    stages_s, latency_s = [0.0] * len(edges), [0.0] * len(edges)
    longest, compute, message, link = (dict.fromkeys(kinds, 0.0) for _ in range(4))
    memory = dict.fromkeys(kinds, 0)
    for place in places:
        kind, edge, share = kinds[place.node], edges[place.stage], 1 / turns[place.stage]
        busy = float(costs.compute_s[kind, edge] + costs.message_s[kind, edge])
        stages_s[place.stage] = max(stages_s[place.stage], busy)
        latency_s[place.stage] = max(latency_s[place.stage], float(costs.latency_s[kind, edge]))
        longest[place.node] = max(longest[place.node], busy * share)
        compute[place.node] += float(costs.compute_s[kind, edge]) * share
        message[place.node] += float(costs.message_s[kind, edge]) * share
        link[place.node] += float(costs.link_s[kind, edge]) * share
        memory[place.node] += int(costs.memory_bytes[kind, edge]) - planning.kinds[kind].base_bytes

    def period(name: str) -> float:
        kind = planning.kinds[kinds[name]]
        if kind.memory_bytes is not None and memory[name] + kind.base_bytes > kind.memory_bytes:
            return math.inf
        return max(longest[name], message[name] + compute[name] / cores.get(name, 1), link[name])

    return Forecast(max(period(place.node) for place in places), sum(latency_s), tuple(stages_s))
