"""Which nodes may be given stages, and how fast they are: membership, what was measured, who failed lately."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from har_edge.coordinator.failover import StageCost
from har_edge.coordinator.membership import Member, Membership
from har_edge.coordinator.speeds import BacklogMonitor, SpeedEstimator
from har_edge.planner.relocation import Candidate, Key
from har_edge.protocol.deployment import Deployment, Generation
from har_edge.protocol.status import StagePhase

_log = logging.getLogger(__name__)
# How long a node on which a stage failed gets none, if there are others: at first, then twice as long each time, and at
# most. After FORGIVEN_S without one, it begins anew.
BAN_S, MOST_BAN_S, FORGIVEN_S = 60.0, 960.0, 1800.0


class CandidatePool:
    """Candidates for stages. Costs refer to a device of `reference_speed` (as in NodeCapabilities).

    Nodes that do not know all of `packings` are none.
    """

    def __init__(
        self,
        membership: Membership,
        costs_of: Callable[[Generation], tuple[StageCost, ...]],
        packings: frozenset[str] = frozenset(),
    ) -> None:
        self._packings, self._told = packings, set[str]()
        self.reference_speed = 0.0
        self._membership, self._costs_of = membership, costs_of
        self._speeds, self._queues = SpeedEstimator(), BacklogMonitor()
        self._banned: dict[str, float] = {}
        self._bans: dict[str, tuple[int, float]] = {}  # how often in a row, and when the last one ends

    @property
    def failing(self) -> Collection[str]:
        """The nodes on which a stage failed lately."""
        return self._banned.keys()

    def ban(self, node: str, now: float) -> float:
        """Give a node nothing for a while, longer each time; return for how many seconds."""
        count, ended = self._bans.get(node, (0, now))
        count = 0 if now > ended + FORGIVEN_S else count
        ban_s: float = min(MOST_BAN_S, BAN_S * 2.0**count)
        self._bans = {name: one for name, one in self._bans.items() if now <= one[1] + FORGIVEN_S}
        self._banned[node], self._bans[node] = now + ban_s, (min(count + 1, 16), now + ban_s)
        return ban_s

    def update(self, deployment: Deployment, now: float) -> None:
        """Ban the nodes on which a stage has failed; take back those whose time is over."""
        for generation in deployment.generations:
            for placement in generation.placements:
                for node in (placement.node, *placement.standby):
                    report = self._membership.report(generation.epoch, placement, node)
                    if report is not None and report.phase is StagePhase.FAILED and node not in self._banned:
                        self.ban(node, now)
        self._banned = {name: until for name, until in self._banned.items() if now < until}

    def candidates(self) -> list[Candidate]:
        """Return the nodes that may be given stages: those on which none failed lately, if there are any.

        If one failed on all of them lately, all may, but for the one that is kept out for longest.
        """
        found = [candidate for candidate in map(self._candidate, self._membership.live()) if candidate is not None]
        longest = max((one.name for one in found), key=lambda name: self._banned.get(name, 0.0), default="")
        return [one for one in found if one.name not in self._banned] or _without(found, longest) or found

    def _candidate(self, member: Member) -> Candidate | None:
        card = member.status.device if member.status else None
        if card is None:
            return None
        missing = self._packings.difference(card.packings)
        if missing:
            if member.name not in self._told:
                self._told.add(member.name)
                _log.warning(
                    "node %s gets no stage: activations travel as %s, which it does not know; give it the extra zstd "
                    "or a newer har_edge",
                    member.name,
                    " and ".join(sorted(missing)),
                )
            return None
        return Candidate(
            member.name,
            _within(card.speed, 1e-6, 1e9),
            max(1, card.cores),
            card.memory_bytes,
            None if card.link_bytes_per_s is None else _within(card.link_bytes_per_s, 1.0, 1e12),
            None if card.round_trip_s is None else _within(card.round_trip_s / 2, 0.0, 60.0),
            self._speeds.factor(member.name),
            card.broker is not None,
        )

    def note_stages(self, node: str, deployment: Deployment | None) -> tuple[bool, list[str]]:
        """Learn from what a node said last of its stages; tell whether one failed, and what a person should read."""
        member = self._membership.members.get(node)
        if member is None or member.heartbeat is None or member.status is None or member.status.device is None:
            return False, []
        speed, expected = _within(member.status.device.speed, 1e-6, 1e9), dict[Key, float]()
        for generation in deployment.generations if deployment else ():
            for placement in generation.of(node):
                key, work = (generation.epoch, *placement.key), self._costs_of(generation)[placement.stage]
                expected[key] = work.seconds * self.reference_speed / speed
        self._speeds.note(member.heartbeat, expected)
        failed = any(report.phase is StagePhase.FAILED for report in member.heartbeat.stages)
        return failed, self._queues.note(member.heartbeat)

    def forget(self, node: str) -> None:
        """Drop what was learnt of a node that has gone."""
        self._speeds.forget(node)


def _without(candidates: list[Candidate], name: str) -> list[Candidate]:
    return [one for one in candidates if one.name != name]


def _within(value: float, low: float, high: float) -> float:
    """Return a figure that a node says of itself, no wilder than any device is."""
    return min(high, max(low, value))
