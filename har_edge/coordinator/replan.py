"""When other cuts or other nodes are worth a change: what is asked of the planner, and what its answer is worth.

A change costs every device a load and the sensors a switch, so it is made only for a gain above a margin, some time
after the last change, and, where nothing but measured speeds speaks for it, when two looks in a row agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from har_edge.config.pipeline import generation_id
from har_edge.coordinator.failover import StageCost
from har_edge.planner.plan import Objective
from har_edge.planner.relocation import Candidate, Forecast, quantize
from har_edge.protocol.deployment import Generation, Placement
from har_edge.tflite.manifest import SliceManifest
from har_edge.units import duration

# Nodes that start together shall be in the first plan together.
FIRST_S = 2.0
# Cuts, and who runs the slices.
_Arrangement = tuple[int, frozenset[tuple[int, str]]]
# Gains that come of ties and roundings.
_SAME = 0.01
# A request that asks for slices, not for a decision.
SLICES = 0
BACKOFF_S, MOST_BACKOFF_S = 2.0, 60.0
# For how long a plan that no probe came through is not tried again, at most.
MOST_REFUSED_S = 1800.0


@dataclass(frozen=True, slots=True)
class PlacementSpec:
    """The plan that a person asked for: the best, or one with so many slices, with these cuts, or with this split (the
    generation id of its manifest, and how many shards and slices it has). With `shards`, the best may share layers.

    `homes` are the nodes that a plan names for each stage, several of which take turns; empty where none names any.
    """

    objective: Objective = Objective.THROUGHPUT
    stages: int | None = None
    cuts: tuple[int, ...] | None = None
    replicas: int = 1
    split: tuple[int, int] | None = None
    homes: tuple[tuple[str, ...], ...] = ()
    shards: bool = False

    @property
    def named(self) -> frozenset[str]:
        """The nodes that the plan names."""
        return frozenset(name for names in self.homes for name in names)

    @property
    def most_nodes(self) -> int | None:
        """How many nodes a plan can use; None where the number of its stages is open."""
        if self.split is not None:
            return len(self.named) + self.homes.count(()) if self.homes else self.split[1]
        stages = self.stages if self.cuts is None else len(self.cuts) + 1
        return None if stages is None else stages * self.replicas

    def unmet(self, generation: Generation, model_sha256: str, nodes: Collection[str]) -> str:
        """Say what about a generation is not as asked for, where these nodes are there; empty where nothing is."""
        if generation.manifest.model_sha256 != model_sha256:
            return "it is of another model"
        slices = generation.manifest.slices
        if self.split is not None and generation_id(generation.manifest) != self.split[0]:
            return "another split was asked for"
        if self.split is None and not self.shards and any(entry.steps for entry in slices):
            return "no split was asked for"
        if self.cuts is not None and cuts_of(generation.manifest) != self.cuts:
            return f"other cuts were asked for: {', '.join(map(str, self.cuts)) or 'none'}"
        if self.cuts is None and self.stages is not None and len(slices) != self.stages:
            return f"{self.stages} stages were asked for"
        for stage, names in enumerate(self.homes):
            found = {one.node for one in generation.placements if one.stage == stage}
            absent = [name for name in names if name in nodes and name not in found]
            if absent:
                return f"stage {stage} belongs on {' and '.join(absent)} by the plan"
        if self.homes and self.named.issubset(nodes):
            return ""
        used = len({placement.node for placement in generation.placements})
        fixed = self.cuts is not None or self.stages is not None or self.split is not None
        if fixed and used < len(slices) <= len(nodes):
            return f"{len(slices)} stages were asked for, and there are nodes for each"
        return ""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The request to the planner: a plan for these nodes (speeds as they report), compared with the deployed one.

    Without nodes, nothing but the slices of what is deployed.
    """

    number: int
    candidates: tuple[Candidate, ...]
    generations: tuple[Generation, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class PlanResponse:
    """The planner's response; `problem` says why there is no plan.

    `current` is what the deployed generation takes on the same nodes, None where it cannot run there. `stage_costs` are
    by generation, those of this plan under 0; `contents` are slices by hash. `reference_speed` is the speed (as in
    NodeCapabilities) of the device that costs and forecasts refer to.
    """

    number: int
    problem: str = ""
    remarks: tuple[str, ...] = ()
    manifest: SliceManifest | None = None
    placements: tuple[Placement, ...] = ()
    forecast: Forecast | None = None
    current: Forecast | None = None
    stage_costs: Mapping[int, tuple[StageCost, ...]] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)
    reference_speed: float = 0.0

    def generation(self, epoch: int) -> Generation:
        """Return what it comes to; AssertionError where there is no plan."""
        assert self.manifest is not None and self.forecast is not None
        return Generation(epoch, self.manifest, self.placements, self.forecast.stages_s, self.forecast.latency_s)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to roll a plan out, and why; an empty text is not worth a line."""

    go: bool
    text: str


@dataclass(frozen=True, slots=True)
class _View:
    """The basis of a decision; while it stays the same, there is nothing to decide anew."""

    names: frozenset[str]
    figures: frozenset[tuple[str, float]]
    homes: frozenset[tuple[int, str]]
    unmet: str


@dataclass(slots=True)
class Replan:
    """Asks for plans and judges them."""

    spec: PlacementSpec
    margin: float
    settle_s: float
    outstanding: PlanRequest | None = None
    _number: int = 0
    _asked: _View | None = None
    _decided: _View | None = None
    _agreed: bool = False
    _not_before: float = 0.0
    _judged_at: float = float("-inf")
    _failures: int = 0
    _tried: _Arrangement | None = None  # what is being rolled out: cuts, and who runs them
    _refused: dict[_Arrangement, tuple[int, float]] = field(default_factory=dict)

    def due(
        self,
        candidates: Sequence[Candidate],
        generations: Sequence[Generation],
        epoch: int,
        unmet: str,
        changed_at: float,
        now: float,
    ) -> PlanRequest | None:
        """Return what to ask the planner now, None where nothing is to be asked."""
        if self.outstanding is not None or not candidates or now < self._not_before:
            return None
        wanted = self.spec.most_nodes
        first = not epoch or (bool(unmet) and self._decided is None)
        wait_s = min(FIRST_S, self.settle_s) if first else self.settle_s
        named = self.spec.named.issubset(candidate.name for candidate in candidates)
        complete = not epoch and wanted is not None and len(candidates) >= wanted and named
        view = _View(
            frozenset(candidate.name for candidate in candidates),
            frozenset((candidate.name, quantize(candidate).speed) for candidate in candidates),
            _homes(next((one.placements for one in generations if one.epoch == epoch), ())),
            unmet,
        )
        if self._is_drift(view) and now < self._judged_at + self.settle_s:
            return None
        if view == self._decided or (now < changed_at + wait_s and not complete):
            return None
        self._number += 1
        self._asked = view
        self.outstanding = PlanRequest(self._number, tuple(candidates), tuple(generations), epoch)
        return self.outstanding

    def judge(self, response: PlanResponse, current: Generation | None, unmet: str, now: float) -> Decision | None:
        """Return the decision on a plan that is worth a change; None for a response that nobody awaits any more."""
        if self.outstanding is None or response.number != self.outstanding.number:
            return None
        self.outstanding, self._judged_at = None, now
        asked, drift = self._asked, self._asked is not None and self._is_drift(self._asked)
        if response.problem:
            self._decided, self._not_before = asked, now + self.settle_s
            return Decision(False, f"no plan: {response.problem}")
        assert response.manifest is not None and response.forecast is not None and asked is not None
        if current is None:
            return Decision(True, f"first plan for {_nodes(len(asked.names))}")
        if response.manifest == current.manifest and _homes(response.placements) == _homes(current.placements):
            self._decided, self._agreed = asked, False
            return Decision(False, "")
        # A plan that leaves the same unmet, as where memory is short, must gain as any other.
        if unmet and unmet != self.spec.unmet(response.generation(0), response.manifest.model_sha256, asked.names):
            return Decision(True, unmet)
        refused_until = self._refused.get((generation_id(response.manifest), _homes(response.placements)), (0, now))[1]
        if now < refused_until:
            self._not_before = min(refused_until, now + MOST_BACKOFF_S)
            return Decision(False, f"no probe came through this plan: not tried again for {refused_until - now:.0f} s")
        new, old = self._value(response.forecast), self._value(response.current)
        gain = 1 - new / old if 0 < old < math.inf else float(old > new)
        text = f"{self._what()} {_ms(new)} instead of {_ms(old)}"
        if gain <= self.margin:
            self._decided, self._agreed = asked, False
            why = f"another plan: {text}; that gains {gain:.0%}, and {self.margin:.0%} is the margin"
            return Decision(False, "" if drift or abs(gain) <= _SAME else why)
        text += f", which gains {gain:.0%}"
        if drift and not self._agreed:
            self._agreed, self._not_before = True, now + self.settle_s
            return Decision(False, f"measured speeds speak for another plan: {text}; looking once more")
        return Decision(True, text)

    def _is_drift(self, view: _View) -> bool:
        """Return whether only measured speeds speak for a new decision."""
        old = self._decided
        return old is not None and (old.names, old.homes, old.unmet) == (view.names, view.homes, view.unmet)

    def started(self, manifest: SliceManifest, placements: Sequence[Placement]) -> None:
        """Take note that a plan is being rolled out: when it is there, it is what was decided."""
        assert self._asked is not None
        self._tried = generation_id(manifest), _homes(placements)
        self._decided, self._agreed = replace(self._asked, homes=_homes(placements), unmet=""), False

    def failed(self, now: float) -> float:
        """Take note of a rollout that was withdrawn; return after how many seconds the next may begin."""
        wait_s: float = min(MOST_BACKOFF_S, BACKOFF_S * 2.0 ** min(self._failures, 8))
        self._failures += 1
        self._decided, self._not_before, self._agreed = None, now + wait_s, False
        return wait_s

    def refuse(self, now: float) -> None:
        """Do not try what was rolled out last again for a while, twice as long each time: nobody is to blame for it."""
        if self._tried is None:
            return
        count = self._refused.get(self._tried, (0, now))[0]
        refuse_s = min(MOST_REFUSED_S, MOST_BACKOFF_S * 2.0**count)
        self._refused = {tried: one for tried, one in self._refused.items() if now < one[1] + MOST_REFUSED_S}
        self._refused[self._tried] = min(count + 1, 16), now + refuse_s

    def succeeded(self) -> None:
        self._failures = 0

    def _value(self, forecast: Forecast | None) -> float:
        if forecast is None:
            return math.inf
        return forecast.period_s if self.spec.objective is Objective.THROUGHPUT else forecast.latency_s

    def _what(self) -> str:
        return "a window every" if self.spec.objective is Objective.THROUGHPUT else "a window takes"


def cuts_of(manifest: SliceManifest) -> tuple[int, ...]:
    """Return the operators that a manifest is cut at."""
    return tuple(entry.start for entry in manifest.slices[1:])


def _homes(placements: Sequence[Placement]) -> frozenset[tuple[int, str]]:
    return frozenset((placement.stage, placement.node) for placement in placements)


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _ms(seconds: float) -> str:
    return duration(seconds) if seconds < math.inf else "never"
