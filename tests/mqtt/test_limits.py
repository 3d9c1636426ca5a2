"""A broker's limit below a message: one clear error, nothing else is lost, and no reconnecting for ever."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, start_mosquitto
from har_edge.mqtt.bus import Bus, PublishOutcome, Session
from har_edge.mqtt.clients.transport import ConsecutiveLosses
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, open_bus

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
Start = Callable[[str], Mosquitto]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Mosquitto] = []
    with tempfile.TemporaryDirectory(prefix="har-edge-test-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "limited.conf"

        def begin(line: str) -> Mosquitto:
            config.write_text(f"allow_anonymous true\n{line}\n")
            running.append(start_mosquitto(config, Path(folder) / "data"))
            return running[-1]

        yield begin
        for broker in running:
            broker.stop()


def outcomes(sender: Bus, receiver: Bus, payloads: list[bytes]) -> tuple[list[PublishOutcome], list[int]]:
    """Send to a receiver; return what became of each message, in the order of sending, and the sizes that came."""
    receiver.subscribe(["t"])
    while not receiver.connected:
        receiver.poll(0.02)
    became: dict[int, PublishOutcome] = {}
    for number, payload in enumerate(payloads):
        sender.publish("t", payload, on_outcome=lambda outcome, number=number: became.__setitem__(number, outcome))  # type: ignore[misc]
    came: list[int] = []
    deadline = time.monotonic() + 40
    # Sizes, not messages, are counted: one may come twice after a connection was lost.
    while len(became) < len(payloads) or not {
        len(payloads[number]) for number, outcome in became.items() if outcome is PublishOutcome.ACKED
    } <= set(came):
        assert time.monotonic() < deadline, f"{became} and {came} after 40 s"
        sender.poll(0.02)
        for delivery in receiver.poll(0.02):
            receiver.acknowledge(delivery)
            came.append(len(delivery.payload))
    return [became[number] for number in range(len(payloads))], came


@needs_mosquitto
@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
def test_a_message_that_the_broker_refuses_for_its_size(
    start: Start, client: ClientLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto says 0x95, which MQTT 5 does not have for PUBACK."""
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    broker = start("message_size_limit 1000")
    sender, receiver = (open_bus(broker.address, Session(name), client) for name in ("sender", "receiver"))
    became, came = outcomes(sender, receiver, [b"a", bytes(1001), b"bc"])
    assert (became, came) == ([PublishOutcome.ACKED, PublishOutcome.TOO_LARGE, PublishOutcome.ACKED], [1, 2])
    assert sender.traffic.reconnects == 0
    (said,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "a message for t makes a packet of 1010 bytes, which the broker refuses as too large" in said
    assert "message_size_limit" in said and "doctor" in said
    sender.close()
    receiver.close()


@needs_mosquitto
@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
def test_a_message_above_the_limit_that_the_broker_tells(
    start: Start, client: ClientLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    broker = start("max_packet_size 1000")
    sender, receiver = (open_bus(broker.address, Session(name), client) for name in ("sender", "receiver"))
    became, came = outcomes(sender, receiver, [b"a", bytes(1001), b"bc"])
    assert (became, came) == ([PublishOutcome.ACKED, PublishOutcome.TOO_LARGE, PublishOutcome.ACKED], [1, 2])
    (said,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert re.search(r"a packet of 10\d\d bytes; the broker takes at most 1000;", said)  # a topic or its alias
    sender.close()
    receiver.close()


@pytest.mark.slow
@needs_mosquitto
def test_with_3_1_1_a_message_that_costs_every_connection_is_given_up(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    broker = start("max_packet_size 1000")
    sender = open_bus(broker.address, Session("sender", expiry_s=60), ClientLibrary.PAHO, MqttVersion.V311)
    receiver = open_bus(broker.address, Session("receiver"), ClientLibrary.PAHO)
    became, came = outcomes(sender, receiver, [b"a", bytes(1001), b"bc"])
    assert became == [PublishOutcome.ACKED, PublishOutcome.TOO_LARGE, PublishOutcome.ACKED]
    assert sorted(set(came)) == [1, 2]
    assert (
        sender.traffic.reconnects >= ConsecutiveLosses.MOST
    )  # more where one of the others was acknowledged meanwhile
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == 1 and "the largest message under way makes a packet of 1010 bytes, for t" in errors[0]
    sender.close()
    receiver.close()


def test_only_connections_that_end_soon_with_nothing_acknowledged_count() -> None:
    losses = ConsecutiveLosses()
    assert [losses.lost(0.1, 1) for _ in range(5)] == [False] * 4 + [True]
    assert [losses.lost(0.1, 1) for _ in range(4)] == [False] * 4
    losses.acknowledged()
    assert [losses.lost(0.1, 1) for _ in range(4)] == [False] * 4
    assert losses.lost(ConsecutiveLosses.SOON_S, 1) is False  # that one lasted
    assert [losses.lost(0.1, 1) for _ in range(4)] == [False] * 4
    assert losses.lost(0.1, 0) is False  # nothing was under way
    assert [losses.lost(0.1, 1) for _ in range(5)] == [False] * 4 + [True]
