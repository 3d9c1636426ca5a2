"""Timing messages to oneself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus
from har_edge.mqtt.measure.link_benchmark import LARGE, SMALL, benchmark_link
from har_edge.mqtt.memory import MemoryBroker, MemoryBus

TOPIC = "har/v1/profile/act/0/0/profile"


class Timed:
    """A bus whose clock goes on by the bytes that come: 1 ms a message and 1 us a byte, there and back."""

    def __init__(self, bus: MemoryBus, lost: int | None = None) -> None:
        self._bus, self.now, self._lost, self._polls = bus, 0.0, lost, 0
        self.unacknowledged = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)

    def poll(self, timeout_s: float) -> list[object]:
        self._polls += 1
        deliveries = list(self._bus.poll(0))
        if self._lost is not None and self._polls > self._lost:
            self.now += timeout_s
            return []
        self.now += sum(1e-3 + 1e-6 * len(delivery.payload) for delivery in deliveries)
        return deliveries  # type: ignore[return-value]

    def clock(self) -> float:
        return self.now


def memory_bus() -> MemoryBus:
    return MemoryBroker().connect(Session("profile"))


def test_the_figures_are_those_of_the_clocks() -> None:
    bus = Timed(memory_bus())
    echo = benchmark_link(bus, TOPIC, count=40, clock=bus.clock, processor=bus.clock)  # type: ignore[arg-type]
    # What comes back was sent and received, so each way is half.
    assert echo.message_s == pytest.approx(0.5e-3) and echo.byte_s == pytest.approx(0.5e-6)
    assert echo.round_trip_s == pytest.approx(1e-3 + SMALL * 1e-6)
    assert echo.bytes_per_s == pytest.approx(2 * LARGE / (1e-3 + LARGE * 1e-6))


def test_a_slow_link_is_not_kept_busy_for_long() -> None:
    class Slow(Timed):
        def poll(self, timeout_s: float) -> list[object]:
            deliveries = super().poll(timeout_s)
            self.now += len(deliveries)
            return deliveries

    bus = Slow(memory_bus())
    echo = benchmark_link(bus, TOPIC, count=1000, clock=bus.clock, processor=bus.clock)  # type: ignore[arg-type]
    assert bus.now < 120 and echo.round_trip_s > 1
    assert echo.bytes_per_s == pytest.approx(2 * LARGE / 1.067, rel=0.01)


def test_messages_that_stay_away_end_it() -> None:
    bus = Timed(memory_bus(), lost=3)
    with pytest.raises(
        BrokerError, match=r"3 of 4 messages came back from the broker in \d+ s; look at its permissions"
    ):
        benchmark_link(bus, TOPIC, clock=bus.clock, processor=bus.clock)  # type: ignore[arg-type]


@pytest.fixture
def real(mosquitto: Mosquitto) -> Iterator[object]:
    bus = open_bus(mosquitto.address, Session("echo", clean_start=True))
    yield bus
    bus.close(forget=True)


def test_a_real_broker_gives_figures_above_nothing(real: MemoryBus) -> None:
    echo = benchmark_link(real, TOPIC, count=20)
    assert echo.message_s > 0 and echo.byte_s >= 0 and echo.round_trip_s > 0 and echo.bytes_per_s > 0
