"""Measuring brokers: each figure against brokers whose settings are known."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, start_mosquitto
from har_edge.mqtt.broker.server import MAX_PACKET_BYTES
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session
from har_edge.mqtt.connect import MqttVersion, open_bus
from har_edge.mqtt.measure import conformance as measuring
from har_edge.mqtt.measure.conformance import ASKED, IN_FLIGHT, QUEUED, SIZES, BrokerMeasurement, measure
from har_edge.mqtt.memory import MemoryBroker, MemoryBus

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
GOOD = BrokerMeasurement(
    protocol="5",
    version="",
    retained=True,
    retained_wildcards=True,
    session_kept=True,
    redelivered=True,
    marked_again=True,
    taken_over=True,
    says_unheard=True,
    shared=True,
    in_flight=IN_FLIGHT,
    max_held=ASKED,
    queued=QUEUED,
    largest_bytes=SIZES[-1],
    dropped=None,
)


@pytest.fixture
def start() -> Iterator[Callable[[str], Mosquitto]]:
    running: list[Mosquitto] = []
    with tempfile.TemporaryDirectory(prefix="har-edge-test-") as folder:
        Path(folder).chmod(0o755)

        def begin(lines: str) -> Mosquitto:
            config = Path(folder) / "x.conf"
            config.write_text(f"allow_anonymous true\n{lines}\n")
            running.append(start_mosquitto(config, Path(folder) / "data"))
            return running[-1]

        yield begin
        for broker in running:
            broker.stop()


def look(broker: EmbeddedBroker | Mosquitto, protocol: MqttVersion = MqttVersion.V5) -> BrokerMeasurement:
    return measure(
        lambda session: open_bus(broker.address, session, protocol=protocol), "p/", mqtt5=protocol is MqttVersion.V5
    )


@pytest.mark.slow
def test_the_embedded_broker(embedded: EmbeddedBroker) -> None:
    assert SIZES[-1] < MAX_PACKET_BYTES
    assert look(embedded) == msgspec.structs.replace(GOOD, version=embedded.description)


@pytest.mark.slow
def test_the_embedded_broker_with_3_1_1(embedded: EmbeddedBroker) -> None:
    older = msgspec.structs.replace(
        GOOD, protocol="3.1.1", version=embedded.description, says_unheard=False, max_held=None
    )
    assert look(embedded, MqttVersion.V311) == older


@pytest.mark.slow
def test_mosquitto_as_har_edge_sets_it_up(mosquitto: Mosquitto) -> None:
    """Mosquitto tells its count of drops for a minute after it changed: a broker that is up for longer tells none."""
    seen = look(mosquitto)
    told = {"version": seen.version, "dropped": seen.dropped, "away": seen.away, "max_held": seen.max_held}
    assert seen == msgspec.structs.replace(GOOD, **told)
    assert "mosquitto" in seen.version and seen.max_held is not None
    assert seen.max_held >= ASKED  # 2.0.11: more, since each PUBACK lets another batch go


@pytest.mark.slow
@needs_mosquitto
def test_mosquitto_as_it_comes(start: Callable[[str], Mosquitto]) -> None:
    """It keeps 1000 for a client that is away, and a while later says how many it has dropped."""
    broker = start("sys_interval 1")
    assert look(broker).queued == 1000
    seen = look(broker)
    assert seen.dropped is not None and seen.dropped >= QUEUED - 1000


@pytest.mark.slow
@needs_mosquitto
def test_sessions_that_outlive_their_clients_are_counted_where_the_broker_tells(
    start: Callable[[str], Mosquitto],
) -> None:
    broker = start("sys_interval 1")
    open_bus(broker.address, Session("gone", expiry_s=600)).close()
    told = open_bus(broker.address, Session("asks"))
    told.subscribe([measuring.AWAY])
    deadline = time.monotonic() + 10
    while not any(one.payload == b"1" for one in told.poll(0.1)):
        assert time.monotonic() < deadline, "Mosquitto does not tell"
    told.close()
    assert (look(broker).away or 0) >= 1  # what the measurement leaves for a moment may count, too


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("lines", "name", "value"),
    [
        ("message_size_limit 40000", "largest_bytes", 32 * 1024),
        ("max_packet_size 300000", "largest_bytes", 260 * 1024),
        ("max_queued_messages 50", "queued", 50),
        ("retain_available false", "retained", False),
    ],
)
def test_limits_are_found(start: Callable[[str], Mosquitto], lines: str, name: str, value: object) -> None:
    assert getattr(look(start(lines)), name) == value


class Forgetful(MemoryBus):
    """A bus whose session ends with it."""

    def close(self, *, forget: bool = False) -> None:
        super().close(forget=True)


class Odd(MemoryBroker):
    """A broker that grants shared subscriptions and delivers nothing to them, keeps no session, and says no 0x10."""

    def connect(self, session: Session) -> MemoryBus:
        bus = Forgetful(self, session)
        bus.connect()
        return bus

    def route(self, topic: str, payload: bytes, **options: object) -> tuple[PublishOutcome, list[object]]:  # type: ignore[override]
        self._turns.clear()
        outcome, takers = super().route(topic, payload, **options)  # type: ignore[arg-type]
        return PublishOutcome.ACKED if outcome is PublishOutcome.NO_SUBSCRIBERS else outcome, list(takers)


@pytest.mark.slow
def test_what_a_broker_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WAIT_S", 0.2)
    monkeypatch.setattr(measuring, "QUIET_S", 0.1)
    seen = measure(Odd().connect, "p/", mqtt5=True)
    lacks = {"session_kept": False, "redelivered": False, "marked_again": False}
    lacks |= {"says_unheard": False, "shared": False, "queued": 0}
    assert seen == msgspec.structs.replace(GOOD, **lacks)  # type: ignore[arg-type]


class Deaf(MemoryBus):
    def poll(self, timeout_s: float) -> list[Delivery]:
        super().poll(timeout_s)
        return []


@pytest.mark.slow
def test_a_user_who_may_not_read_the_topic_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WAIT_S", 0.1)
    broker = MemoryBroker()

    def connect(session: Session) -> Bus:
        bus = Deaf(broker, session)
        bus.connect()
        return bus

    with pytest.raises(BrokerError, match="permit this user `topic readwrite p/probe/#`"):
        measure(connect, "p/", mqtt5=True)


@pytest.mark.slow
def test_nothing_stays_at_the_broker() -> None:
    broker = MemoryBroker()
    measure(broker.connect, "p/", mqtt5=True)
    assert broker._accounts == {} and broker._retained == {}
