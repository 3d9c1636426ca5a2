"""Membership and failure detection: which nodes there are, and which of them live. It reads no clock.

A node is lost when the broker says so (its will) and it does not go itself, or when no heartbeat of it came for
NODE_LOST_S although this process listened. A process that was blind itself, for want of a connection or of processor
time, gives every node a new deadline first.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.protocol.deployment import PROTOCOL, Placement
from har_edge.protocol.status import ALIVE, Heartbeat, NodeStatus, StageReport, State
from har_edge.timing import FORGET_NODE_S, NODE_LOST_S, RECONNECT_GRACE_S

# A pause of this process that makes its own deadlines worthless.
BLIND_S = 1.0
# A shorter one is added to every deadline; anything below is the ordinary turn of a loop.
PAUSE_S = 0.25
# A node that is lost again within so long, in whatever process, has to be heard for 2 s before it counts, then 4, 8, up
# to as long.
AGAIN_S, LEAST_PROBATION_S = 60.0, 2.0
# A broker that stops publishes every will, and then cuts our own connection.
WILL_S = 0.1
MAX_MEMBERS = 256


class Health(enum.Enum):
    """How a node is: NEW has not beaten yet, LIVE may run stages, LEAVING hands its own over, UNFIT speaks another
    protocol; GONE is nobody that is known."""

    NEW = "new"
    LIVE = "live"
    LEAVING = "leaving"
    UNFIT = "unfit"
    LOST = "lost"
    GONE = "gone"


SERVING = frozenset({Health.NEW, Health.LIVE, Health.LEAVING, Health.UNFIT})


@dataclass(slots=True)
class Member:
    """One node: what it said last, when it has to be heard again, and why it is lost.

    One that was lost twice in a short time is on probation: it stays lost until it has been heard for `probation_s`,
    counted from `back_at`, which is infinite until it is heard.
    """

    name: str
    deadline: float
    status: NodeStatus | None = None
    heartbeat: Heartbeat | None = None
    heard: float = 0.0
    lost: str = ""
    lost_at: float = float("-inf")
    back_at: float = float("-inf")
    probation_s: float = 0.0
    will: NodeStatus | None = None  # that counts from `will_due_at` on
    will_due_at: float = 0.0

    @property
    def health(self) -> Health:
        if self.lost:
            return Health.LOST
        if self.status is None or self.heartbeat is None:
            return Health.NEW
        if self.status.device is None or self.status.device.protocol != PROTOCOL:
            return Health.UNFIT
        return Health.LEAVING if self.status.state is State.DRAINING else Health.LIVE


@dataclass(frozen=True, slots=True)
class HealthChange:
    """A change of a node's health, and what a person should know of it."""

    node: str
    health: Health
    text: str


