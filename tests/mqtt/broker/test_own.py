"""The broker that a node carries: its address, its rights, and what it is refused for."""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import Address, neighbour_address
from har_edge.mqtt.broker.launcher import find_mosquitto
from har_edge.mqtt.broker.own import (
    OwnBroker,
    OwnBrokerKind,
    OwnBrokerSettings,
    is_loopback,
    local_host,
    start_own,
)
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus

CENTRAL = Address("127.0.0.1", 1883)
KINDS = list(OwnBrokerKind)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="har-edge-own-") as name:
        Path(name).chmod(0o755)  # Mosquitto, started by root, becomes a user of its own
        yield Path(name)


def settings(kind: OwnBrokerKind, folder: Path, **more: object) -> OwnBrokerSettings:
    if kind is OwnBrokerKind.MOSQUITTO and find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
    return OwnBrokerSettings(kind, folder / "own", **more)  # type: ignore[arg-type]


def answers(own: OwnBroker, url: str) -> bool:
    bus = open_bus(neighbour_address(CENTRAL, url), Session("asks"))
    bus.close()
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_reached_at_the_address_on_the_way_to_the_central_broker(kind: OwnBrokerKind, folder: Path) -> None:
    own = start_own(settings(kind, folder), CENTRAL)
    try:
        assert own.url == f"mqtt://127.0.0.1:{own.address.port}" and own.host == "127.0.0.1"
        assert answers(own, own.url) and own.check()
        assert own.server.startswith("Mosquitto" if kind is OwnBrokerKind.MOSQUITTO else "har_edge")
    finally:
        own.stop()
    with pytest.raises(OSError):
        socket.create_connection((own.address.host, own.address.port), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_listens_everywhere_when_it_is_known_by_another_name(kind: OwnBrokerKind, folder: Path) -> None:
    own = start_own(settings(kind, folder, advertise="localhost"), CENTRAL)
    try:
        assert own.url == f"mqtt://localhost:{own.address.port}" and own.address.host == "127.0.0.1"
        assert answers(own, own.url)
    finally:
        own.stop()


def test_a_broker_that_ended_is_noticed_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = start_own(settings(OwnBrokerKind.EMBEDDED, folder), CENTRAL)
    own.running.process.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    with caplog.at_level(logging.ERROR):
        while own.check():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not own.check()
    own.stop()
    assert [record.message for record in caplog.records] == [
        "this node's own broker is gone, its flows go through the central one: the embedded broker ended by itself "
        "(exit code -9); start it again"
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "central", [Address("127.0.0.1", 1883, username="pi"), Address("127.0.0.1", 8883, tls=True)], ids=["user", "TLS"]
)
def test_an_open_broker_is_refused_where_the_central_one_is_not_open(
    kind: OwnBrokerKind, central: Address, folder: Path
) -> None:
    with pytest.raises(ConfigError, match="its own broker would let in anybody; give a Mosquitto configuration"):
        start_own(settings(kind, folder), central)
    assert not (folder / "own").exists()


def test_a_configuration_that_lets_in_anybody_is_found_out(folder: Path) -> None:
    config = folder / "open.conf"
    config.write_text("allow_anonymous true\n")
    wanted = settings(OwnBrokerKind.MOSQUITTO, folder, config=config)
    with pytest.raises(BrokerError, match=r"lets in clients without a user.*set `allow_anonymous false`"):
        start_own(wanted, Address("127.0.0.1", 1883, username="pi", password="secret"))


def test_a_configuration_that_keeps_this_node_out_is_found_out(folder: Path) -> None:
    config = folder / "closed.conf"
    config.write_text("allow_anonymous false\n")
    wanted = settings(OwnBrokerKind.MOSQUITTO, folder, config=config)
    with pytest.raises(BrokerError, match="does not let it in"):
        start_own(wanted, CENTRAL)


def test_a_configuration_is_none_for_the_embedded_broker(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--own-broker-config is Mosquitto's"):
        start_own(settings(OwnBrokerKind.EMBEDDED, folder, config=folder / "x"), CENTRAL)


def test_a_port_that_is_taken_is_an_error_with_its_holder(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = settings(OwnBrokerKind.EMBEDDED, folder, port=other.getsockname()[1])
        with pytest.raises(BrokerError, match="is not free"):
            start_own(wanted, CENTRAL)


def test_without_a_way_to_the_central_broker_the_address_is_asked_for() -> None:
    with pytest.raises(BrokerError, match="give it with --advertise HOST"):
        local_host(Address("no-such-host.invalid", 1883))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("10.0.0.1", "pi.local", "fe80::1", "")),
    ],
)
def test_addresses_that_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_credentials_go_to_brokers_of_nodes_as_safely_as_to_the_central_one(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("certificate")
    secret = Address("central", 8883, tls=True, username="pi", password="p", ca_file=ca)
    found = neighbour_address(secret, "mqtts://10.0.0.2:8884")
    assert (found.host, found.port, found.tls, found.username, found.password, found.ca_file) == (
        "10.0.0.2", 8884, True, "pi", "p", ca,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"the plan names the broker mqtt://10.0.0.2:1884, which is not encrypted"):
        neighbour_address(secret, "mqtt://10.0.0.2:1884")
    assert neighbour_address(CENTRAL, "mqtt://10.0.0.2:1884") == Address("10.0.0.2", 1884)
    with pytest.raises(ConfigError, match="expected mqtt://HOST"):
        neighbour_address(CENTRAL, "http://10.0.0.2")
