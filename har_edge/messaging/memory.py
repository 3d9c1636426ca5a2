"""A broker and its bus in memory, for tests and for pipelines within one process.

It keeps the promises that the nodes rely on: persistent sessions, manual acknowledgement, redelivery with the duplicate
mark, retained messages, wills, take-over, receive maximum, shared subscriptions, "no matching subscriber".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from har_edge.errors import BrokerError
from har_edge.messaging.bus import Delivery, OnReceipt, Receipt, Session, TakenOver, Traffic
from har_edge.messaging.link import AckOrder, read_share


@dataclass(slots=True)
class _Stored:
    topic: str
    payload: bytes
    retained: bool = False
    sent: bool = False


@dataclass(slots=True)
class _Account:
    """What the broker keeps of one client id."""

    session: Session
    filters: list[str] = field(default_factory=list)
    queue: deque[_Stored] = field(default_factory=deque)
    unacknowledged: OrderedDict[int, _Stored] = field(default_factory=OrderedDict)
    next_id: int = 0
    bus: MemoryBus | None = None


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic matches a filter with `+` and `#` (MQTT 5, section 4.7)."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


class MemoryBroker:
    """Routes messages between MemoryBus clients; `stop` and `start` stand for a restart that keeps its state."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._retained: dict[str, bytes] = {}
        # The client ids of each shared subscription, whose turn it is first: those that are away have theirs too.
        self._turns: dict[tuple[str, str], deque[str]] = {}
        self.running = True

    def connect(self, session: Session) -> MemoryBus:
        """Return a connected bus; an older one with the same client id is taken over."""
        bus = MemoryBus(self, session)
        bus.connect()
        return bus

    def stop(self) -> None:
        """Cut every connection; sessions stay."""
        self.running = False
        for account in self._accounts.values():
            if account.bus is not None:
                account.bus.cut()

    def start(self) -> None:
        self.running = True

    def forget(self) -> None:
        """Lose what is kept, as a broker does that has no database; call it while stopped."""
        self._accounts.clear()
        self._retained.clear()
        self._turns.clear()

    def knows(self, session: Session) -> bool:
        """Tell whether there is a session of this client."""
        return session.client_id in self._accounts

    def attach(self, bus: MemoryBus, session: Session, *, clean: bool) -> _Account:
        """Give a bus its account: the one kept, or a new one."""
        account = self._accounts.get(session.client_id)
        if account is not None and account.bus is not None and account.bus is not bus:
            loser = account.bus
            self.detach(account, will=True)
            loser.take_over()
            account = self._accounts.get(session.client_id)
        if account is None or clean:
            self._forget_turns(session.client_id)
            account = self._accounts[session.client_id] = _Account(session)
        account.session, account.bus = session, bus
        account.queue.extendleft(reversed(account.unacknowledged.values()))
        account.unacknowledged.clear()
        return account

    def detach(self, account: _Account, *, will: bool, forget: bool = False) -> None:
        """Take note that a client has gone, with or without its will."""
        account.bus = None
        if forget or account.session.expiry_s == 0:
            self._accounts.pop(account.session.client_id, None)
            self._forget_turns(account.session.client_id)
        if will and account.session.will is not None:
            self.route(account.session.will.topic, account.session.will.payload, retain=True)

    def subscribe(self, account: _Account, filters: Sequence[str]) -> None:
        account.filters += [text for text in filters if text not in account.filters]
        for share in filter(None, map(read_share, filters)):  # these are sent nothing that is retained
            members = self._turns.setdefault(share, deque())
            if account.session.client_id not in members:
                members.append(account.session.client_id)
        for topic, payload in self._retained.items():
            if any(matches(text, topic) for text in filters):
                account.queue.append(_Stored(topic, payload, retained=True))

    def route(self, topic: str, payload: bytes, *, retain: bool) -> Receipt:
        """Store and forward one message."""
        if retain:
            if payload:
                self._retained[topic] = payload
            else:
                self._retained.pop(topic, None)
        takers = [one for one in self._accounts.values() if any(matches(text, topic) for text in one.filters)]
        for (_, shared), members in self._turns.items():
            if members and matches(shared, topic):
                takers.append(self._accounts[members[0]])
                members.rotate(-1)
        for account in takers:
            if len(payload) <= account.session.max_packet_bytes:
                account.queue.append(_Stored(topic, payload))
        return Receipt.SAFE if takers else Receipt.UNHEARD

    def _forget_turns(self, client_id: str) -> None:
        for members in self._turns.values():
            if client_id in members:
                members.remove(client_id)


class MemoryBus:
    """A Bus whose broker lives in the same process; `poll` never waits."""

    def __init__(self, broker: MemoryBroker, session: Session) -> None:
        self._broker, self._session = broker, session
        self._traffic = Traffic()
        self._account: _Account | None = None
        self._filters: list[str] = []
        self._outbox: deque[tuple[str, bytes, bool, OnReceipt | None]] = deque()
        self._acks = AckOrder()
        self._generation = 0
        self._taken_over = False
        self._clean = session.clean_start

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def unsent(self) -> int:
        return len(self._outbox)

    @property
    def connected(self) -> bool:
        return self._account is not None

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
        if self._account is not None:
            self._broker.subscribe(self._account, filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, receipt: OnReceipt | None = None) -> None:
        self._traffic.published += 1
        self._outbox.append((topic, payload, retain, receipt))

    def acknowledge(self, delivery: Delivery) -> None:
        generation, packet_id = delivery.token
        if self._account is not None and generation == self._generation:
            for ready in self._acks.done(packet_id):
                self._account.unacknowledged.pop(ready, None)

    def poll(self, timeout_s: float) -> Sequence[Delivery]:
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
        return self._receive()

    def close(self, *, forget: bool = False) -> None:
        if self._account is not None:
            self._send()
            self._broker.detach(self._account, will=False, forget=forget)
        self._account = None

    def crash(self) -> None:
        """Vanish as a killed process does: nothing is flushed, the broker publishes the will."""
        if self._account is not None:
            self._broker.detach(self._account, will=True)
        self._account = None

    def cut(self) -> None:
        """Lose the connection; the next poll tries to connect again."""
        if self._account is not None:
            self._account.bus = None
        self._account = None

    def take_over(self) -> None:
        """Learn that another client has this session now."""
        self._account, self._taken_over = None, True

    def _send(self) -> None:
        while self._outbox:
            topic, payload, retain, receipt = self._outbox.popleft()
            self._traffic.sent_bytes += len(topic) + len(payload)
            outcome = self._broker.route(topic, payload, retain=retain)
            if receipt is not None:
                receipt(outcome)

    def _receive(self) -> list[Delivery]:
        account, deliveries = self._account, []
        while account is not None and account.queue and len(account.unacknowledged) < self._session.receive_max:
            stored = account.queue.popleft()
            account.next_id += 1
            account.unacknowledged[account.next_id] = stored
            self._acks.arrived(account.next_id)
            token = (self._generation, account.next_id)
            deliveries.append(Delivery(stored.topic, stored.payload, token, stored.retained, stored.sent))
            stored.sent = True
            self._traffic.received += 1
            self._traffic.received_bytes += len(stored.topic) + len(stored.payload)
        return deliveries
