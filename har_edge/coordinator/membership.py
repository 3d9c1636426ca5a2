"""Which nodes there are, and which of them live: statuses, beats, and the detector of failures. Clocks are passed in.

A node is lost when the broker says so (its will) and does not go itself, or when no beat of it came for LOST_AFTER_S
although this process listened. Whoever was blind itself, for want of a connection or of processor time, gives everybody
a new deadline first.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from har_edge.errors import MessageError
from har_edge.protocol.deployment import PROTOCOL, Placement
from har_edge.protocol.status import ALIVE, Beat, NodeStatus, StageReport, State, decode_beat, decode_status

LOST_AFTER_S = 1.5
# A pause of this process that makes its own deadlines worthless, and the grace after a new connection.
BLIND_S = 1.0
# A shorter one is added to every deadline; anything below is the ordinary turn of a loop.
PAUSE_S = 0.25
# A node that is lost again within so long, in whatever process, has to be heard for 2 s before it counts, then 4, 8, up
# to as long.
AGAIN_S, LEAST_TRIAL_S = 60.0, 2.0
GRACE_S = 3.0
# A broker that stops publishes every will, and then cuts our own connection.
WILL_S = 0.1
# How long a node or sensor must have been stopped or lost, in the hearing of this process, until its status is removed.
STALE_S = 3600.0
MAX_PEERS = 256
MAX_BYTES = 256 * 1024
Said = TypeVar("Said", NodeStatus, Beat)


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
class Peer:
    """One node: what it said last, when it has to be heard again, and why it is lost.

    One that was lost twice in a short time is on trial: it stays lost until it has been heard for `trial_s`, counted
    from `back_at`, infinite until it is heard.
    """

    name: str
    deadline: float
    status: NodeStatus | None = None
    beat: Beat | None = None
    heard: float = 0.0
    lost: str = ""
    lost_at: float = float("-inf")
    back_at: float = float("-inf")
    trial_s: float = 0.0
    will: NodeStatus | None = None  # that counts from `will_at` on
    will_at: float = 0.0

    @property
    def health(self) -> Health:
        if self.lost:
            return Health.LOST
        if self.status is None or self.beat is None:
            return Health.NEW
        if self.status.device is None or self.status.device.protocol != PROTOCOL:
            return Health.UNFIT
        return Health.LEAVING if self.status.state is State.DRAINING else Health.LIVE


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a node's health, and what a person should know of it."""

    node: str
    health: Health
    text: str


