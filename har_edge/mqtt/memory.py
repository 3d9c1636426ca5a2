"""A broker and its bus in memory, for tests and for pipelines within one process.

It keeps the promises that the nodes rely on: persistent sessions, manual acknowledgement, redelivery with the duplicate
mark, retained messages, wills, take-over, Receive Maximum, shared subscriptions, and "no matching subscriber".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.router import Router, SessionState, matches
from har_edge.mqtt.bus import BusTraffic, Delivery, OnOutcome, Session, TakenOver, Waits
from har_edge.mqtt.clients.stale_subscriptions import StaleSubscriptions
from har_edge.mqtt.clients.transport import AckOrder

__all__ = ["MemoryBroker", "MemoryBus", "matches"]


class MemoryBroker(Router):
    """Routes messages between MemoryBus clients; `stop` and `start` emulate a restart that keeps the broker's state."""

    def __init__(self) -> None:
        super().__init__()
        self.running = True

    def connect(self, session: Session) -> MemoryBus:
        """Return a connected bus. An older bus with the same client id is taken over."""
        bus = MemoryBus(self, session)
        bus.connect()
        return bus

    def stop(self) -> None:
        """Close every connection; the sessions stay."""
        self.running = False
        for account in self._accounts.values():
            if isinstance(account.bus, MemoryBus):
                account.bus.cut()

    def start(self) -> None:
        self.running = True

    def forget(self) -> None:
        """Drop all state, like a broker without a database; call it while the broker is stopped."""
        self._accounts.clear()
        self._retained.clear()
        self._turns.clear()
        self._subscribers.clear()


class MemoryBus:
    """A Bus whose broker lives in the same process; `poll` never waits."""

    def __init__(self, broker: MemoryBroker, session: Session) -> None:
        self._broker, self._session = broker, session
        self._traffic = BusTraffic()
        self._account: SessionState | None = None
        self._filters: list[str] = []
        self._unsent: deque[tuple[str, bytes, bool, OnOutcome | None]] = deque()
        self._acks, self._stale = AckOrder(), StaleSubscriptions()
        self._generation = 0
        self._taken_over = False
        self._clean = session.clean_start

    @property
    def traffic(self) -> BusTraffic:
        return self._traffic

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    @property
    def connected(self) -> bool:
        return self._account is not None

    @property
    def open(self) -> bool:
        return self._account is not None or self._taken_over

    def waits(self) -> Waits | None:
        return None

    def connect(self) -> None:
        if not self._broker.running:
            raise BrokerError("no broker in memory: it was stopped; start it")
        self._account = self._broker.attach(self, self._session, clean=self._clean)
        self._clean = False
        self._generation += 1
        self._acks.clear()
        if self._filters:
            self._broker.subscribe(self._account, self._filters)

    def subscribe(self, filters: Sequence[str]) -> None:
        self._filters += filters
        self._stale.want(filters)
        if self._account is not None:
            self._broker.subscribe(self._account, filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._filters = [text for text in self._filters if text not in filters]
        if self._account is not None:
            self._broker.unsubscribe(self._account, filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        self._traffic.published += 1
        self._unsent.append((topic, payload, retain, on_outcome))

    def acknowledge(self, delivery: Delivery) -> None:
        generation, packet_id = delivery.token
        if self._account is not None and generation == self._generation:
            for ready in self._acks.done(packet_id):
                self._account.acknowledged(ready)

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        del timeout_s
        if self._taken_over:
            raise TakenOver(self._session.client_id)
        if self._account is None:
            if not self._broker.running:
                return ()
            known = self._broker.knows(self._session)
            self.connect()
            self._traffic.reconnects += 1
            self._traffic.forgotten += not known
        self._send()
        return self._receive(math.inf if most_bytes is None else most_bytes)

    def close(self, *, forget: bool = False) -> None:
        if self._account is not None:
            self._send()
            self._broker.detach(self._account, will=False, forget=forget)
        self._account = None

    def crash(self) -> None:
        """Vanish like a killed process: nothing is flushed, and the broker publishes the will."""
        if self._account is not None:
            self._broker.detach(self._account, will=True)
        self._account = None

    def cut(self) -> None:
        """Lose the connection; the next `poll` tries to connect again."""
        if self._account is not None:
            self._account.bus = None
        self._account = None

    def take_over(self) -> None:
        """Record that another client owns this session now."""
        self._account, self._taken_over = None, True

    def _send(self) -> None:
        while self._unsent:
            topic, payload, retain, on_outcome = self._unsent.popleft()
            self._traffic.sent_bytes += len(topic) + len(payload)
            outcome, _ = self._broker.route(topic, payload, retain=retain)
            if on_outcome is not None:
                on_outcome(outcome)

    def _receive(self, most_bytes: float) -> list[Delivery]:
        account, deliveries, before = self._account, list[Delivery](), self._traffic.received_bytes
        while account is not None and self._traffic.received_bytes - before < most_bytes:
            stored = account.take()
            if stored is None:
                break
            self._acks.arrived(stored.packet_id)
            token = (self._generation, stored.packet_id)
            delivery = Delivery(stored.topic, stored.payload, token, stored.retained, stored.sent)
            stored.sent = True
            self._traffic.received += 1
            self._traffic.received_bytes += len(stored.topic) + len(stored.payload)
            if self._session.expiry_s and self._filters and self._stale.is_stale(stored.topic):
                self._traffic.stale += 1
                self.acknowledge(delivery)
                self._broker.unsubscribe(account, self._stale.leave(stored.topic))
            else:
                deliveries.append(delivery)
        return deliveries
