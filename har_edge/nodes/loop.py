"""The loops that run nodes on a bus: they move bytes and wait; what a message means is the node's business."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from har_edge import __version__
from har_edge.errors import BrokerError, MessageError
from har_edge.messaging.bus import Bus, Claim, Delivery, Outgoing, Receipt, Session, Will
from har_edge.messaging.status import NodeStatus, State, encode_status
from har_edge.messaging.topics import Topics
from har_edge.nodes.results import decode_results
from har_edge.nodes.sensor import BYTES_A_RAW_VALUE, Sensor
from har_edge.nodes.stage import Stage
from har_edge.streams.recording import Window

_log = logging.getLogger(__name__)
POLL_S = 0.2
RETRY_S = 0.5
STATUS_S = 5.0
DRAIN_S = 3.0
SENDS_A_STEP = 16
# Consecutive windows of one stream, each with the time when its last sample exists (seconds after the start).
Batch = Sequence[tuple[float, Window]]


class Stop:
    """Set by SIGTERM or SIGINT; a loop looks at it between two steps."""

    def __init__(self) -> None:
        self.asked = False

    def catch_signals(self) -> Stop:
        """Stop cleanly on the first signal, at once on a second."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass(slots=True)
class Identity:
    """What a process says of itself, and the birth, will and claim that follow from it."""

    topics: Topics
    node: str
    role: str
    client: str
    detail: str = ""
    instance: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}")
    started: float = field(default_factory=time.time)

    @property
    def topic(self) -> str:
        return self.topics.status(self.node)

    def status(self, state: State, counters: dict[str, int] | None = None) -> bytes:
        """Return the status message for a state."""
        return encode_status(
            NodeStatus(
                node=self.node,
                role=self.role,
                state=state,
                instance=self.instance,
                started=self.started,
                version=__version__,
                client=self.client,
                detail=self.detail,
                counters=counters or {},
            )
        )

    def session(self, *, expiry_s: int, receive_max: int = 1024, max_payload_bytes: int = 16 * 1024 * 1024) -> Session:
        """Return the session of this node: named after pipeline and node, so that the next process takes it over."""
        return Session(
            client_id=f"{self.topics.base}-{self.topics.pipeline}-{self.node}",
            expiry_s=expiry_s,
            will=Will(self.topic, self.status(State.LOST)),
            claim=Claim(self.topic, self.instance, self.started),
            receive_max=receive_max,
            max_packet_bytes=max_payload_bytes + 4096,
        )


class Sender:
    """Publishes, and acknowledges inputs once the broker has the output; keeps what nobody hears and tries again."""

    def __init__(self, bus: Bus, on_unheard: Callable[[Outgoing], None]) -> None:
        self._bus, self._on_unheard = bus, on_unheard
        self._again: deque[tuple[float, Outgoing]] = deque()

    @property
    def pending(self) -> int:
        """How many messages are not yet safe at the broker."""
        return self._bus.unsent + len(self._again)

    def send(self, outgoing: Outgoing) -> None:
        """Publish one message, or release its deliveries when it has no topic."""
        if not outgoing.topic:
            self._release(outgoing)
            return
        self._bus.publish(
            outgoing.topic,
            outgoing.payload,
            retain=outgoing.retain,
            receipt=lambda receipt: self._settle(outgoing, receipt),
        )

    def retry(self, now: float) -> None:
        """Publish again what nobody heard a while ago."""
        while self._again and self._again[0][0] <= now:
            self.send(self._again.popleft()[1])

    def _settle(self, outgoing: Outgoing, receipt: Receipt) -> None:
        if receipt is Receipt.SAFE or (receipt is Receipt.UNHEARD and not outgoing.heard):
            self._release(outgoing)
            return
        if receipt is Receipt.REFUSED:
            _log.error("the broker refused a message on %s; trying again: see its access list", outgoing.topic)
        self._on_unheard(outgoing)
        self._again.append((time.monotonic() + RETRY_S, outgoing))

    def _release(self, outgoing: Outgoing) -> None:
        for delivery in outgoing.releases:
            self._bus.acknowledge(delivery)


class Herald:
    """Keeps the retained status of a node up to date: birth, now and then its counters, farewell."""

    def __init__(self, bus: Bus, identity: Identity, counters: Callable[[], dict[str, int]]) -> None:
        self._bus, self._identity, self._counters = bus, identity, counters
        self._due, self._reconnects = 0.0, -1

    def announce(self, now: float) -> None:
        """Publish the status if it is due: at birth, after a reconnection, every few seconds."""
        if not self._bus.connected or (now < self._due and self._reconnects == self._bus.traffic.reconnects):
            return
        self._due, self._reconnects = now + STATUS_S, self._bus.traffic.reconnects
        self._publish(State.READY)

    def farewell(self) -> None:
        """Publish that the node has gone on purpose."""
        self._publish(State.OFFLINE)

    def _publish(self, state: State) -> None:
        traffic = self._bus.traffic
        counters = self._counters() | {
            "sent_bytes": traffic.sent_bytes,
            "received_bytes": traffic.received_bytes,
            "reconnects": traffic.reconnects,
        }
        self._bus.publish(self._identity.topic, self._identity.status(state, counters), retain=True)


