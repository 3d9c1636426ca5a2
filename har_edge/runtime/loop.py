"""The loops that run nodes on a bus: they move bytes and wait; what a message means is the node's business."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import FrameType

import msgspec

from har_edge import __version__
from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Delivery, Outgoing, Receipt, Session, Will
from har_edge.protocol.status import (
    UNREADABLE,
    NodeCapabilities,
    NodeStatus,
    SliceInfo,
    State,
    StreamCount,
    decode_status,
    encode_status,
    lease_of,
)
from har_edge.protocol.topics import RETAINED, Kind, Topics
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.stage import Stage

_log = logging.getLogger(__name__)
POLL_S = 0.2
RETRY_S = 0.5
STATUS_S = 5.0
DRAIN_S = 3.0
# How long who is asked to stop waits for a broker that has gone: without one nothing can be handed over.
GONE_S = 1.5
# How long a stage computes before it looks at the connection again: results leave, and a slow model stays alive.
TURN_S = 0.02
# How old the totals of a busy stage may be.
COUNT_S = 0.02
PATIENCE_S = 2.0
# The counters of windows that a node lost.
LOSSES = ("given_up", "too_large", "dropped")
# What may wait to be handled, in bytes, with what each message takes beside its payload; above that, the broker waits.
QUEUED_BYTES = 16 * 1024 * 1024
MESSAGE_BYTES = 512


class Stop:
    """Set by SIGTERM or SIGINT; a loop looks at it between two steps."""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int = signal.SIGINT  # what asked

    def catch_signals(self) -> Stop:
        """Stop cleanly on the first signal, at once on a second."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.signal = True, number


@dataclass(slots=True)
class Identity:
    """What a process says of itself, and the birth, will and lease that follow from it.

    `detail`, `device` and `epoch` may change while it runs: the next status says so.
    """

    topics: Topics
    node: str
    role: str
    client: str
    detail: str = ""
    instance: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}")
    started: float = field(default_factory=time.time)
    device: NodeCapabilities | None = None
    epoch: int = 0
    slice: SliceInfo | None = None
    sources: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        return self.topics.status(self.node)

    def status(
        self,
        state: State,
        counters: dict[str, int] | None = None,
        streams: Mapping[str, StreamCount] | None = None,
        *,
        said: float = 0.0,
        lost_at: float = 0.0,
    ) -> bytes:
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
                device=self.device,
                epoch=self.epoch,
                slice=self.slice,
                streams=dict(streams or {}),
                sources=self.sources,
                said=said,
                lost_at=lost_at,
            )
        )

    def session(self, *, expiry_s: int, receive_max: int = 1024, max_payload_bytes: int = 16 * 1024 * 1024) -> Session:
        """Return the session of this node: named after pipeline and node, so that the next process takes it over."""
        return Session(
            client_id=f"{self.topics.base}.{self.topics.pipeline}.{self.node}",
            expiry_s=expiry_s,
            will=Will(self.topic, self.status(State.LOST)),
            lease=lease_of(self.topic, self.instance, self.started),
            receive_max=receive_max,
            max_packet_bytes=max_payload_bytes + 4096,
        )


class Sender:
    """Publishes, and acknowledges inputs once the broker has the output; keeps what nobody hears and tries again.

    `advice` says what to do when nobody listens; that, and a refusal, are logged once.
    """

    def __init__(self, bus: Bus, counters: Counters, advice: str) -> None:
        self._bus, self._counters, self._advice = bus, counters, advice
        self._again: deque[tuple[float, Outgoing]] = deque()
        self._logged: set[Receipt] = set()
        # How many messages still hold each delivery: it is acknowledged when the last of them is safe.
        self._holders: dict[tuple[int, int], int] = {}

    @property
    def pending(self) -> int:
        """How many messages are not yet safe at the broker."""
        return self._bus.unsent + len(self._again)

    @property
    def kept(self) -> int:
        """How many messages wait to be tried again."""
        return len(self._again)

    def send(self, outgoing: Outgoing) -> None:
        """Publish one message, or release its deliveries when it has no topic.

        Deliveries that several messages settle are named in each, and all of those must be sent before the next poll.
        """
        for delivery in outgoing.releases:
            self._holders[delivery.token] = self._holders.get(delivery.token, 0) + 1
        if outgoing.topic:
            self._publish(outgoing)
        else:
            self._release(outgoing)

    def _publish(self, outgoing: Outgoing) -> None:
        self._bus.publish(
            outgoing.topic,
            outgoing.payload,
            retain=outgoing.retain,
            receipt=lambda receipt: self._settle(outgoing, receipt),
        )

    def retry(self, now: float) -> None:
        """Publish again what nobody heard a while ago."""
        while self._again and self._again[0][0] <= now:
            self._publish(self._again.popleft()[1])

    def _settle(self, outgoing: Outgoing, receipt: Receipt) -> None:
        if receipt is Receipt.SAFE or (receipt is Receipt.UNHEARD and not outgoing.heard):
            self._release(outgoing)
            return
        if receipt is Receipt.TOO_LARGE:  # no retry makes it smaller
            self._counters.too_large += 1
            self._release(outgoing)
            return
        self._again.append((time.monotonic() + RETRY_S, outgoing))
        if receipt is Receipt.UNHEARD:
            self._counters.unheard += 1
            text = f"nobody listens to {outgoing.topic}; keeping the message and trying again: {self._advice}"
        else:
            self._counters.refused += 1
            text = f"the broker refused a message on {outgoing.topic}; trying again: see its access list"
        if receipt not in self._logged:
            self._logged.add(receipt)
            _log.warning(text)

    def _release(self, outgoing: Outgoing) -> None:
        for delivery in outgoing.releases:
            self._holders[delivery.token] -= 1
            if not self._holders[delivery.token]:
                del self._holders[delivery.token]
                self._bus.acknowledge(delivery)


