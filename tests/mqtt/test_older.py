"""Brokers that speak no MQTT 5: both clients go on with 3.1.1 and say so once; nothing else is taken for that."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt import connect
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.mqtt.bus import Bus, PublishOutcome, Session
from har_edge.mqtt.clients import handshake, paho, transport
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, open_bus
from har_edge.mqtt.measure import broker_probe
from tests.mqtt.old_broker import Manner, OldBroker


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_older", set())
    for module in (transport, handshake, paho, broker_probe):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.7)


def passes(sender: Bus, receiver: Bus) -> bool:
    receiver.subscribe(["older"])
    while not receiver.connected:
        receiver.poll(0.02)
    sender.publish("older", b"x")
    came = False
    for _ in range(200):
        sender.poll(0.01)
        came = came or any(one.payload == b"x" for one in receiver.poll(0.01))
        if came:
            break
    sender.close()
    receiver.close()
    return came


@pytest.mark.parametrize("client", ClientLibrary)
@pytest.mark.parametrize("manner", Manner)
def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(
    embedded: EmbeddedBroker, manner: Manner, client: ClientLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    with OldBroker(embedded.address, manner) as old, caplog.at_level(logging.WARNING):
        first = open_bus(old.address, Session("first"), client)
        refused = old.refused
        assert passes(first, open_bus(old.address, Session("second"), client))
        assert refused > 0 and old.refused == refused  # the second one knew
    said = [one.getMessage() for one in caplog.records if "speaks no MQTT 5" in one.getMessage()]
    assert said == [
        f"the broker at {old.address.url} speaks no MQTT 5; 3.1.1 is used instead (docs/reference/brokers.md)"
    ]


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("name", ["embedded", "mosquitto"])
def test_a_session_of_3_1_1_ends_when_it_is_to_be_forgotten(
    request: pytest.FixtureRequest, name: str, forget: bool
) -> None:
    address, who = request.getfixturevalue(name).address, Session(f"leaves-{forget}", expiry_s=60)
    bus = open_bus(address, who, protocol=MqttVersion.V311)
    bus.subscribe(["left/#"])
    while not bus.connected:
        bus.poll(0.02)
    bus.close(forget=forget)
    sender = open_bus(address, Session("sender"))
    heard: list[PublishOutcome] = []
    sender.publish("left/x", b"", on_outcome=heard.append)
    while not heard:
        sender.poll(0.02)
    assert heard == [PublishOutcome.NO_SUBSCRIBERS if forget else PublishOutcome.ACKED]
    sender.close()
    open_bus(address, who, protocol=MqttVersion.V311).close(forget=True)


def test_who_asks_for_3_1_1_is_not_told_of_it(embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    with OldBroker(embedded.address, Manner.CLOSES) as old, caplog.at_level(logging.WARNING):
        open_bus(old.address, Session("asks"), protocol=MqttVersion.V311).close()
        assert old.refused == 0
    assert caplog.records == []


class Answers:
    """Answers each connection with the next of some bytes, then closes it; counts them."""

    def __init__(self, *answers: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], username="u", password="wrong")
        self._answers, self.firsts = answers, list[int]()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection:
                said = connection.recv(65536)
                self.firsts.append(said[said.index(b"MQTT") + 4] if said else 0)
                connection.sendall(answer)
        self._listener.close()


@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
@pytest.mark.parametrize("code", [0x86, 0x87])
def test_a_wrong_password_is_no_other_version(client: ClientLibrary, code: int) -> None:
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    broker = Answers(bytes([0x20, 3, 0, code, 0]), b"\x20\x02\x00\x00")
    with pytest.raises(BrokerError, match="check the user, and the password"):
        open_bus(broker.address, Session("x"), client)
    assert broker.firsts == [5]


@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
def test_a_wrong_password_at_an_older_broker_is_told_as_one(client: ClientLibrary) -> None:
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    broker = Answers(b"\x20\x02\x00\x01", b"\x20\x02\x00\x05", b"\x20\x02\x00\x05")
    with pytest.raises(BrokerError, match="not authorized; check the user, and the password"):
        open_bus(broker.address, Session("x"), client)
    assert broker.firsts == [5, 4, 4]


@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
def test_a_broker_that_closed_one_connection_is_not_taken_for_an_older_one(client: ClientLibrary) -> None:
    """It was starting, say: the second try with MQTT 5 is answered."""
    if client is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    broker = Answers(b"", b"\x20\x02\x00\x00", b"\x20\x03\x00\x00\x00")
    with pytest.raises(BrokerError, match="without an answer to CONNECT"):
        open_bus(broker.address, Session("x"), client)
    assert broker.firsts == [5, 4, 5]


def test_a_server_that_answers_nobody_is_named_as_before() -> None:
    broker = Answers(b"", b"")
    with pytest.raises(BrokerError, match=r"without an answer to CONNECT \(it may want mqtts://\)"):
        open_bus(broker.address, Session("x"), ClientLibrary.PAHO)
    assert broker.firsts == [5, 4]
