"""The messages between a sensor and its broker, for recordings and live devices alike."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from har_edge.data.recording import Window
from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.bus import Bus, Delivery
from har_edge.runtime.sender import Sender, drain
from har_edge.runtime.sensor.flow_control import FlowController
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.status_publisher import Identity, StatusPublisher
from har_edge.timing import LAST_ANSWERS_S

_log = logging.getLogger(__name__)
# How long one look for the last answers waits.
TURN_S = 0.05


class SensorPublisher:
    """Sends windows, takes answers, sends again what `flow` asks for, and keeps the status of the sensor up to date.

    `counters` gives what stands in the status, `shrink` says how messages that the broker does not take get smaller.
    `heard` gets each message that came, after `flow`.
    """

    def __init__(
        self,
        bus: Bus,
        sensor: Sensor,
        identity: Identity,
        flow: FlowController,
        counters: Callable[[], dict[str, int]],
        shrink: str = "",
        heard: Callable[[Delivery], None] | None = None,
    ) -> None:
        self._bus, self._sensor, self._identity, self._flow, self._shrink = bus, sensor, identity, flow, shrink
        self._heard = heard
        self._sender = Sender(bus, sensor.counters, "start the stages: `har-edge stage`")
        self._status = StatusPublisher(bus, identity, counters, flow.streams)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the sensor."""
        return self._bus.connected

    @property
    def pending(self) -> int:
        """How many messages are not yet safe at the broker."""
        return self._sender.pending

    def begin(self) -> None:
        """Subscribe to what the credit rests on."""
        if self._flow.filters:
            self._bus.subscribe(self._flow.filters)

    def send(self, windows: Sequence[Window], captured: Sequence[float]) -> None:
        """Send consecutive windows of one stream, captured at those times (seconds since 1970)."""
        for outgoing in self._flow.send(windows, captured, time.monotonic()):
            self._sender.send(outgoing)

    def step(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the broker, and do what is due; ConfigError for messages larger than it takes."""
        now = self._listen(timeout_s)
        self._sender.retry(now)
        self._identity.epoch = self._flow.epoch
        self._status.announce(now)
        if self._sensor.counters.too_large:
            raise ConfigError(
                f"a message is larger than the broker takes; {self._shrink}raise max_packet_size at the broker"
            )
        blocked, forgotten = self._sender.kept > 0, self._bus.traffic.forgotten
        for outgoing in self._flow.again(now, connected=self._bus.connected, blocked=blocked, forgotten=forgotten):
            self._sender.send(outgoing)

    def _listen(self, timeout_s: float) -> float:
        """Wait up to `timeout_s` for the broker and take the answers that came; return the time."""
        came = self._bus.poll(timeout_s)
        now = time.monotonic()
        for delivery in came:
            self._bus.acknowledge(delivery)
            self._flow.take(delivery, now)
            if self._heard is not None:
                self._heard(delivery)
        return now

    def end(self, *, forget: bool) -> None:
        """Count what is not answered, let what was sent become safe, say goodbye, and disconnect.

        Answers may be on their way when a sensor is asked to stop, so it takes those of LAST_ANSWERS_S more.
        """
        deadline = time.monotonic() + LAST_ANSWERS_S
        try:
            while self._flow.open and self._bus.connected and self._listen(TURN_S) < deadline:
                pass
        except BrokerError as error:
            _log.warning("stopping without the last answers: %s", error)
        self._flow.abandon()
        drain(self._bus)
        self._status.farewell()
        self._bus.close(forget=forget)