@dataclass(slots=True)
class Registry:
    """All nodes and sensors of a pipeline that were heard of; those in `named` are not forgotten for want of room."""

    named: Collection[str] = frozenset()
    peers: dict[str, Peer] = field(default_factory=dict)
    sensors: dict[str, NodeStatus] = field(default_factory=dict)
    _pardoned: float = float("-inf")
    _silent: dict[str, float] = field(default_factory=dict)  # since when those are that say they are stopped or lost

    def note_status(self, name: str, payload: bytes, now: float, *, retained: bool = False) -> list[Event]:
        """Take a status; a will counts a moment later, a retained one after the grace of a new connection.

        Raises MessageError for one that is malformed, too large, or of another node."""
        if not payload:  # a person has removed the node
            self.sensors.pop(name, None)
            self._silent.pop(name, None)
            return self._drop(name, "is gone: its status was removed")
        status = _decode(decode_status, name, payload, "status")
        self._note_silence(name, status, now)
        if status.device is None and name not in self.peers:
            if status.role == "sensor":
                self._note_sensor(name, status)
            return []
        peer = self.peers.get(name)
        known = peer.status if peer else None
        if peer and not peer.lost and known and known.instance != status.instance and known.started > status.started:
            return []  # the last word of an older process of this name
        if status.state is State.STOPPED:
            return self._drop(name, "has stopped")
        if peer is None and status.state not in ALIVE and len(self.peers) >= MAX_PEERS:
            return []  # no reason to forget anybody
        peer = peer or self._add(name, now)
        if status.state not in ALIVE:
            due = max(now + WILL_S, self._pardoned if retained else now)
            if peer.will is None or due < peer.will_at:
                peer.will, peer.will_at = status, due
            return []
        before = peer.health
        if known is None or known.instance != status.instance:
            if peer.will is not None and known is not None and not peer.lost:  # it crashed, and is back already
                self._lose(peer, "the broker lost its connection", now)
            peer.beat, peer.deadline, peer.back_at = None, now + GRACE_S, float("inf")
            if not peer.trial_s or now > peer.lost_at + AGAIN_S:
                peer.lost, peer.trial_s = "", 0.0
        peer.status, peer.will = status, None
        return self._changed(peer, before)

    def note_beat(self, name: str, payload: bytes, now: float) -> list[Event]:
        """Take a sign of life; raises MessageError for one that is malformed, too large, or of another node."""
        beat = _decode(decode_beat, name, payload, "beat")
        self._silent.pop(name, None)  # whatever its status says: something lives there
        peer = self.peers.get(name)
        if peer is None or peer.status is None or peer.status.instance != beat.instance:
            return []  # of a process that has not said who it is, or is not this node any more
        if peer.status.state not in ALIVE:
            return []
        before = peer.health
        if peer.back_at == float("inf") or now > peer.heard + LOST_AFTER_S:
            peer.back_at = now
        peer.beat, peer.heard = beat, now
        peer.deadline = max(peer.deadline, now + LOST_AFTER_S)
        if now >= peer.back_at + peer.trial_s or not self.live():  # rather such a node than none
            peer.lost = ""
        return self._changed(peer, before)

    def expect(self, names: Collection[str], now: float) -> None:
        """Take note of nodes that a plan names: those that are not heard in time are lost.

        Those for whom there is no room are gone.
        """
        self.named = frozenset(names)
        for name in sorted(self.named - self.peers.keys()):
            if self._make_room():
                self._add(name, now)

    def pardon(self, until: float) -> None:
        """Give every node until then to be heard: this process was blind."""
        self._pardoned = max(self._pardoned, until)
        for peer in self.peers.values():
            peer.deadline = max(peer.deadline, until)
        self._silent = dict.fromkeys(self._silent, until)

    def void(self) -> None:
        """Forget wills that do not count yet: our own connection has gone too, so they may be the broker's doing."""
        for peer in self.peers.values():
            peer.will = None

    def delay(self, seconds: float) -> None:
        """Give every node so much more time: this process did not listen for as long."""
        for peer in self.peers.values():
            peer.deadline += seconds

    def tick(self, now: float) -> list[Event]:
        """Return the nodes that are lost now."""
        events = []
        for peer in self.peers.values():
            events += self._open_will(peer, now)
            if not peer.lost and now > peer.deadline:
                before = peer.health
                self._lose(peer, f"no beat for {now - peer.heard:.1f} s" if peer.heard else "it was never heard", now)
                events += self._changed(peer, before)
        return events

    def stale(self, now: float) -> list[str]:
        """Return those that have been stopped or lost for long, once each."""
        found = sorted(name for name, since in self._silent.items() if now > since + STALE_S)
        for name in found:
            del self._silent[name]
        return found

    def health(self, name: str) -> Health:
        peer = self.peers.get(name)
        return peer.health if peer else Health.GONE

    def live(self) -> list[Peer]:
        """Return the nodes that may be given stages, by name."""
        return sorted((peer for peer in self.peers.values() if peer.health is Health.LIVE), key=lambda peer: peer.name)

    def reports(self, node: str) -> tuple[StageReport, ...]:
        peer = self.peers.get(node)
        return peer.beat.stages if peer and peer.beat and not peer.lost else ()

    def report(self, epoch: int, placement: Placement, node: str = "") -> StageReport | None:
        """Return what the node of a placement (or another) says of the stage."""
        wanted = (epoch, placement.stage, placement.replica)
        return next((one for one in self.reports(node or placement.node) if key_of(one) == wanted), None)

    def behind(self, epoch: int) -> list[str]:
        """Return the living sensors that follow a plan and do not send to this epoch."""
        return sorted(name for name, status in self.sensors.items() if status.epoch not in (0, epoch))

    def _note_silence(self, name: str, status: NodeStatus, now: float) -> None:
        if status.state in ALIVE:
            self._silent.pop(name, None)
        elif name in self._silent or len(self._silent) < MAX_PEERS:
            self._silent.setdefault(name, now)

    def _note_sensor(self, name: str, status: NodeStatus) -> None:
        known = self.sensors.get(name)
        if known is not None and known.instance != status.instance and known.started > status.started:
            return
        if status.state not in ALIVE:
            self.sensors.pop(name, None)
        elif known is not None or len(self.sensors) < MAX_PEERS:
            self.sensors[name] = status

    def _add(self, name: str, now: float) -> Peer:
        if not self._make_room():
            raise MessageError(f"node {name} came, the {len(self.peers) + 1}th; at most {MAX_PEERS} are watched")
        peer = self.peers[name] = Peer(name, now + GRACE_S)
        return peer

    def _make_room(self) -> bool:
        """Forget who has been lost for longest if there is no room; the broker still has its status."""
        if len(self.peers) < MAX_PEERS:
            return True
        lost = [peer for peer in self.peers.values() if peer.lost and peer.name not in self.named]
        if lost:
            del self.peers[min(lost, key=lambda peer: peer.lost_at).name]
        return bool(lost)

    def _open_will(self, peer: Peer, now: float) -> list[Event]:
        if peer.will is None or now < peer.will_at:
            return []
        before, known = peer.health, peer.status
        peer.status, peer.will = peer.will, None
        if known is None:  # that was before our time
            peer.lost = peer.lost or "the broker lost its connection"
        elif not peer.lost or peer.back_at < float("inf"):
            self._lose(peer, "the broker lost its connection", now)
        return self._changed(peer, before)

    def _lose(self, peer: Peer, why: str, now: float) -> None:
        again = now < peer.lost_at + AGAIN_S
        peer.trial_s = min(AGAIN_S, max(LEAST_TRIAL_S, 2 * peer.trial_s)) if again else 0.0
        peer.lost, peer.lost_at, peer.back_at = why, now, float("inf")

    def _drop(self, name: str, text: str) -> list[Event]:
        peer = self.peers.pop(name, None)
        return [Event(name, Health.GONE, f"node {name} {text}")] if peer and not peer.lost else []

    def _changed(self, peer: Peer, before: Health) -> list[Event]:
        after = peer.health
        if after is before:
            return []
        return [Event(peer.name, after, f"node {peer.name} {_describe(peer)}")]


def key_of(report: StageReport) -> tuple[int, int, int]:
    return report.epoch, report.stage, report.replica


def names_in(placements: Iterable[Placement]) -> set[str]:
    """Return the nodes that placements name."""
    return {placement.node for placement in placements}


def _describe(peer: Peer) -> str:
    card = peer.status.device if peer.status else None
    texts = {
        Health.NEW: "has begun anew",
        Health.LIVE: f"has joined: {card.system}, {card.cores} cores, speed {card.speed:.0f}/s" if card else "",
        Health.LEAVING: "wants to leave",
        Health.UNFIT: f"cannot be used: it speaks protocol {card.protocol if card else 0}, expected {PROTOCOL}; "
        "install the same version of har-edge there",
        Health.LOST: f"is lost: {peer.lost}",
    }
    return texts[peer.health]


def _decode(decode: Callable[[bytes], Said], name: str, payload: bytes, what: str) -> Said:
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a {what} of {len(payload)} bytes came from {name}; expected at most {MAX_BYTES}")
    try:
        found = decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MessageError(f"what came from {name} is no {what}: {error}") from None
    if found.node != name:
        raise MessageError(f"a {what} of {found.node!r} came on the topic of {name!r}; expected its own")
    return found
