"""The loop that runs a stage on a bus: it moves bytes and waits; what a message means is the business of the stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

import msgspec

from har_edge.mqtt.bus import Bus, Delivery
from har_edge.protocol.events import StatusEvent, decode
from har_edge.protocol.status import State
from har_edge.protocol.topics import Topics
from har_edge.runtime.sender import Sender, drain
from har_edge.runtime.stage.fair_queue import FairQueue
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.status_publisher import Identity, StatusPublisher
from har_edge.runtime.stop import POLL_S, Stop

_log = logging.getLogger(__name__)
TURN_S = 0.02  # how long a stage computes before it looks at the connection again: results leave, it stays alive
READ_S = 1.0  # the same for a shard that may leave out steps once it has read what came
COUNT_S = 0.02  # how old the metrics of a busy stage may be
PATIENCE_S = 2.0  # how long other nodes are waited for before a line in the log says so
# Bytes that may wait to be handled, with the overhead of each message; above that, the broker waits.
QUEUED_BYTES = 16 * 1024 * 1024
MESSAGE_BYTES = 512


class StageMetrics(msgspec.Struct, frozen=True, gc=False):  # made often: ten times as quick as a dataclass
    """The work of a stage since it was connected, at one moment.

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

    Another thread may read `metrics`; `working`: messages came that are not in `metrics` yet; `called_at`: since when
    the stage has handled a message, run a step or looked at the time (monotonic), 0 while it does nothing of it; and
    `stage`, of which only counts.
    """

    def __init__(self, bus: Bus, stage: Stage, stop: Stop) -> None:
        self.metrics = StageMetrics(time.monotonic())
        self.working = False
        self.called_at = 0.0
        self._bus, self._stage, self._stop = bus, stage, stop
        self._sender = Sender(bus, stage.counters, "start the next stage")
        self._arrived = FairQueue()
        self._room_bytes = QUEUED_BYTES
        self._reconnects = bus.traffic.reconnects
        self._handled, self._queued_s, self._busy_s, self._messages = 0, 0.0, 0.0, 0
        self._count_at = 0.0
        bus.subscribe(stage.filters)

    @property
    def stage(self) -> Stage:
        """The stage that it runs."""
        return self._stage

    def turn(self) -> float:
        """Wait for messages unless some are here, handle some, send what is due; return the time (monotonic).

        Raises TakenOver when another process has become this stage, BrokerError for what no retry mends.
        """
        began = self._poll()
        now = began
        until = began + (READ_S if self._stage.reads_first else TURN_S)
        while self._arrived and not self._stop.asked and now < until:
            if self._stage.full and self._stage.ready:
                break
            since, delivery = self._arrived.pop()
            self._room_bytes += len(delivery.payload) + MESSAGE_BYTES
            self._handled += 1
            self._queued_s += now - since
            self.called_at = now
            for outgoing in self._stage.handle(delivery, since):
                self._sender.send(outgoing)
            now = time.monotonic()
        self.called_at = now
        if self._stage.ready and not self._stop.asked:  # one step: what it gives leaves with the next poll
            for outgoing in self._stage.step():
                self._sender.send(outgoing)
        oldest = self._arrived.oldest
        for outgoing in self._stage.tick(began if oldest is None else oldest):
            self._sender.send(outgoing)
        now = time.monotonic()
        self.called_at = 0.0
        self._sender.retry(now)
        self._busy_s += now - began
        if now >= self._count_at:
            self._count_at = now + COUNT_S
            self._count(began)
        return now

    def listen(self) -> float:
        """Take what comes, as far as there is room, and handle nothing; return the time (monotonic)."""
        now = self._poll()
        if self._arrived and not self._stop.asked:
            time.sleep(TURN_S)  # a poll waits only where nothing has come
        return now

    def _poll(self) -> float:
        """Take what came; return when, by the monotonic clock."""
        idle = not (self._arrived or self._stage.ready)
        # A poll that waits counts as work by its processor time, one that does not wait by its whole time.
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
        for delivery in came:
            self._queue(delivery, now)
        self.working |= bool(came)
        return now

    def _queue(self, delivery: Delivery, now: float) -> None:
        """Let a message wait in its share; of a stream that floods this stage, those beyond its share go at once."""
        share = self._stage.share_of(delivery.topic)
        if self._room_bytes < QUEUED_BYTES // 2:
            for outgoing in self._stage.shed(delivery, self._arrived.count(share)):
                self._sender.send(outgoing)
                return
        self._arrived.push(share, (now, delivery))
        self._room_bytes -= len(delivery.payload) + MESSAGE_BYTES

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


def run_stage(
    bus: Bus, stage: Stage, identity: Identity, stop: Stop, *, forget: bool = False, takers: Takers | None = None
) -> None:
    """Run a stage until `stop`; then let what is under way become safe, say goodbye, and disconnect.

    With `takers`, the stage listens, says so, and computes nothing before they listen, too: shards wait for each other.
    Raises TakenOver when another process has become this stage.
    """
    loop, status = StageLoop(bus, stage, stop), StatusPublisher(bus, identity, stage.counters.as_dict)
    while takers is not None and not stop.asked and not takers.look(0.0):
        status.announce(loop.listen())
    if takers is not None:
        takers.close()
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
    takers = Takers(bus, nodes, topics)
    while not stop.asked and not takers.look(POLL_S):
        pass
    takers.close()


class Takers:
    """The nodes that must listen before a stage sends, on a bus of its own.

    After a while, one of those that are `spared` may be missing: a parity stands for it.
    """

    def __init__(self, bus: Bus, nodes: Collection[str], topics: Topics, spared: Collection[str] = ()) -> None:
        self._bus, self._missing, self._spared = bus, {topics.status(node): node for node in nodes}, frozenset(spared)
        self._log_at = self._patient_until = time.monotonic() + PATIENCE_S
        bus.subscribe(sorted(self._missing))

    def look(self, timeout_s: float) -> bool:
        """Wait for statuses, at most so long, and return whether all nodes have said that they are ready."""
        missing = self._missing
        for delivery in self._bus.poll(timeout_s):
            self._bus.acknowledge(delivery)
            if _is_ready(delivery):
                missing.pop(delivery.topic, None)
        now = time.monotonic()
        if len(missing) == 1 and self._spared.issuperset(missing.values()) and now > self._patient_until:
            _log.warning("%s does not listen; going on without it, since a parity stands for it", *missing.values())
            return True
        if missing and now > self._log_at:
            self._log_at += 60.0
            _log.warning("waiting for %s, which must listen before this node sends", ", ".join(missing.values()))
        return not missing

    def close(self) -> None:
        """Disconnect."""
        self._bus.close(forget=True)


def _is_ready(delivery: Delivery) -> bool:
    event = decode(delivery)
    return isinstance(event, StatusEvent) and event.status is not None and event.status.state is State.READY