@dataclass(slots=True)
class Membership:
    """All nodes and sensors of a pipeline that were heard of; those in `named` are not forgotten for want of room."""

    named: Collection[str] = frozenset()
    members: dict[str, Member] = field(default_factory=dict)
    sensors: dict[str, NodeStatus] = field(default_factory=dict)
    _extended_until: float = float("-inf")
    _silent: dict[str, float] = field(default_factory=dict)  # since when those are that say they are stopped or lost

    def note_status(
        self, name: str, status: NodeStatus | None, now: float, *, retained: bool = False
    ) -> list[HealthChange]:
        """Take a status; a will counts a moment later, a retained one after the grace of a new connection.

        Raises MessageError where there is no room for another node."""
        if status is None:  # a person has removed the node
            self.sensors.pop(name, None)
            self._silent.pop(name, None)
            return self._drop(name, "is gone: its status was removed")
        self._note_silence(name, status, now)
        if status.device is None and name not in self.members:
            if status.role == "sensor":
                self._note_sensor(name, status)
            return []
        member = self.members.get(name)
        known = member.status if member else None
        if (
            member
            and not member.lost
            and known
            and known.instance != status.instance
            and known.started > status.started
        ):
            return []  # the last word of an older process of this name
        if status.state is State.STOPPED:
            return self._drop(name, "has stopped")
        if member is None and status.state not in ALIVE and len(self.members) >= MAX_MEMBERS:
            return []  # no reason to forget anybody
        member = member or self._add(name, now)
        if status.state not in ALIVE:
            due = max(now + WILL_S, self._extended_until if retained else now)
            if member.will is None or due < member.will_due_at:
                member.will, member.will_due_at = status, due
            return []
        before = member.health
        if known is None or known.instance != status.instance:
            if member.will is not None and known is not None and not member.lost:  # it crashed, and is back already
                self._lose(member, "the broker lost its connection", now)
            member.heartbeat, member.deadline, member.back_at = None, now + RECONNECT_GRACE_S, float("inf")
            if not member.probation_s or now > member.lost_at + AGAIN_S:
                member.lost, member.probation_s = "", 0.0
        member.status, member.will = status, None
        return self._changed(member, before)

    def note_heartbeat(self, name: str, heartbeat: Heartbeat, now: float) -> list[HealthChange]:
        """Take a sign of life."""
        self._silent.pop(name, None)  # whatever its status says: something lives there
        member = self.members.get(name)
        if member is None or member.status is None or member.status.instance != heartbeat.instance:
            return []  # of a process that has not said who it is, or is not this node any more
        if member.status.state not in ALIVE:
            return []
        before = member.health
        if member.back_at == float("inf") or now > member.heard + NODE_LOST_S:
            member.back_at = now
        member.heartbeat, member.heard = heartbeat, now
        member.deadline = max(member.deadline, now + NODE_LOST_S)
        if now >= member.back_at + member.probation_s or not self.live():  # rather such a node than none
            member.lost = ""
        return self._changed(member, before)

    def expect(self, names: Collection[str], now: float) -> None:
        """Take note of nodes that a plan names: those that are not heard in time are lost.

        Those for whom there is no room are gone.
        """
        self.named = frozenset(names)
        for name in sorted(self.named - self.members.keys()):
            if self._make_room():
                self._add(name, now)

    def extend_deadlines(self, until: float) -> None:
        """Give every node until then to be heard: this process was blind."""
        self._extended_until = max(self._extended_until, until)
        for member in self.members.values():
            member.deadline = max(member.deadline, until)
        self._silent = dict.fromkeys(self._silent, until)

    def discard_pending_wills(self) -> None:
        """Forget wills that do not count yet: our own connection has gone too, so they may be the broker's doing."""
        for member in self.members.values():
            member.will = None

    def shift_deadlines(self, seconds: float) -> None:
        """Give every node so much more time: this process did not listen for as long."""
        for member in self.members.values():
            member.deadline += seconds

    def tick(self, now: float) -> list[HealthChange]:
        """Return the nodes that are lost now."""
        events = []
        for member in self.members.values():
            events += self._open_will(member, now)
            if not member.lost and now > member.deadline:
                before = member.health
                self._lose(
                    member, f"no beat for {now - member.heard:.1f} s" if member.heard else "it was never heard", now
                )
                events += self._changed(member, before)
        return events

    def stale(self, now: float) -> list[str]:
        """Return those that have been stopped or lost for long, once each."""
        found = sorted(name for name, since in self._silent.items() if now > since + FORGET_NODE_S)
        for name in found:
            del self._silent[name]
        return found

    def health(self, name: str) -> Health:
        member = self.members.get(name)
        return member.health if member else Health.GONE

    def live(self) -> list[Member]:
        """Return the nodes that may be given stages, by name."""
        return sorted(
            (member for member in self.members.values() if member.health is Health.LIVE), key=lambda member: member.name
        )

    def reports(self, node: str) -> tuple[StageReport, ...]:
        member = self.members.get(node)
        return member.heartbeat.stages if member and member.heartbeat and not member.lost else ()

    def report(self, epoch: int, placement: Placement, node: str = "") -> StageReport | None:
        """Return what the node of a placement (or another) says of the stage."""
        wanted = (epoch, placement.stage, placement.replica)
        return next((one for one in self.reports(node or placement.node) if key_of(one) == wanted), None)

    def behind(self, epoch: int) -> list[str]:
        """Return the living sensors that follow a plan and do not send to this generation."""
        return sorted(name for name, status in self.sensors.items() if status.epoch not in (0, epoch))

    def _note_silence(self, name: str, status: NodeStatus, now: float) -> None:
        if status.state in ALIVE:
            self._silent.pop(name, None)
        elif name in self._silent or len(self._silent) < MAX_MEMBERS:
            self._silent.setdefault(name, now)

    def _note_sensor(self, name: str, status: NodeStatus) -> None:
        known = self.sensors.get(name)
        if known is not None and known.instance != status.instance and known.started > status.started:
            return
        if status.state not in ALIVE:
            self.sensors.pop(name, None)
        elif known is not None or len(self.sensors) < MAX_MEMBERS:
            self.sensors[name] = status

    def _add(self, name: str, now: float) -> Member:
        if not self._make_room():
            raise MessageError(f"node {name} came, the {len(self.members) + 1}th; at most {MAX_MEMBERS} are watched")
        member = self.members[name] = Member(name, now + RECONNECT_GRACE_S)
        return member

    def _make_room(self) -> bool:
        """Forget who has been lost for longest if there is no room; the broker still has its status."""
        if len(self.members) < MAX_MEMBERS:
            return True
        lost = [member for member in self.members.values() if member.lost and member.name not in self.named]
        if lost:
            del self.members[min(lost, key=lambda member: member.lost_at).name]
        return bool(lost)

    def _open_will(self, member: Member, now: float) -> list[HealthChange]:
        if member.will is None or now < member.will_due_at:
            return []
        before, known = member.health, member.status
        member.status, member.will = member.will, None
        if known is None:  # that was before our time
            member.lost = member.lost or "the broker lost its connection"
        elif not member.lost or member.back_at < float("inf"):
            self._lose(member, "the broker lost its connection", now)
        return self._changed(member, before)

    def _lose(self, member: Member, why: str, now: float) -> None:
        again = now < member.lost_at + AGAIN_S
        member.probation_s = min(AGAIN_S, max(LEAST_PROBATION_S, 2 * member.probation_s)) if again else 0.0
        member.lost, member.lost_at, member.back_at = why, now, float("inf")

    def _drop(self, name: str, text: str) -> list[HealthChange]:
        member = self.members.pop(name, None)
        return [HealthChange(name, Health.GONE, f"node {name} {text}")] if member and not member.lost else []

    def _changed(self, member: Member, before: Health) -> list[HealthChange]:
        after = member.health
        if after is before:
            return []
        return [HealthChange(member.name, after, f"node {member.name} {_describe(member)}")]


def key_of(report: StageReport) -> tuple[int, int, int]:
    return report.epoch, report.stage, report.replica


def names_in(placements: Iterable[Placement]) -> set[str]:
    """Return the nodes that placements name."""
    return {placement.node for placement in placements}


def _describe(member: Member) -> str:
    card = member.status.device if member.status else None
    texts = {
        Health.NEW: "has begun anew",
        Health.LIVE: f"has joined: {card.system}, {card.cores} cores, speed {card.speed:.0f}/s" if card else "",
        Health.LEAVING: "wants to leave",
        Health.UNFIT: f"cannot be used: it speaks protocol {card.protocol if card else 0}, expected {PROTOCOL}; "
        "install the same version of har-edge there",
        Health.LOST: f"is lost: {member.lost}",
    }
    return texts[member.health]
