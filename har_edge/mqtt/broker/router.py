"""The state and the decisions of a broker: sessions, subscriptions, retained messages and turns; no sockets, no clock.

The broker in memory and the embedded broker are this router with a transport around it. It drops nothing in silence: it
refuses a message when a session has no room for it, and the publisher keeps the message.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from har_edge.mqtt.bus import PublishOutcome, Session
from har_edge.mqtt.clients.transport import read_share

_MAX_PACKET_ID = 0xFFFF
_CACHED_TOPICS = 4096


class SessionOwner(Protocol):
    """The connection that owns a session."""

    def take_over(self) -> None:
        """Record that another client owns the session now."""


@dataclass(slots=True)
class QueuedMessage:
    """A message in a session. It gets a `packet_id` when it is sent, and keeps it until it is acknowledged.

    `properties` are the MQTT 5 properties that travel with a message, in the bytes that came.
    """

    topic: str
    payload: bytes
    retained: bool = False
    sent: bool = False
    qos: int = 1
    packet_id: int = 0
    properties: bytes = b""


@dataclass(slots=True)
class SessionState:
    """The state that the broker keeps for one client id (MQTT 5, section 4.1).

    `gone_at` is the time at which its connection ended, None while it has one.
    """

    session: Session
    filters: dict[str, int] = field(default_factory=dict)
    queue: deque[QueuedMessage] = field(default_factory=deque)
    unacknowledged: OrderedDict[int, QueuedMessage] = field(default_factory=OrderedDict)
    queued_bytes: int = 0
    next_id: int = 0
    bus: SessionOwner | None = None
    gone_at: float | None = None

    def put(self, stored: QueuedMessage) -> None:
        self.queue.append(stored)
        self.queued_bytes += len(stored.payload)

    def take(self) -> QueuedMessage | None:
        """Return the next message to send, None while there is none or Receive Maximum is reached."""
        if not self.queue or len(self.unacknowledged) >= self.session.receive_max:
            return None
        stored = self.queue.popleft()
        if stored.qos:
            stored.packet_id = stored.packet_id or self._free_id()
            self.unacknowledged[stored.packet_id] = stored
        else:
            self.queued_bytes -= len(stored.payload)
        return stored

    def acknowledged(self, packet_id: int) -> None:
        """Drop a message that the client has; an unknown packet id is no error (MQTT 5, section 4.3.2)."""
        stored = self.unacknowledged.pop(packet_id, None)
        if stored is not None:
            self.queued_bytes -= len(stored.payload)

    def again(self) -> None:
        """Queue the unacknowledged messages again, first and under their own packet ids (section 4.4)."""
        self.queue.extendleft(reversed(self.unacknowledged.values()))
        self.unacknowledged.clear()

    def _free_id(self) -> int:
        # Numbers in the queue belong to messages that were sent before a reconnection; those come first, so all that
        # are taken are among the unacknowledged by the time a new one is needed.
        while True:
            self.next_id = self.next_id % _MAX_PACKET_ID + 1
            if self.next_id not in self.unacknowledged:
                return self.next_id


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic matches a filter with `+` and `#` (MQTT 5, section 4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


@dataclass(frozen=True, slots=True)
class _Subscribers:
    """The receivers of a topic: clients with the granted quality of service, and the groups."""

    plain: tuple[tuple[SessionState, int], ...]
    groups: tuple[deque[str], ...]


class Router:
    """Routes messages between sessions.

    A session holds at most `max_messages` messages and `max_bytes` bytes that wait; beyond that, `route` refuses. All
    retained messages together hold at most `max_retained_bytes`.
    """

    def __init__(self, *, max_messages: int = 2**31, max_bytes: int = 2**40, max_retained_bytes: int = 2**40) -> None:
        self._accounts: dict[str, SessionState] = {}
        self._retained: dict[str, bytes] = {}
        self._retained_bytes = 0
        # The client ids of each shared subscription, the next one first; clients that are away stay in the order.
        self._turns: dict[tuple[str, str], deque[str]] = {}
        self._subscribers: dict[str, _Subscribers] = {}
        self._max_messages, self._max_bytes, self._max_retained_bytes = max_messages, max_bytes, max_retained_bytes

    def knows(self, session: Session) -> bool:
        """Return whether the client has a session."""
        return session.client_id in self._accounts

    def attach(self, bus: SessionOwner, session: Session, *, clean: bool) -> SessionState:
        """Give a connection its session state, kept or new. Another connection with this client id ends."""
        account = self._accounts.get(session.client_id)
        if account is not None and account.bus is not None and account.bus is not bus:
            loser = account.bus
            self.detach(account, will=True)
            loser.take_over()
            account = self._accounts.get(session.client_id)
        if account is None or clean:
            self._forget_turns(session.client_id)
            account = self._accounts[session.client_id] = SessionState(session)
            self._subscribers.clear()
        account.session, account.bus, account.gone_at = session, bus, None
        account.again()
        return account

    def detach(
        self, account: SessionState, *, will: bool, forget: bool = False, now: float = 0.0
    ) -> list[SessionState]:
        """Record that a client has gone, with or without its will; return the sessions that the will reaches."""
        account.bus, account.gone_at = None, now
        if forget or account.session.expiry_s == 0:
            self._end(account)
        last = account.session.will if will else None
        return self.route(last.topic, last.payload, retain=last.retain)[1] if last is not None else []

    def expire(self, now: float) -> list[str]:
        """End the sessions whose expiry has passed; return their client ids."""
        over = [
            one
            for one in self._accounts.values()
            if one.gone_at is not None and now - one.gone_at >= one.session.expiry_s
        ]
        for account in over:
            self._end(account)
        return [account.session.client_id for account in over]

    def subscribe(self, account: SessionState, filters: Sequence[str], *, qos: int = 1, retained: bool = True) -> None:
        """Subscribe a session. It gets the retained messages, except as a member of a group (section 4.8.2)."""
        self._subscribers.clear()
        account.filters.update(dict.fromkeys(filters, qos))
        for share in filter(None, map(read_share, filters)):
            members = self._turns.setdefault(share, deque())
            if account.session.client_id not in members:
                members.append(account.session.client_id)
        if not retained:
            return
        for topic, payload in self._retained.items():
            if any(matches(text, topic) for text in filters):
                account.put(QueuedMessage(topic, payload, retained=True, qos=qos))

    def unsubscribe(self, account: SessionState, filters: Sequence[str]) -> list[bool]:
        """End subscriptions; return which of them existed. Messages in the queue still come (section 3.10.4)."""
        self._subscribers.clear()
        existed = [account.filters.pop(text, None) is not None for text in filters]
        for share in filter(None, map(read_share, filters)):
            members = self._turns.get(share, deque())
            if account.session.client_id in members:
                members.remove(account.session.client_id)
        return existed

    def route(
        self, topic: str, payload: bytes, *, retain: bool, qos: int = 1, properties: bytes = b""
    ) -> tuple[PublishOutcome, list[SessionState]]:
        """Store and forward one message; return its outcome, and the sessions that got it. All get it, or none."""
        takers = self._subscribers.get(topic) or self._find_takers(topic)
        chosen = list(takers.plain)
        turns = [members for members in takers.groups if members]
        chosen += [(self._accounts[members[0]], 1) for members in turns]
        chosen = [one for one in chosen if len(payload) <= one[0].session.max_packet_bytes]
        if any(self._is_full(account) for account, _ in chosen) or not self._retain(topic, payload, retain):
            return PublishOutcome.REFUSED, []
        for members in turns:
            members.rotate(-1)
        for account, granted in chosen:
            account.put(QueuedMessage(topic, payload, qos=min(qos, granted), properties=properties))
        heard = bool(takers.plain or turns)
        return PublishOutcome.ACKED if heard else PublishOutcome.NO_SUBSCRIBERS, [account for account, _ in chosen]

    def _retain(self, topic: str, payload: bytes, retain: bool) -> bool:
        """Keep a retained message, or drop the one that is kept; return False when there is no room."""
        if not retain:
            return True
        size = self._retained_bytes + len(payload) - len(self._retained.get(topic, b""))
        if size > self._max_retained_bytes:
            return False
        self._retained_bytes = size
        if payload:
            self._retained[topic] = payload
        else:
            self._retained.pop(topic, None)
        return True

    def _is_full(self, account: SessionState) -> bool:
        return len(account.queue) >= self._max_messages or account.queued_bytes >= self._max_bytes

    def _find_takers(self, topic: str) -> _Subscribers:
        plain = []
        for account in self._accounts.values():
            granted = [qos for text, qos in account.filters.items() if matches(text, topic)]
            if granted:
                plain.append((account, max(granted)))
        groups = tuple(members for (_, shared), members in self._turns.items() if matches(shared, topic))
        if len(self._subscribers) >= _CACHED_TOPICS:
            self._subscribers.clear()
        self._subscribers[topic] = found = _Subscribers(tuple(plain), groups)
        return found

    def _end(self, account: SessionState) -> None:
        self._accounts.pop(account.session.client_id, None)
        self._forget_turns(account.session.client_id)
        self._subscribers.clear()

    def _forget_turns(self, client_id: str) -> None:
        self._subscribers.clear()
        for members in self._turns.values():
            if client_id in members:
                members.remove(client_id)