class StatusPublisher:
    """Keeps the retained status of a node up to date: birth, now and then its counters, farewell.

    `streams` gives what a sensor sent.
    """

    def __init__(
        self,
        bus: Bus,
        identity: Identity,
        counters: Callable[[], dict[str, int]],
        streams: Callable[[], Mapping[str, StreamCount]] = dict,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus, self._identity, self._counters, self._streams = bus, identity, counters, streams
        self._due, self._said, self._wall = 0.0, (-1, 0), wall
        self._lost, self._lost_at = 0, 0.0

    def announce(self, now: float) -> None:
        """Publish the status if it is due: at birth, after a reconnection, in a new epoch, every few seconds."""
        what = (self._bus.traffic.reconnects, self._identity.epoch)
        if not self._bus.connected or (now < self._due and self._said == what):
            return
        self._due, self._said = now + STATUS_S, what
        self._publish(State.READY)

    def farewell(self) -> None:
        """Publish that the node has gone on purpose."""
        self._publish(State.STOPPED)

    def _publish(self, state: State) -> None:
        traffic = self._bus.traffic
        counters = self._counters() | {
            "sent_bytes": traffic.sent_bytes,
            "received_bytes": traffic.received_bytes,
            "reconnects": traffic.reconnects,
        }
        streams, now = self._streams(), self._wall()
        lost = sum(counters.get(name, 0) for name in LOSSES) + sum(count.lost for count in streams.values())
        if lost > self._lost:
            self._lost_at = now
        self._lost = lost
        status = self._identity.status(state, counters, streams, said=now, lost_at=self._lost_at)
        self._bus.publish(self._identity.topic, status, retain=Kind.STATUS in RETAINED)


class StageMetrics(msgspec.Struct, frozen=True, gc=False):  # made often: ten times as quick as a dataclass
    """What a stage has done since it was connected, as of one moment.

    `busy_s` is the time in which it did anything but wait for messages, `queued_s` the sum of how long each of the
    `handled` messages had waited. `queued` messages have come and wait now, `waiting` windows lack parts, `pending`
    messages are not safe at the broker; `heard_at` is when a message of its own last came, by the monotonic clock.
    """

    heard_at: float
    windows: int = 0
    lost: int = 0
    errors: int = 0
    handled: int = 0
    busy_s: float = 0.0
    queued_s: float = 0.0
    queued: int = 0
    waiting: int = 0
    pending: int = 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way."""
        return not (self.queued or self.waiting or self.pending)


class StageLoop:
    """Runs a stage on a bus, turn by turn.

    Another thread may read `metrics`, and `working`: messages came that are not in `metrics` yet.
    """

    def __init__(self, bus: Bus, stage: Stage, stop: Stop) -> None:
        self.metrics = StageMetrics(time.monotonic())
        self.working = False
        self._bus, self._stage, self._stop = bus, stage, stop
        self._sender = Sender(bus, stage.counters, "start the next stage")
        self._arrived: deque[tuple[float, Delivery]] = deque()
        self._room_bytes = QUEUED_BYTES
        self._reconnects = bus.traffic.reconnects
        self._handled, self._queued_s, self._busy_s, self._messages = 0, 0.0, 0.0, 0
        self._count_at = 0.0
        bus.subscribe(stage.filters)

    def turn(self) -> float:
        """Wait for messages unless some are here, handle some, send what is due; return the time (monotonic).

        Raises TakenOver when another process has become this stage, BrokerError for what no retry mends.
        """
        began = self._poll()
        now = began
        while self._arrived and not self._stop.asked and now < began + TURN_S:
            since, delivery = self._arrived.popleft()
            self._room_bytes += len(delivery.payload) + MESSAGE_BYTES
            self._handled += 1
            self._queued_s += now - since
            for outgoing in self._stage.handle(delivery, since):
                self._sender.send(outgoing)
            now = time.monotonic()
        for outgoing in self._stage.tick(self._arrived[0][0] if self._arrived else began):
            self._sender.send(outgoing)
        now = time.monotonic()
        self._sender.retry(now)
        self._busy_s += now - began
        if now >= self._count_at:
            self._count_at = now + COUNT_S
            self._count(began)
        return now

    def _poll(self) -> float:
        """Take what came; return when, by the monotonic clock."""
        idle = not self._arrived
        # Of a poll that waits, the processor's part is work; of one that does not, all of it.
        clock = time.thread_time if idle else time.monotonic
        before = clock()
        # On the wire, small messages take much less than here.
        came = self._bus.poll(POLL_S if idle else 0.0, max(0, self._room_bytes) // 8)
        self._busy_s += clock() - before
        if self._bus.traffic.reconnects != self._reconnects:  # the broker sends again what was not acknowledged
            self._reconnects = self._bus.traffic.reconnects
            self._arrived.clear()
            self._room_bytes = QUEUED_BYTES
        now = time.monotonic()
        self._arrived.extend((now, delivery) for delivery in came)
        self._room_bytes -= sum([len(delivery.payload) for delivery in came]) + MESSAGE_BYTES * len(came)
        self.working |= bool(came)
        return now

    def _count(self, now: float) -> None:
        counters, before = self._stage.counters, self._messages
        self._messages = counters.messages
        self.metrics = StageMetrics(
            heard_at=now if self._messages != before else self.metrics.heard_at,
            windows=counters.windows,
            lost=counters.given_up + counters.too_large,
            errors=counters.rejected,
            handled=self._handled,
            busy_s=self._busy_s,
            queued_s=self._queued_s,
            queued=len(self._arrived),
            waiting=self._stage.waiting,
            pending=self._sender.pending,
        )
        self.working = False


def run_stage(bus: Bus, stage: Stage, identity: Identity, stop: Stop, *, forget: bool = False) -> None:
    """Run a stage until `stop`; then let what is under way become safe, say goodbye, and disconnect.

    Raises TakenOver when another process has become this stage.
    """
    loop, status = StageLoop(bus, stage, stop), StatusPublisher(bus, identity, stage.counters.as_dict)
    while not stop.asked:
        status.announce(loop.turn())
    drain(bus)
    status.farewell()
    bus.close(forget=forget)


def await_ready(bus: Bus, nodes: Collection[str], topics: Topics, stop: Stop) -> None:
    """Wait, on a bus of its own that is closed then, until each of these nodes says that it is ready, or `stop`.

    A stage whose activations several others take does this before it takes anything: the broker tells a publisher when
    nobody listens, but not when one of several does not listen yet.
    """
    missing = {topics.status(node): node for node in nodes}
    bus.subscribe(sorted(missing))
    log_at = time.monotonic() + PATIENCE_S
    while missing and not stop.asked:
        for delivery in bus.poll(POLL_S):
            bus.acknowledge(delivery)
            if _is_ready(delivery.payload):
                missing.pop(delivery.topic, None)
        if missing and time.monotonic() > log_at:
            log_at += 60.0
            _log.warning("waiting for %s, which must listen before this node sends", ", ".join(missing.values()))
    bus.close(forget=True)


def _is_ready(payload: bytes) -> bool:
    try:
        return decode_status(payload).state is State.READY
    except UNREADABLE:
        return False


def drain(bus: Bus) -> None:
    """Wait a moment until what was published is safe, a shorter one for a broker that is not there."""
    deadline = time.monotonic() + DRAIN_S
    back_by = time.monotonic() + GONE_S
    try:
        while bus.unsent and time.monotonic() < deadline and (bus.connected or time.monotonic() < back_by):
            bus.poll(0.05)
            if bus.connected:
                back_by = time.monotonic() + GONE_S
    except BrokerError as error:
        _log.warning("stopping without the broker: %s", error)
