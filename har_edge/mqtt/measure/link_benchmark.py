"""Measure what a message costs this device and the link to the broker, by messages that a client sends to itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus

SMALL, LARGE = 64, 65_536
# Payload sizes of the quick estimate, the smallest first: a slow link shows at the first ones.
_QUICK_SIZES = (1024, 8192, LARGE)
_QUICK_S = 0.15
_TIMEOUT_S = 30.0
_POLL_S = 1.0
_BUDGET_S = 5.0


@dataclass(frozen=True, slots=True)
class LinkBenchmark:
    """Processor seconds of the client for one message and for each byte of it, in one direction, and the speed of the
    link.

    `round_trip_s` is the median time of a small message to the broker and back. `bytes_per_s` counts both directions.
    """

    message_s: float
    byte_s: float
    round_trip_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """Round trip of a small message in seconds, and the rate in bytes per second, both directions together."""

    round_trip_s: float
    bytes_per_s: float


def estimate_link(bus: Bus, topic: str, *, clock: Callable[[], float] = time.perf_counter) -> LinkEstimate:
    """Estimate the link in less than a second, or by a few messages where these take longer.

    Only this bus may subscribe to the topic. Raises BrokerError when a message does not come back.
    """

    def run(size: int, count: int, in_flight: int) -> tuple[float, int]:
        return _Round(bus, topic, size, clock).run(count, in_flight=in_flight, budget_s=_QUICK_S, timeout_s=5.0)

    bus.subscribe([topic])
    run(SMALL, 1, 1)
    began, trips = clock(), list[float]()
    while len(trips) < 3 or (len(trips) < 11 and clock() < began + _QUICK_S):
        trips.append(run(SMALL, 1, 1)[0])
    bytes_per_s = 0.0
    for size in _QUICK_SIZES:
        seconds, done = run(size, 64, 4)
        bytes_per_s = max(bytes_per_s, 2 * size * done / seconds)
        if seconds > 2 * _QUICK_S:
            break
    return LinkEstimate(median(trips), bytes_per_s)


def benchmark_link(
    bus: Bus,
    topic: str,
    *,
    count: int = 200,
    clock: Callable[[], float] = time.perf_counter,
    processor: Callable[[], float] = time.thread_time,
) -> LinkBenchmark:
    """Send messages to a topic that only this bus subscribes to, and time them.

    Raises BrokerError when a message does not come back.
    """
    bus.subscribe([topic])
    _Round(bus, topic, SMALL, clock).run(20, in_flight=1)  # the broker, the caches and the connection warm up
    trips = [_Round(bus, topic, SMALL, clock).run(1, in_flight=1)[0] for _ in range(21)]
    costs = []
    for size in (SMALL, LARGE):
        started = processor()
        seconds, done = _Round(bus, topic, size, clock).run(count, in_flight=8)
        costs.append((processor() - started) / done / 2)  # each was sent and received
    byte_s = max(0.0, (costs[1] - costs[0]) / (LARGE - SMALL))
    return LinkBenchmark(
        message_s=max(0.0, costs[0] - byte_s * SMALL),
        byte_s=byte_s,
        round_trip_s=median(trips),
        bytes_per_s=2 * LARGE * done / seconds,
    )


class _Round:
    """Messages of one size, a few of them in flight at once."""

    def __init__(self, bus: Bus, topic: str, size: int, clock: Callable[[], float]) -> None:
        self._bus, self._topic, self._clock = bus, topic, clock
        self._payload = bytes(size)

    def run(
        self, count: int, *, in_flight: int, budget_s: float = _BUDGET_S, timeout_s: float = _TIMEOUT_S
    ) -> tuple[float, int]:
        """Return the elapsed seconds and the number of messages: `count`, or fewer when they take longer than
        `budget_s`.
        """
        started, sent, came = self._clock(), 0, 0
        while came < count:
            elapsed = self._clock() - started
            if elapsed > budget_s + timeout_s:
                raise BrokerError(
                    f"{came} of {sent} messages came back from the broker in {elapsed:.0f} s; look at its permissions "
                    "for this user, and at the link"
                )
            if elapsed <= budget_s or not sent:
                while sent < count and sent - came < in_flight:
                    self._bus.publish(self._topic, self._payload)
                    sent += 1
            elif came == sent:
                break
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                came += 1
        return self._clock() - started, came