def run_stage(bus: Bus, stage: Stage, identity: Identity, stop: Stop, *, forget: bool = False) -> None:
    """Run a stage until `stop`; then let what is under way become safe, say goodbye, and disconnect.

    Raises TakenOver when another process has become this stage.
    """
    warned: set[str] = set()

    def unheard(outgoing: Outgoing) -> None:
        stage.counters.unheard += 1
        _warn_once(warned, outgoing.topic, "start the next stage")

    sender = Sender(bus, unheard)
    herald = Herald(bus, identity, stage.counters.as_dict)
    bus.subscribe(stage.filters)
    while not stop.asked:
        for delivery in bus.poll(POLL_S):
            for outgoing in stage.handle(delivery):
                sender.send(outgoing)
        for outgoing in stage.tick():
            sender.send(outgoing)
        now = time.monotonic()
        sender.retry(now)
        herald.announce(now)
    _drain(bus)
    herald.farewell()
    bus.close(forget=forget)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sensor sends: real time (`speed` times) or as fast as results come.

    At most `in_flight` windows are on their way without a result, 0 for no bound: a recording waits (it can), so that
    nothing piles up in the middle.
    """

    in_flight: int
    real_time: bool


class SensorLoop:
    """Sends the windows of one or several streams when they are due, and waits for results when too many are out."""

    def __init__(self, bus: Bus, sensor: Sensor, identity: Identity, pace: Pace, topics: Topics) -> None:
        self._bus, self._sensor, self._pace, self._topics = bus, sensor, pace, topics
        self._warned: set[str] = set()
        self._sender = Sender(bus, self._unheard)
        self._herald = Herald(bus, identity, self._counters)
        # For each stream: the number after the last window sent, and after the last one answered.
        self._sent: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        self._quiet_since = time.monotonic()

    def run(self, batches: Iterator[Batch], stop: Stop, *, forget: bool = True) -> None:
        """Send every batch; return when all are safe at the broker, or on `stop`."""
        if self._pace.in_flight:
            self._bus.subscribe([self._topics.result("+")])
        while not self._bus.connected and not stop.asked:
            self._step(POLL_S)
        started, started_at = time.monotonic(), time.time()
        for number, batch in enumerate(batches):
            stream, due = batch[-1][1].stream, started + batch[-1][0]
            while not stop.asked and not self._may_send(stream, due):
                self._step(self._wait_s(stream, due))
            if stop.asked:
                break
            windows = [window for _, window in batch]
            captured = [started_at + due_s if self._pace.real_time else time.time() for due_s, _ in batch]
            for outgoing in self._sensor.handle(windows, captured):
                self._sender.send(outgoing)
            self._sent[stream] = windows[-1].seq + 1
            if self._pace.real_time or number % SENDS_A_STEP == 0:
                self._step(0.0)
        while self._sender.pending and not stop.asked:
            self._step(POLL_S)
        _drain(self._bus)
        self._herald.farewell()
        self._bus.close(forget=forget)

    def _outstanding(self, stream: str) -> int:
        return self._sent.get(stream, 0) - self._answered.get(stream, 0)

    def _may_send(self, stream: str, due: float) -> bool:
        full = 0 < self._pace.in_flight <= self._outstanding(stream)
        return not full and (not self._pace.real_time or time.monotonic() >= due)

    def _wait_s(self, stream: str, due: float) -> float:
        if 0 < self._pace.in_flight <= self._outstanding(stream):
            if time.monotonic() - self._quiet_since > 10:
                self._quiet_since = time.monotonic()
                _log.warning("no result for 10 s with %d windows of %s out; waiting", self._outstanding(stream), stream)
            return POLL_S
        return min(POLL_S, max(0.0, due - time.monotonic()))

    def _step(self, timeout_s: float) -> None:
        for delivery in self._bus.poll(timeout_s):
            self._note_result(delivery)
        now = time.monotonic()
        self._sender.retry(now)
        self._herald.announce(now)

    def _note_result(self, delivery: Delivery) -> None:
        self._bus.acknowledge(delivery)
        self._quiet_since = time.monotonic()
        try:
            results = decode_results(delivery.payload)
        except MessageError as error:
            _log.warning("dropped %s: %s", delivery.topic, error)
            return
        for result in results:
            # Results of an earlier run of this stream may carry higher numbers than were sent now.
            answered = min(result.seq + 1, self._sent.get(result.stream, 0))
            self._answered[result.stream] = max(answered, self._answered.get(result.stream, 0))

    def _counters(self) -> dict[str, int]:
        raw_bytes = self._sensor.raw_values * BYTES_A_RAW_VALUE
        return self._sensor.counters.as_dict() | {"raw_bytes": raw_bytes}

    def _unheard(self, outgoing: Outgoing) -> None:
        self._sensor.counters.unheard += 1
        _warn_once(self._warned, outgoing.topic, "start the stages: `har-edge stage`")


def _drain(bus: Bus) -> None:
    """Wait a moment until what was published is safe; deliveries that still come stay the broker's."""
    deadline = time.monotonic() + DRAIN_S
    try:
        while bus.unsent and time.monotonic() < deadline:
            bus.poll(0.05)
    except BrokerError as error:
        _log.warning("stopping without the broker: %s", error)


def _warn_once(warned: set[str], topic: str, advice: str) -> None:
    if topic not in warned:
        warned.add(topic)
        _log.warning("nobody listens to %s; keeping the message and trying again: %s", topic, advice)
