"""How a sensor replays recordings: when each window is due, and how many may be on their way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from har_edge.data.recording import Window
from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Bus
from har_edge.runtime.sensor.flow_control import FlowController
from har_edge.runtime.sensor.publisher import SensorPublisher
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import POLL_S, Stop
from har_edge.units import plural

SENDS_A_STEP = 16
# A sensor that waits for no results still waits for the broker.
MAX_PENDING = 1024
# Nor are more windows than this ever open.
MOST_OPEN = 4096
# Consecutive windows of one stream, each with the time when its last sample exists (seconds after the start).
Batch = Sequence[tuple[float, Window]]


@dataclass(frozen=True, slots=True)
class SendPolicy:
    """How a sensor sends: real time (`speed` times) or as fast as results come.

    At most `in_flight` windows of a stream, and `total` of all streams, are on their way without a result, 0 for no
    bound, and no more messages of `batch` windows than the stages have room for: a recording waits (it can), so that
    nothing piles up in the middle and no join overflows.
    """

    in_flight: int
    real_time: bool
    total: int = 0
    batch: int = 1


class SensorLoop:
    """Sends the windows of one or several streams when they are due, and waits for results when too many are out.

    It ends when every window has been answered, when that is hopeless, or on `stop`; where `flow` listens to no
    results (flow_control.py), when every window is safe at the broker. `interrupted` says afterwards whether `stop`
    came before that; the last status says so too.
    """

    def __init__(self, bus: Bus, sensor: Sensor, identity: Identity, policy: SendPolicy, flow: FlowController) -> None:
        self._sensor, self._policy, self._flow, self._identity = sensor, policy, flow, identity
        self.interrupted = False
        self._publisher = SensorPublisher(bus, sensor, identity, self._flow, self._counters, "lower --batch, or ")

    def run(self, batches: Iterator[Batch], stop: Stop, *, forget: bool = True) -> None:
        """Send every batch; return when nothing is left to wait for, or on `stop`.

        ConfigError for windows that cannot be sent, after a farewell: a will does not tell which windows will not come.
        """
        try:
            self._run(batches, stop)
        except ConfigError:
            self._publisher.end(forget=True)
            raise
        if self.interrupted:
            self._identity.detail += f"; interrupted after {plural(self._sensor.counters.windows, 'window')}"
        self._publisher.end(forget=forget)

    def _run(self, batches: Iterator[Batch], stop: Stop) -> None:
        self._publisher.begin()
        while not self._publisher.connected and not stop.asked:
            self._publisher.step(POLL_S)
        started, started_at, sent = time.monotonic(), time.time(), True
        for number, batch in enumerate(batches):
            stream, due = batch[-1][1].stream, started + batch[-1][0]
            while not self._ends(stop) and not self._may_send(stream, due):
                self._publisher.step(self._wait_s(stream, due))
            if self._ends(stop):
                sent = False
                break
            windows = [window for _, window in batch]
            captured = [started_at + due_s if self._policy.real_time else time.time() for due_s, _ in batch]
            self._publisher.send(windows, captured)
            if self._policy.real_time or number % SENDS_A_STEP == 0:
                self._publisher.step(0.0)
        while not self._flow.is_done(self._publisher.pending) and not self._ends(stop):
            self._publisher.step(POLL_S)
        self.interrupted = stop.asked and not (sent and self._flow.is_done(self._publisher.pending))

    def _ends(self, stop: Stop) -> bool:
        return stop.asked or self._flow.is_hopeless(time.monotonic())

    def _is_full(self, stream: str) -> bool:
        policy, flow = self._policy, self._flow
        if self._publisher.pending >= MAX_PENDING or flow.open >= (policy.total or MOST_OPEN):
            return True
        if not policy.in_flight:
            return False
        most = policy.in_flight if flow.room is None else min(policy.in_flight, flow.room * policy.batch)
        return flow.open_of(stream) >= most

    def _may_send(self, stream: str, due: float) -> bool:
        return not self._is_full(stream) and (not self._policy.real_time or time.monotonic() >= due)

    def _wait_s(self, stream: str, due: float) -> float:
        return POLL_S if self._is_full(stream) else min(POLL_S, max(0.0, due - time.monotonic()))

    def _counters(self) -> dict[str, int]:
        return self._sensor.counters.as_dict() | {"raw_bytes": self._sensor.raw_bytes}
