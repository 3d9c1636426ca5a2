"""The Bus protocol: what a node needs from a broker, with any MQTT client below it.

One thread owns a bus. `poll` is the only call that waits: it moves bytes, keeps the connection alive, reconnects, and
calls the `on_outcome` callbacks. A node is therefore a plain loop and needs no lock.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from har_edge.errors import NodeError
from har_edge.timing import KEEPALIVE_S


class PublishOutcome(enum.Enum):
    """The result of publishing a message (MQTT 5, section 3.4.2.1)."""

    ACKED = "safe at the broker"
    NO_SUBSCRIBERS = "no matching subscriber"
    REFUSED = "refused by the broker"
    TOO_LARGE = "larger than the broker takes"


OnOutcome = Callable[[PublishOutcome], None]


class Delivery(msgspec.Struct, frozen=True, gc=False):  # made for each message: ten times as quick as a dataclass
    """One received message. The broker keeps it until the client acknowledges it.

    `token` belongs to the bus. `duplicate` is set when the broker sent the message before, `retained` when the broker
    had it stored.
    """

    topic: str
    payload: bytes
    token: tuple[int, int]
    retained: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes when this client is lost. har_edge retains its wills; other clients may
    not.
    """

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True, slots=True)
class SessionLease:
    """The retained message that shows which process owns a session.

    `taken` reads the payload that is retained at `topic` and returns whether another process owns the session now.
    """

    topic: str
    taken: Callable[[Delivery], bool]


@dataclass(frozen=True, slots=True)
class Session:
    """A client's identity and limits at the broker.

    `client_id` names the session, which belongs to a stage and not to a device. With `expiry_s` > 0, the broker keeps
    subscriptions and unacknowledged messages for so many seconds after the client has gone. `receive_max` bounds the
    number of unacknowledged messages and `max_packet_bytes` the size of each; the broker sends nothing larger. A broker
    that says it takes no packet of `sends_bytes`, the largest that this client is to send, is refused at once.

    With a `lease`, a client that lost its connection first checks whether a younger process owns the session. A
    `transient` session belongs to a client that never comes back under its name. Such a session is kept only where the
    broker ends it by itself: before MQTT 5 it would stay for ever.
    """

    client_id: str
    expiry_s: int = 0
    clean_start: bool = False
    will: Will | None = None
    lease: SessionLease | None = None
    receive_max: int = 1024
    max_packet_bytes: int = 16 * 1024 * 1024 + 4096
    keepalive_s: int = KEEPALIVE_S
    transient: bool = False
    sends_bytes: int = 0


@dataclass(slots=True)
class BusTraffic:
    """Bytes and messages of one bus since it was made; bytes count whole MQTT packets, headers and acknowledgements.

    `forgotten` counts the reconnections after which the broker had lost this client's session. `stale` counts the
    messages that only a subscription of an earlier process asked for; the bus does not deliver them.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    published: int = 0
    received: int = 0
    reconnects: int = 0
    forgotten: int = 0
    stale: int = 0


class TakenOver(NodeError):
    """Another client connected with this client id; the broker gave it the session."""


class Bus(Protocol):
    """A connection to a broker at QoS 1, with manual acknowledgement."""

    @property
    def traffic(self) -> BusTraffic:
        """Counters of this bus."""

    @property
    def unsent(self) -> int:
        """How many published messages have no outcome yet."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted this client and its subscriptions."""

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe now and after each reconnection.

        In a session that was kept, the bus drops messages on other topics and ends the subscriptions behind them.
        `poll` raises BrokerError when the broker refuses a subscription.
        """

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions, including those that an earlier process made in this session."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        """Send a message at QoS 1, and again after each reconnection until the broker has it.

        `poll` calls `on_outcome` exactly once.
        """

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a delivery, so that the broker forgets it.

        After a reconnection the call has no effect, and the broker sends the message again.
        """

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        """Wait up to `timeout_s` seconds for traffic and return the deliveries that came.

        The call reads about `most_bytes` bytes, at most one message more. With 0 it reads nothing, so TCP holds the
        broker back, and does everything else. Raises TakenOver when another client took the session, and BrokerError
        when no retry can help.
        """

    def close(self, *, forget: bool = False) -> None:
        """Flush for a moment and disconnect without the will; `forget` ends the session at the broker."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The sockets that a bus waits for. With neither, there is no connection now."""

    readers: tuple[socket.socket, ...] = ()
    writers: tuple[socket.socket, ...] = ()


class PollableBus(Bus, Protocol):
    """A bus that another one may poll together with others (mqtt/routed.py)."""

    @property
    def open(self) -> bool:
        """Whether `poll` has more to do than to connect again, such as to raise TakenOver."""

    def waits(self) -> Waits | None:
        """Return what to wait for before the next `poll`; None where that must not wait."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to publish, and the deliveries to acknowledge once the broker has it.

    With `needs_subscriber`, the loop keeps the message and publishes it again until a subscriber is there. With
    `partial`, a later message names the same deliveries, and they are acknowledged when both are safe.
    """

    topic: str
    payload: bytes
    acks: tuple[Delivery, ...] = ()
    retain: bool = False
    needs_subscriber: bool = False
    partial: bool = False
