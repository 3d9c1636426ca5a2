"""The topics that each role publishes and subscribes to, and a test of these permissions on the pipeline itself.

The test does not disturb the pipeline.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import Heartbeat, NodeStatus, State, encode_heartbeat, encode_status
from har_edge.protocol.topics import PROBE, Kind, Topics
from har_edge.timing import OTHERS_LISTEN_S

Connect = Callable[[Session], Bus]
# How long the broker may take for an answer, and for what was published to come back.
ANSWER_S = 5.0
ECHO_S = 2.0
PLAN_S = 1.0
_POLL_S = 0.02


class Role(Enum):
    """Who uses the broker; the value is the name of its user in brokers/README.md."""

    NODE = "node"
    SENSOR = "sensor"
    COORDINATOR = "coordinator"
    STAGE = "stage"
    WATCHER = "watcher"
    OPERATOR = "operator"


# The topics that each role publishes and subscribes to (brokers/README.md has the same as an access list).
PUBLISHES = {
    Role.NODE: frozenset({Kind.ACTIVATION, Kind.RESULT, Kind.STATUS, Kind.HEARTBEAT}),
    Role.SENSOR: frozenset({Kind.WINDOW, Kind.STATUS}),
    Role.COORDINATOR: frozenset({Kind.PLAN, Kind.SLICE, Kind.CHUNK, Kind.STATUS, Kind.WINDOW}),
    Role.STAGE: frozenset({Kind.ACTIVATION, Kind.RESULT, Kind.STATUS}),
    Role.WATCHER: frozenset[Kind](),
    Role.OPERATOR: frozenset({Kind.WINDOW}),
}
READS = {
    Role.NODE: frozenset({Kind.WINDOW, Kind.ACTIVATION, Kind.STATUS, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
    Role.SENSOR: frozenset({Kind.RESULT, Kind.STATUS, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
    Role.COORDINATOR: frozenset({Kind.STATUS, Kind.HEARTBEAT, Kind.PLAN, Kind.SLICE, Kind.RESULT}),
    Role.STAGE: frozenset({Kind.WINDOW, Kind.ACTIVATION, Kind.STATUS}),
    Role.WATCHER: frozenset({Kind.RESULT, Kind.STATUS, Kind.HEARTBEAT, Kind.PLAN}),
    Role.OPERATOR: frozenset({Kind.RESULT, Kind.STATUS, Kind.HEARTBEAT, Kind.PLAN, Kind.SLICE, Kind.CHUNK}),
}
# The topics in a line of the access list, below the pipeline and no more; brokers/README.md writes the same.
_BELOW = {
    Kind.WINDOW: "window/#",
    Kind.ACTIVATION: "act/#",
    Kind.RESULT: "result/+",
    Kind.STATUS: "node/+/status",
    Kind.HEARTBEAT: "beat/+",
    Kind.PLAN: "plan",
    Kind.SLICE: "slice/+",
    Kind.CHUNK: "chunk/+/+",
}


@dataclass(frozen=True, slots=True)
class Permission:
    """One kind of topic, and whether these roles publish it and subscribe to it."""

    kind: Kind
    publishes: bool
    reads: bool

    def line(self, topics: Topics) -> str:
        """Return the line of Mosquitto's access list that permits this and nothing else."""
        word = "readwrite" if self.publishes and self.reads else "write" if self.publishes else "read"
        return f"topic {word} {topics.prefix}{_BELOW[self.kind]}"


@dataclass(frozen=True, slots=True)
class PermissionResult:
    """How a permission fared: `problem` is empty where nothing is wrong; `remark` says what could not be proven."""

    permission: Permission
    topic: str
    problem: str = ""
    remark: str = ""


def permissions_of(roles: Collection[Role]) -> list[Permission]:
    """Return what these roles need, together."""
    permissions = [
        Permission(kind, any(kind in PUBLISHES[role] for role in roles), any(kind in READS[role] for role in roles))
        for kind in Kind
    ]
    return [permission for permission in permissions if permission.publishes or permission.reads]


