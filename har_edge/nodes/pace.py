"""How a sensor replays recordings: when each window is due, and how many may be on their way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from har_edge.errors import ConfigError, MessageError
from har_edge.messaging.bus import Bus, Delivery
from har_edge.messaging.topics import Topics
from har_edge.nodes.loop import POLL_S, Herald, Identity, Sender, Stop, drain
from har_edge.nodes.results import decode_results
from har_edge.nodes.sensor import BYTES_A_RAW_VALUE, Sensor
from har_edge.streams.recording import Window

_log = logging.getLogger(__name__)
SENDS_A_STEP = 16
# A sensor that waits for no results still waits for the broker.
MAX_PENDING = 1024
QUIET_S = 10.0
# Consecutive windows of one stream, each with the time when its last sample exists (seconds after the start).
Batch = Sequence[tuple[float, Window]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sensor sends: real time (`speed` times) or as fast as results come.

    At most `in_flight` windows of a stream, and `total` of all streams, are on their way without a result, 0 for no
    bound: a recording waits (it can), so that nothing piles up in the middle and no join overflows. A stream without a
    result for `patience_s` (longer than a stage waits for parts) goes on without those windows.
    """

    in_flight: int
    real_time: bool
    total: int = 0
    patience_s: float = 60.0


class SensorLoop:
    """Sends the windows of one or several streams when they are due, and waits for results when too many are out."""

    def __init__(self, bus: Bus, sensor: Sensor, identity: Identity, pace: Pace, topics: Topics) -> None:
        self._bus, self._sensor, self._pace, self._topics = bus, sensor, pace, topics
        self._sender = Sender(bus, sensor.counters, "start the stages: `har-edge stage`")
        self._herald = Herald(bus, identity, self._counters)
        # For each stream: the number after the last window sent, and after the last one answered.
        self._sent: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        # For each stream: since when windows are out without any result; and when that was last logged.
        self._quiet_since: dict[str, float] = {}
        self._warned_at = time.monotonic()

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
            if not self._outstanding(stream):
                self._quiet_since[stream] = time.monotonic()
            self._sent[stream] = windows[-1].seq + 1
            if self._pace.real_time or number % SENDS_A_STEP == 0:
                self._step(0.0)
        while self._sender.pending and not stop.asked:
            self._step(POLL_S)
        drain(self._bus)
        self._herald.farewell()
        self._bus.close(forget=forget)

    def _outstanding(self, stream: str) -> int:
        return self._sent.get(stream, 0) - self._answered.get(stream, 0)

    def _is_full(self, stream: str) -> bool:
        if self._sender.pending >= MAX_PENDING or 0 < self._pace.in_flight <= self._outstanding(stream):
            return True
        return 0 < self._pace.total <= sum(map(self._outstanding, self._sent))

    def _may_send(self, stream: str, due: float) -> bool:
        return not self._is_full(stream) and (not self._pace.real_time or time.monotonic() >= due)

    def _wait_s(self, stream: str, due: float) -> float:
        return POLL_S if self._is_full(stream) else min(POLL_S, max(0.0, due - time.monotonic()))

    def _step(self, timeout_s: float) -> None:
        for delivery in self._bus.poll(timeout_s):
            self._note_result(delivery)
        now = time.monotonic()
        self._sender.retry(now)
        self._herald.announce(now)
        if self._sensor.counters.too_large:
            raise ConfigError(
                "a message is larger than the broker takes; lower --batch, or raise max_packet_size at the broker"
            )
        if self._pace.in_flight:
            self._look_for_losses(now)

    def _look_for_losses(self, now: float) -> None:
        """Say when results stay away; go on without them when no stage can still be waiting for a part of them."""
        if self._sender.kept or not self._bus.connected:  # then nothing is lost: it has not gone out
            self._quiet_since = dict.fromkeys(self._quiet_since, now)
            return
        for stream, since in self._quiet_since.items():
            out, quiet_s = self._outstanding(stream), now - since
            if out and quiet_s > self._pace.patience_s:
                _log.warning("no result of %s for %.0f s: going on without its %d windows", stream, quiet_s, out)
                self._answered[stream] = self._sent[stream]
                self._sensor.counters.unanswered += out
            elif out and quiet_s > QUIET_S and now - self._warned_at > QUIET_S:
                self._warned_at = now
                _log.warning("no result of %s for %.0f s with %d windows out; waiting", stream, quiet_s, out)

    def _note_result(self, delivery: Delivery) -> None:
        self._bus.acknowledge(delivery)
        try:
            results = decode_results(delivery.payload)
        except MessageError as error:
            _log.warning("dropped %s: %s", delivery.topic, error)
            return
        for result in results:
            if result.stream not in self._sent:
                continue
            self._quiet_since[result.stream] = time.monotonic()
            # Results of an earlier run of this stream may carry higher numbers than were sent now.
            answered = min(result.seq + 1, self._sent[result.stream])
            self._answered[result.stream] = max(answered, self._answered.get(result.stream, 0))

    def _counters(self) -> dict[str, int]:
        raw_bytes = self._sensor.raw_values * BYTES_A_RAW_VALUE
        return self._sensor.counters.as_dict() | {"raw_bytes": raw_bytes}
