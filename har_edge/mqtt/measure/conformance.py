"""Measure what a broker does with sessions, retained messages, shared subscriptions and limits, whatever it announces.

One prober opens short connections and sends messages to itself, below a topic of its own, and leaves nothing behind. A
SUBACK proves nothing, so every measurement delivers real messages. Each measurement is a function of the prober;
`measure` runs them all.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session, SessionLease

Connect = Callable[[Session], Bus]
KEPT_S = 60
WAIT_S = 2.0  # how long something that ought to come may take
QUIET_S = 0.3  # after that long a silence nothing more comes
IN_FLIGHT = 256  # how many are sent to see how many the broker has under way
ASKED = 8  # the Receive Maximum that is asked for to see whether it is kept
QUEUED = 1500  # more than Mosquitto keeps by default for a client that is away (1000, and 20 under way)
SIZES = (4 * 1024, 32 * 1024, 260 * 1024, 1024 * 1024)  # of payloads; a piece of a slice has up to 256 KiB and a header
VERSION = "$SYS/broker/version"
DROPPED = "$SYS/broker/publish/messages/dropped"
AWAY = "$SYS/broker/clients/disconnected"


class BrokerMeasurement(msgspec.Struct, frozen=True):
    """The measured behaviour of a broker. Counts refer to what was tried: `in_flight` of IN_FLIGHT, `queued` of QUEUED.

    `protocol` is the MQTT version in use. `max_held` is the number of unacknowledged messages that a client received
    after it asked for ASKED, None where it cannot ask. `largest_bytes` is the largest payload of SIZES that came
    through.

    `dropped` is how many messages the broker says that it dropped since its start, and `away` how many sessions wait
    for clients that are not connected. Both are None where the broker does not say; Mosquitto 2.0.11 says it for a
    minute after a count changed.
    """

    protocol: str
    version: str
    retained: bool
    retained_wildcards: bool
    session_kept: bool
    redelivered: bool
    marked_again: bool
    taken_over: bool
    says_unheard: bool
    shared: bool
    in_flight: int
    max_held: int | None
    queued: int
    largest_bytes: int
    dropped: int | None
    away: int | None = None


@dataclass(slots=True)
class BrokerProber:
    """Opens connections under names of its own, and closes all of them."""

    connect: Connect
    prefix: str
    mqtt5: bool
    clock: Callable[[], float] = time.monotonic
    _token: str = field(default_factory=lambda: secrets.token_hex(4))
    _open: list[Bus] = field(default_factory=list)

    def topic(self, name: str) -> str:
        return f"{self.prefix}probe/{self._token}/{name}"

    def bus(self, name: str, *, kept: bool = False, receive_max: int = 1024, filters: Sequence[str] = ()) -> Bus:
        """Connect as `name`, with a session that is kept or not, and subscribe to the filters."""
        session = Session(
            f"probe-{self._token}-{name}",
            KEPT_S if kept else 0,
            clean_start=not kept,
            lease=SessionLease(self.topic("claim"), lambda _: True),  # a client that is taken over ends silently
            receive_max=receive_max,
        )
        bus = self.connect(session)
        self._open.append(bus)
        if filters:
            bus.subscribe(filters)
        return bus

    def settle(self, bus: Bus) -> None:
        """Wait until the broker has acknowledged all messages and subscriptions."""
        deadline = self.clock() + WAIT_S
        while (bus.unsent or not bus.connected) and self.clock() < deadline:
            bus.poll(0.01)

    def ready(self, name: str, *filters: str, kept: bool = False, receive_max: int = 1024) -> Bus:
        bus = self.bus(name, kept=kept, receive_max=receive_max, filters=filters)
        self.settle(bus)
        return bus

    def send(self, bus: Bus, topic: str, payloads: Sequence[bytes], *, retain: bool = False) -> list[PublishOutcome]:
        """Publish messages; return the outcomes that the broker reports in time."""
        outcomes: list[PublishOutcome] = []
        for payload in payloads:
            bus.publish(topic, payload, retain=retain, on_outcome=outcomes.append)
        deadline = self.clock() + WAIT_S
        while len(outcomes) < len(payloads) and self.clock() < deadline:
            before = len(outcomes)
            bus.poll(0.01)
            if len(outcomes) > before:
                deadline = self.clock() + WAIT_S
        return outcomes

    def take(self, bus: Bus, count: int, *, acknowledge: bool = True, wait_s: float = WAIT_S) -> list[Delivery]:
        """Return up to `count` deliveries; stop when nothing has come for `wait_s` seconds."""
        came: list[Delivery] = []
        deadline = self.clock() + wait_s
        while len(came) < count and self.clock() < deadline:
            for delivery in bus.poll(0.02):
                came.append(delivery)
                deadline = self.clock() + wait_s
                if acknowledge:
                    bus.acknowledge(delivery)
        return came

    def leave(self, bus: Bus) -> None:
        """Close a connection. Its session stays for the next connection of the same name, which ends it."""
        self._open.remove(bus)
        bus.close()

    def close(self) -> None:
        for bus in self._open:
            bus.close(forget=True)
        self._open.clear()


def measure(connect: Connect, prefix: str, *, mqtt5: bool) -> BrokerMeasurement:
    """Measure a broker below a prefix of topics, in a few seconds.

    Raises BrokerError when no message comes back.
    """
    prober = BrokerProber(connect, prefix, mqtt5)
    try:
        _check_echo(prober)
        retained, wildcards = _retained(prober)
        kept, redelivered, marked = _session(prober)
        version, dropped, away = _told(prober)
        return BrokerMeasurement(
            protocol="5" if mqtt5 else "3.1.1",
            version=version,
            retained=retained,
            retained_wildcards=wildcards,
            session_kept=kept,
            redelivered=redelivered,
            marked_again=marked,
            taken_over=_take_over(prober),
            says_unheard=prober.send(prober.bus("lonely"), prober.topic("nobody"), [b"x"])
            == [PublishOutcome.NO_SUBSCRIBERS],
            shared=_shared(prober),
            in_flight=_in_flight(prober),
            max_held=_max_held(prober) if mqtt5 else None,
            queued=_queued(prober),
            largest_bytes=_largest(prober),
            dropped=dropped,
            away=away,
        )
    finally:
        prober.close()


def _check_echo(prober: BrokerProber) -> None:
    """Raise BrokerError where not even one message comes back: then nothing can be measured."""
    bus = prober.ready("echo", prober.topic("echo"))
    prober.send(prober.bus("to-echo"), prober.topic("echo"), [b"x"])
    if not prober.take(bus, 1):
        raise BrokerError(
            f"a message to {prober.prefix}probe/... does not come back, so the broker cannot be measured; permit this "
            f"user `topic readwrite {prober.prefix}probe/#`, or ask as a user who may"
        )


def _retained(prober: BrokerProber) -> tuple[bool, bool]:
    """Return whether a subscription gets retained messages by the exact topic, and by a wildcard."""
    sender, topic = prober.bus("keeper"), prober.topic("kept/status")
    prober.send(sender, topic, [b"x"], retain=True)
    found = []
    for name, text in (("plain", topic), ("wild", prober.topic("+/status"))):
        came = prober.take(prober.bus(name, filters=[text]), 1)
        found.append(any(one.retained for one in came))
    prober.send(sender, topic, [b""], retain=True)
    return found[0], found[1]


def _session(prober: BrokerProber) -> tuple[bool, bool, bool]:
    """Return whether messages wait for a client that is away, and whether unacknowledged ones come again, marked so."""
    topic, sender = prober.topic("session"), prober.bus("to-session")
    first = prober.ready("session", topic, kept=True)
    prober.send(sender, topic, [b"0", b"1"])
    held = prober.take(first, 2, acknowledge=False)
    prober.leave(first)
    prober.send(sender, topic, [b"2"])
    came = prober.take(prober.bus("session", kept=True), 3)
    again = [one for one in came if one.payload in (b"0", b"1")]
    return (
        any(one.payload == b"2" for one in came),
        len(held) == 2 and len(again) >= 2,
        bool(again) and all(one.duplicate for one in again),
    )


def _take_over(prober: BrokerProber) -> bool:
    """Return whether a second client of a session gets what the first one holds, while the first is still connected."""
    topic, sender = prober.topic("over"), prober.bus("to-over")
    first = prober.ready("over", topic, kept=True)
    prober.send(sender, topic, [b"held"])
    prober.take(first, 1, acknowledge=False)
    second = prober.bus("over", kept=True)
    came = prober.take(second, 1)
    prober.leave(first)
    return bool(came)


def _shared(prober: BrokerProber) -> bool:
    """Return whether each message of a shared subscription goes to one of two members."""
    topic = prober.topic("turns")
    members = [prober.ready(f"member-{name}", f"$share/{prober.topic('g').replace('/', '-')}/{topic}") for name in "ab"]
    prober.send(prober.bus("to-turns"), topic, [b"0", b"1", b"2", b"3"])
    came = [prober.take(member, 4, wait_s=WAIT_S / 2 if not index else QUIET_S) for index, member in enumerate(members)]
    return all(came) and sorted(one.payload for part in came for one in part) == [b"0", b"1", b"2", b"3"]


def _in_flight(prober: BrokerProber) -> int:
    """Return how many of IN_FLIGHT messages come to a client that acknowledges none."""
    topic = prober.topic("flight")
    bus = prober.ready("flight", topic)
    prober.send(prober.bus("to-flight"), topic, [b"x"] * IN_FLIGHT)
    return len(prober.take(bus, IN_FLIGHT, acknowledge=False, wait_s=QUIET_S))


def _max_held(prober: BrokerProber) -> int:
    """Return how many unacknowledged messages a client received that asked for ASKED (MQTT 5, section 3.1.2.11.3)."""
    topic = prober.topic("held")
    bus = prober.ready("held", topic, receive_max=ASKED)
    prober.send(prober.bus("to-held"), topic, [b"x"] * (8 * ASKED))
    held = prober.take(bus, 8 * ASKED, acknowledge=False, wait_s=QUIET_S)
    most = len(held)
    for _ in range(3):
        if not held:
            break
        bus.acknowledge(held.pop(0))
        held += prober.take(bus, 8 * ASKED, acknowledge=False, wait_s=QUIET_S)
        most = max(most, len(held))
    return most


def _queued(prober: BrokerProber) -> int:
    """Return how many of QUEUED messages wait for a client that is away."""
    topic = prober.topic("queue")
    prober.leave(prober.ready("queue", topic, kept=True))
    prober.send(prober.bus("to-queue"), topic, [b"%d" % number for number in range(QUEUED)])
    came = {one.payload for one in prober.take(prober.bus("queue", kept=True), QUEUED)}
    if 0 < len(came) < QUEUED:  # aedes with Redis hands over 1000 a connection
        came |= {one.payload for one in prober.take(prober.bus("queue", kept=True), QUEUED - len(came))}
    return len(came)


def _largest(prober: BrokerProber) -> int:
    """Return the largest payload of SIZES that comes through, 0 for none; the first that does not ends the test."""
    topic, largest = prober.topic("size"), 0
    bus, sender = prober.ready("size", topic), prober.bus("to-size")
    for size in SIZES:
        outcomes = prober.send(sender, topic, [bytes(size)])
        if PublishOutcome.TOO_LARGE in outcomes or not prober.take(bus, 1):
            break
        largest = size
    return largest


def _told(prober: BrokerProber) -> tuple[str, int | None, int | None]:
    """Return what a broker publishes, in Mosquitto's way, about its version, dropped messages and waiting sessions."""
    try:
        came = prober.take(prober.bus("told", filters=[VERSION, DROPPED, AWAY]), 3, wait_s=2 * QUIET_S)
    except BrokerError:  # it refuses subscriptions to $SYS
        return "", None, None
    told = {one.topic: one.payload.decode("utf-8", "replace") for one in came}
    return told.get(VERSION, ""), _count(told.get(DROPPED, "")), _count(told.get(AWAY, ""))


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