def can_see(roles: Collection[Role], reads: Collection[Kind], publishes: Collection[Kind] = ()) -> bool:
    """Return whether these roles together may read and publish these kinds."""
    permissions = {permission.kind: permission for permission in permissions_of(roles)}
    none = Permission(Kind.PLAN, publishes=False, reads=False)
    return all(permissions.get(kind, none).reads for kind in reads) and all(
        permissions.get(kind, none).publishes for kind in publishes
    )


def try_permission(connect: Connect, topics: Topics, permission: Permission) -> PermissionResult:
    """Subscribe, publish, and see whether it comes back, on a connection of its own."""
    bus = connect(Session(f"doctor-{secrets.token_hex(8)}", clean_start=True))
    try:
        return _Attempt(bus, topics, permission).run()
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
        Kind.HEARTBEAT: (topics.heartbeat(name), encode_heartbeat(Heartbeat(name, name, 0, now))),
        Kind.PLAN: (topics.plan(), b""),
        Kind.SLICE: (topics.slice(sha256), b""),
        Kind.CHUNK: (topics.chunk(sha256, 0), b""),
    }
    return choices[kind]


def _others(topics: Topics, kind: Kind) -> str | None:
    """Return a filter for what others say of a kind, where listening to it disturbs nobody.

    A window or activation that only the doctor hears would count as heard, and chunks are large.
    """
    return {
        Kind.RESULT: topics.result("+"),
        Kind.STATUS: topics.status("+"),
        Kind.HEARTBEAT: topics.heartbeat("+"),
        Kind.SLICE: topics.slice("+"),
    }.get(kind)


class _Attempt:
    """One permission being tried on a connection of its own."""

    def __init__(self, bus: Bus, topics: Topics, permission: Permission) -> None:
        self._bus, self._topics, self._right = bus, topics, permission
        self.topic, self._payload = _harmless(topics, permission.kind)
        self._came: list[Delivery] = []

    def run(self) -> PermissionResult:
        """Subscribe, publish, wait for what comes back."""
        problem, permission = self._subscribe(self.topic) if self._right.reads else "", self._right
        if (
            permission.kind is Kind.PLAN and not problem
        ):  # everybody follows it: say again what stands there, or nothing
            if not self._until(lambda: self._came, PLAN_S):
                return PermissionResult(
                    permission, self.topic, remark="not tried: no plan is there that could be said again"
                )
            self._payload = self._came[0].payload
            if not permission.publishes:
                return PermissionResult(permission, self.topic)
        outcome = None if problem else self._publish()
        if problem or outcome is None:
            return PermissionResult(
                permission, self.topic, problem or f"the broker did not acknowledge a message on {self.topic}"
            )
        permitted = outcome in (PublishOutcome.ACKED, PublishOutcome.NO_SUBSCRIBERS)
        if permission.publishes and not permitted:
            return PermissionResult(permission, self.topic, f"the broker refused a message on {self.topic}")
        if not permission.reads:
            return PermissionResult(permission, self.topic)
        if permitted:
            echoed = self._until(lambda: any(one.payload == self._payload for one in self._came), ECHO_S)
            nothing = f"the broker granted the subscription to {self.topic}, but delivers nothing there"
            return PermissionResult(permission, self.topic, "" if echoed else nothing)
        return self._hear_others()

    def _hear_others(self) -> PermissionResult:
        """Return the result of a topic on which this user may not publish: only messages of others prove it."""
        others = _others(self._topics, self._right.kind)
        problem = self._subscribe(others) if others else ""
        heard = others is not None and not problem and self._until(lambda: self._came, OTHERS_LISTEN_S)
        return PermissionResult(
            self._right, self.topic, problem, "" if heard else "granted; nothing came that would prove it"
        )

    def _subscribe(self, pattern: str) -> str:
        """Return what is wrong with a subscription; empty where nothing is."""
        try:
            self._bus.subscribe([pattern])
            answered = self._until(lambda: self._bus.connected, ANSWER_S)
        except BrokerError as error:
            return str(error)
        return "" if answered else f"the broker did not answer the subscription to {pattern}"

    def _publish(self) -> PublishOutcome | None:
        outcomes: list[PublishOutcome] = []
        self._bus.publish(self.topic, self._payload, on_outcome=outcomes.append)
        self._until(lambda: outcomes, ANSWER_S)
        return outcomes[0] if outcomes else None

    def _until(self, done: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                self._came.append(delivery)
        return True
