"""Sessions at the broker of stages that are gone: whose node has not ended them itself, they are deleted.

A session that nobody ends would gather windows for as long as sessions live, a day by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from har_edge.coordinator.membership import Health, Membership
from har_edge.planner.relocation import Key
from har_edge.protocol.deployment import Deployment, Placement

PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Gone:
    placement: Placement
    revision: int
    deadline: float
    brokers: tuple[str, ...]


@dataclass(slots=True)
class SessionCollector:
    """Stages that the plan removed, until their sessions are known to have ended."""

    _gone: dict[Key, _Gone] = field(default_factory=dict)

    def note(self, before: Deployment, after: Deployment, now: float) -> None:
        """Take note of a change of the plan: stages that it no longer has."""
        kept = {key for key, _, _ in _stages(after)}
        for key, placement, brokers in _stages(before):
            if key not in kept:
                self._gone[key] = _Gone(placement, after.revision, now + PATIENCE_S, brokers)
        for key in kept & self._gone.keys():
            del self._gone[key]

    def due(self, membership: Membership, now: float) -> list[tuple[Key, str]]:
        """Return the stages whose sessions must be deleted, once at each broker: the central one (""), and others by
        address.
        """
        found = []
        for key, gone in list(self._gone.items()):
            node = gone.placement.node
            member = membership.members.get(node)
            dead = membership.health(node) in (Health.LOST, Health.GONE)
            if dead or now > gone.deadline:
                found += [(key, url) for url in ("", *gone.brokers)]
                del self._gone[key]
            elif (
                member is not None
                and member.heartbeat is not None
                and member.heartbeat.revision >= gone.revision
                and membership.report(key[0], gone.placement) is None
            ):
                del self._gone[key]  # the node has read the plan and left the stage, session and all
        return found


def _stages(deployment: Deployment) -> Iterable[tuple[Key, Placement, tuple[str, ...]]]:
    for generation in deployment.generations:
        for placement in generation.placements:
            yield (generation.epoch, *placement.key), placement, tuple(sorted(generation.brokers.values()))
