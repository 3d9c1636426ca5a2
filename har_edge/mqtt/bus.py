"""The Bus protocol: what a node needs of a broker, whichever client carries it.

One thread owns a bus. `poll` is the only call that waits; it moves bytes, keeps the connection alive, reconnects, and
calls the receipts. So a node is a plain loop, and no lock is needed anywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from har_edge.errors import NodeError


class PublishOutcome(enum.Enum):
    """What became of a published message (MQTT 5, section 3.4.2.1)."""

    ACKED = "safe at the broker"
    NO_SUBSCRIBERS = "no matching subscriber"
    REFUSED = "refused by the broker"
    TOO_LARGE = "larger than the broker takes"


OnOutcome = Callable[[PublishOutcome], None]


class Delivery(msgspec.Struct, frozen=True, gc=False):  # made for each message: ten times as quick as a dataclass
    """One received message; it stays the broker's until it is acknowledged.

    `token` is the bus's own; `duplicate` says that the broker sent it before, `retained` that it is stored.
    """

    topic: str
    payload: bytes
    token: tuple[int, int]
    retained: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes when this client is lost; ours are retained, those of others may not be."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True, slots=True)
class SessionLease:
    """How a process knows that a session is no longer its own: `taken` reads what is retained at `topic`."""

    topic: str
    taken: Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Session:
    """Who a client is to the broker.

    `client_id` names the session (a stage's, not a device's). With `expiry_s` > 0 the broker keeps subscriptions and
    unacknowledged messages that long after the client has gone. `receive_max` bounds the unacknowledged messages,
    `max_packet_bytes` the size of one: the broker sends nothing larger. With a `lease`, a client that was cut off
    first looks whether a younger process has the session now. A `transient` session, whose client never comes back
    under its name, is kept only where the broker ends it by itself: before MQTT 5 it would stay for ever.
    """

    client_id: str
    expiry_s: int = 0
    clean_start: bool = False
    will: Will | None = None
    lease: SessionLease | None = None
    receive_max: int = 1024
    max_packet_bytes: int = 16 * 1024 * 1024 + 4096
    keepalive_s: int = 30
    transient: bool = False


@dataclass(slots=True)
class BusTraffic:
    """Bytes and messages of one bus since it was made; bytes count whole MQTT packets, headers and acknowledgements.

    `forgotten` counts the reconnections after which the broker had no session of this client any more, `strays` the
    messages that only a subscription of an earlier process asked for: they are not delivered.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    published: int = 0
    received: int = 0
    reconnects: int = 0
    forgotten: int = 0
    strays: int = 0


class TakenOver(NodeError):
    """Another client connected with this client id; the broker gave it the session."""


class Bus(Protocol):
    """A connection to a broker, QoS 1 with manual acknowledgement."""

    @property
    def traffic(self) -> BusTraffic:
        """Counters of this bus."""

    @property
    def unsent(self) -> int:
        """How many published messages have no receipt yet."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted this client and its subscriptions."""

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe now and after each reconnection; BrokerError from `poll` when the broker does not permit it.

        What comes on other topics in a session that was kept is put away, and the subscription behind it ended.
        """

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions, those too that an earlier process made in this session."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        """Send at QoS 1, again after a reconnection until the broker has it; `poll` calls `on_outcome`, once."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Hand a delivery over: the broker forgets it. Stale after a reconnection: then the broker sends it again."""

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        """Wait up to `timeout_s` for traffic and return what came.

        It reads about `most_bytes`, at most one message more; with 0 nothing, so that TCP holds the broker back, while
        it does everything else. Raises TakenOver when another client took the session, BrokerError for what no retry
        mends.
        """

    def close(self, *, forget: bool = False) -> None:
        """Flush for a moment and disconnect without the will; `forget` ends the session at the broker."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to publish, and the deliveries to acknowledge once it is safe at the broker.

    `needs_subscriber` asks for a subscriber: while there is none, the loop keeps the message and tries again.
    """

    topic: str
    payload: bytes
    acks: tuple[Delivery, ...] = ()
    retain: bool = False
    needs_subscriber: bool = False
