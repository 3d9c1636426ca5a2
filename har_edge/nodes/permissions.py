"""What each role publishes and subscribes to, and trying it: on topics of the very pipeline, without disturbing it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from har_edge.errors import BrokerError
from har_edge.messaging.bus import Bus, Receipt, Session
from har_edge.messaging.status import Beat, NodeStatus, State, encode_beat, encode_status
from har_edge.messaging.topics import PROBE, Kind, Topics
from har_edge.nodes.results import Result, encode_results

Connect = Callable[[Session], Bus]
# How long the broker may take for an answer, and for what was published to come back.
ANSWER_S = 5.0
ECHO_S = 2.0
_POLL_S = 0.02


class Role(Enum):
    """Who uses the broker; the value is the name of its user in brokers/README.md."""

    NODE = "node"
    SENSOR = "sensor"
    COORDINATOR = "coordinator"
    WATCHER = "watcher"
    OPERATOR = "operator"


# What each role publishes and what it subscribes to (brokers/README.md has the access list that says the same).
PUBLISHES = {
    Role.NODE: frozenset({Kind.ACTIVATION, Kind.RESULT, Kind.STATUS, Kind.BEAT}),
    Role.SENSOR: frozenset({Kind.WINDOW, Kind.STATUS}),
    Role.COORDINATOR: frozenset({Kind.PLAN, Kind.SLICE, Kind.CHUNK, Kind.STATUS, Kind.WINDOW}),
    Role.WATCHER: frozenset[Kind](),
    Role.OPERATOR: frozenset({Kind.WINDOW}),
}
READS = {
    Role.NODE: frozenset({Kind.WINDOW, Kind.ACTIVATION, Kind.STATUS, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
    Role.SENSOR: frozenset({Kind.RESULT, Kind.STATUS, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
    Role.COORDINATOR: frozenset({Kind.STATUS, Kind.BEAT, Kind.PLAN, Kind.SLICE, Kind.RESULT}),
    Role.WATCHER: frozenset({Kind.RESULT, Kind.STATUS, Kind.BEAT, Kind.PLAN}),
    Role.OPERATOR: frozenset({Kind.RESULT, Kind.STATUS, Kind.BEAT, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
}


@dataclass(frozen=True, slots=True)
class Right:
    """One kind of topic, and whether these roles publish it and subscribe to it."""

    kind: Kind
    publishes: bool
    reads: bool


@dataclass(frozen=True, slots=True)
class Tried:
    """How a right fared: `problem` is empty where nothing is wrong; `remark` says what could not be proven."""

    right: Right
    topic: str
    problem: str = ""
    remark: str = ""


def rights_of(roles: Collection[Role]) -> list[Right]:
    """Return what these roles need, together."""
    rights = [
        Right(kind, any(kind in PUBLISHES[role] for role in roles), any(kind in READS[role] for role in roles))
        for kind in Kind
    ]
    return [right for right in rights if right.publishes or right.reads]


def try_right(connect: Connect, topics: Topics, right: Right) -> Tried:
    """Subscribe, publish, and see whether it comes back, on a connection of its own."""
    topic, payload = _harmless(topics, right.kind)
    bus = connect(Session(f"doctor-{secrets.token_hex(8)}", clean_start=True))
    try:
        return _try(bus, right, topic, payload)
    finally:
        bus.close(forget=True)


def _harmless(topics: Topics, kind: Kind) -> tuple[str, bytes]:
    """Return a topic and a message that nobody acts on; nothing is retained."""
    name, now = f"doctor-{secrets.token_hex(4)}", time.time()
    stream, sha256 = f"{PROBE}{name}", hashlib.sha256(name.encode()).hexdigest()
    status = NodeStatus(node=name, role="doctor", state=State.STOPPED, instance=name, started=now)
    result = Result(stream, 0, "none", 0, 0.0, now, now, 0)
    choices: dict[Kind, tuple[str, bytes]] = {
        Kind.WINDOW: (topics.window(stream, name), b"{}"),
        Kind.ACTIVATION: (topics.activation(0, 0, stream), b"{}"),
        Kind.RESULT: (topics.result(stream), encode_results([result])),
        Kind.STATUS: (topics.status(name), encode_status(status)),
        Kind.BEAT: (topics.beat(name), encode_beat(Beat(name, name, 0, now))),
        Kind.PLAN: (topics.plan(), b"{}"),
        Kind.SLICE: (topics.slice(sha256), b""),
        Kind.CHUNK: (topics.chunk(sha256, 0), b""),
    }
    return choices[kind]


def _try(bus: Bus, right: Right, topic: str, payload: bytes) -> Tried:
    came: list[bytes] = []
    retained: list[bytes] = []

    def until(done: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            for delivery in bus.poll(_POLL_S):
                bus.acknowledge(delivery)
                if delivery.topic == topic:
                    came.append(delivery.payload)
                    if delivery.retained:
                        retained.append(delivery.payload)
        return True

    if right.reads:
        try:
            bus.subscribe([topic])
            if not until(lambda: bus.connected, ANSWER_S):
                return Tried(right, topic, f"the broker did not answer the subscription to {topic}")
        except BrokerError as error:
            return Tried(right, topic, str(error))
    if right.kind is Kind.PLAN:  # everybody follows it: say again what stands there, and nothing new
        until(lambda: retained, ECHO_S / 4 if right.reads else 0.0)
        if retained:
            return Tried(right, topic, *_may_publish(bus, right, topic, retained[-1], until))
    problem, remark = _may_publish(bus, right, topic, payload, until)
    if right.reads and not problem and not remark and not until(lambda: payload in came, ECHO_S):
        problem = f"the broker granted the subscription to {topic}, but delivers nothing there"
    return Tried(right, topic, problem, remark)


def _may_publish(
    bus: Bus, right: Right, topic: str, payload: bytes, until: Callable[[Callable[[], object], float], bool]
) -> tuple[str, str]:
    """Publish; return what is wrong with that, and what it leaves unproven."""
    receipts: list[Receipt] = []
    bus.publish(topic, payload, receipt=receipts.append)
    if not until(lambda: receipts, ANSWER_S):
        return f"the broker did not acknowledge a message on {topic}", ""
    if receipts[0] in (Receipt.SAFE, Receipt.UNHEARD):
        return "", ""
    if right.publishes:
        return f"the broker refused a message on {topic}", ""
    return "", "granted; not proven that anything comes, since this user may not publish there"
