"""Starting brokers: Mosquitto's launcher, and the embedded one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.broker import embedded
from har_edge.mqtt.broker.launcher import (
    check_free,
    find_mosquitto,
    free_port,
    raise_memory_limit,
    reachable,
    start_mosquitto,
)
from har_edge.mqtt.broker.server import VERSION_TOPIC
from har_edge.mqtt.bus import Bus, Delivery, Session
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, choose_client, open_bus
from har_edge.resources import find_folder

CONFIG = find_folder("brokers") / "mosquitto.conf"


@pytest.fixture(autouse=True)
def _open_to_mosquitto(tmp_path: Path) -> None:
    """As root, Mosquitto becomes a user of its own, who must be able to enter."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)


needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


def until(bus: Bus, count: int, *others: Bus) -> list[Delivery]:
    came: list[Delivery] = []
    deadline = time.monotonic() + 10
    while len(came) < count:
        assert time.monotonic() < deadline, f"{len(came)} of {count} came"
        came += bus.poll(0.02)
        for other in others:
            other.poll(0.01)
    return came


# --- Mosquitto --------------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_starts_with_a_free_port_and_stops(tmp_path: Path) -> None:
    with start_mosquitto(CONFIG, tmp_path / "new" / "folder") as broker:
        assert broker.address.url.startswith("mqtt://127.0.0.1:") and not broker.address.tls
        assert broker.description.startswith("Mosquitto ")
        open_bus(broker.address, Session("x")).close()
    assert broker.process.poll() is not None
    with pytest.raises(BrokerError):
        open_bus(broker.address, Session("x"))


@needs_mosquitto
def test_listens_where_it_is_told(tmp_path: Path) -> None:
    with start_mosquitto(CONFIG, tmp_path, host="0.0.0.0") as broker:
        assert broker.address.host == "127.0.0.1"
        open_bus(broker.address, Session("x")).close()


@needs_mosquitto
def test_ipv6(tmp_path: Path) -> None:
    try:
        port = free_port("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with start_mosquitto(CONFIG, tmp_path, host="::1", port=port) as broker:
        assert broker.address.url == f"mqtt://[::1]:{port}"
        for client in (ClientLibrary.PAHO, ClientLibrary.NATIVE):
            open_bus(broker.address, Session("x"), client).close()


@needs_mosquitto
def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = (
            rf"port {port} on 127\.0\.0\.1 is not free: .+ \(process {os.getpid()}.*\), for this machine only .*, "
            rf"listens there\. Either\n +listen elsewhere: --port {port + 1} \(.*\)\n"
        )
        with pytest.raises(BrokerError, match=text):
            start_mosquitto(CONFIG, tmp_path, port=port)
        with pytest.raises(BrokerError, match=text):
            embedded.start_embedded(port=port)


@needs_mosquitto
@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("no_such_option true", r"Unknown configuration variable .?no_such_option"),
        ("max_keepalive 1000000", r"max_keepalive"),
    ],
)
def test_a_broken_configuration_is_told_in_mosquittos_words(tmp_path: Path, line: str, text: str) -> None:
    config = tmp_path / "broken.conf"
    config.write_text(f"allow_anonymous true\n{line}\n")
    with pytest.raises(BrokerError, match=rf"Mosquitto did not start \(exit code \d+\): .*{text}"):
        start_mosquitto(config, tmp_path / "data")


@needs_mosquitto
@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    config = tmp_path / "x.conf"
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the broker configuration .*x\.conf"):
        start_mosquitto(config, tmp_path)


def test_a_machine_without_mosquitto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.mqtt.broker.launcher.shutil.which", lambda *_, **__: None)
    with pytest.raises(
        BrokerError, match="Mosquitto is not installed; `apt-get install mosquitto`, or use the embedded"
    ):
        start_mosquitto(CONFIG, tmp_path)


def test_mosquitto_is_found_on_the_path_and_in_sbin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "mosquitto"
    stand_in.write_text("#!/bin/sh\necho mosquitto version 9.9.9\nexit 3\n")
    stand_in.chmod(0o755)
    real = find_mosquitto()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mosquitto() == stand_in
    if real is not None and real.parent == Path("/usr/sbin"):
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        assert find_mosquitto() == real


def test_a_mosquitto_that_dies_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "mosquitto"
    stand_in.write_text("#!/bin/sh\nexit 3\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BrokerError, match=r"Mosquitto did not start \(exit code 3\): it said nothing"):
        start_mosquitto(CONFIG, tmp_path / "data")


def test_ports() -> None:
    port = free_port("127.0.0.1")
    check_free("0.0.0.0", port)
    assert (reachable("0.0.0.0"), reachable("::"), reachable("pi")) == ("127.0.0.1", "::1", "pi")


# --- choosing a client ------------------------------------------------------------------------------------------------


def test_choosing_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_client(ClientLibrary.PAHO) is ClientLibrary.PAHO
    assert choose_client(ClientLibrary.AUTO, MqttVersion.V311) is ClientLibrary.PAHO
    monkeypatch.setattr("har_edge.mqtt.connect.importlib.util.find_spec", lambda _: object())
    assert choose_client(ClientLibrary.AUTO) is ClientLibrary.NATIVE
    with pytest.raises(ConfigError, match=r"client 'native' speaks MQTT 5 only, not 3\.1\.1; choose 'paho' or 'auto'"):
        choose_client(ClientLibrary.NATIVE, MqttVersion.V311)
    monkeypatch.setattr("har_edge.mqtt.connect.importlib.util.find_spec", lambda _: None)
    assert choose_client(ClientLibrary.AUTO) is ClientLibrary.PAHO
    with pytest.raises(ConfigError, match="client 'native' needs the library mqtt5; `pip install mqtt5`, or choose"):
        choose_client(ClientLibrary.NATIVE)


@needs_mosquitto
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Mosquitto becomes another user")
def test_a_folder_that_mosquitto_cannot_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match=r"cannot enter .*, so nothing would be kept in .*--directory"):
        start_mosquitto(CONFIG, tmp_path / "state")


@needs_mosquitto
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep the broker's files in .*give another folder"):
        start_mosquitto(CONFIG, tmp_path / "file" / "folder")


@needs_mosquitto
def test_a_mosquitto_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with start_mosquitto(CONFIG, tmp_path) as broker:
        broker.check()
        broker.process.kill()
        broker.process.wait()
        with pytest.raises(BrokerError, match=r"Mosquitto ended by itself \(exit code -9\): "):
            broker.check()


@needs_mosquitto
def test_an_unknown_host_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"cannot listen on 'nosuch.invalid': .*; give an address of this machine"):
        start_mosquitto(CONFIG, tmp_path, host="nosuch.invalid", port=1)


# --- the embedded broker ----------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[embedded.EmbeddedBroker]:
    broker = embedded.start_embedded()
    yield broker
    broker.stop()


@pytest.mark.parametrize("sender_protocol", MqttVersion)
@pytest.mark.parametrize("receiver_protocol", MqttVersion)
def test_both_protocols_carry_a_bus_to_each_other(
    own: embedded.EmbeddedBroker, sender_protocol: MqttVersion, receiver_protocol: MqttVersion
) -> None:
    assert own.description.startswith("har_edge ") and own.description.endswith("(embedded, MQTT 3.1.1 and 5)")
    receiver = open_bus(own.address, Session("receiver"), ClientLibrary.AUTO, receiver_protocol)
    sender = open_bus(own.address, Session("sender"), ClientLibrary.AUTO, sender_protocol)
    receiver.subscribe(["t/+"])
    while not receiver.connected:
        receiver.poll(0.02)
    payloads = [b"", b"x", bytes(range(256)) * 2000]
    for payload in payloads:
        sender.publish("t/a", payload)
    came = until(receiver, 3, sender)
    assert [delivery.payload for delivery in came] == payloads
    for delivery in came:
        receiver.acknowledge(delivery)
    while sender.unsent:
        sender.poll(0.02)
    receiver.close()
    sender.close()


def test_the_embedded_broker_says_who_it_is(own: embedded.EmbeddedBroker) -> None:
    bus = open_bus(own.address, Session("r"))
    bus.subscribe([VERSION_TOPIC])
    (delivery,) = until(bus, 1)
    assert (delivery.payload.decode(), delivery.retained) == (own.description, True)
    bus.close()


def test_the_embedded_broker_stops_twice_and_starts_again_on_its_port() -> None:
    first = embedded.start_embedded()
    first.stop()
    first.stop()
    with pytest.raises(BrokerError):
        open_bus(first.address, Session("x"))
    second = embedded.start_embedded(port=first.address.port)
    open_bus(second.address, Session("x")).close()
    second.stop()


def test_the_embedded_broker_that_dies_is_noticed(own: embedded.EmbeddedBroker) -> None:
    own.check()
    own.process.kill()
    own.process.wait()
    with pytest.raises(BrokerError, match=r"the embedded broker ended by itself \(exit code -9\)"):
        own.check()


def test_the_embedded_broker_ends_with_whoever_started_it() -> None:
    code = (
        "from har_edge.mqtt.broker.embedded import start_embedded\n"
        "broker = start_embedded()\n"
        "print(broker.process.pid, broker.address.port, flush=True)\n"
        "input()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, port = map(int, parent.stdout.readline().split())
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and b"embedded" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the broker outlives who started it"
        time.sleep(0.02)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize("name", ["mosquitto.conf", "secure.conf"])
def test_the_memory_limit_follows_from_machine_and_plan(name: str, tmp_path: Path) -> None:
    """Only in a configuration of har_edge; anybody else's stays as it is."""
    shipped = find_folder("brokers") / name
    text = shipped.read_text()
    machine = int(0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    assert "\nmemory_limit 1073741824\n" in text
    assert f"\nmemory_limit {max(2**30, machine)}\n" in raise_memory_limit(text, shipped)
    assert f"\nmemory_limit {2**50}\n" in raise_memory_limit(text, shipped, 2**50)
    assert "\nmax_queued_bytes 805306368\n" in text  # of one client: three quarters, so that the rest can be given
    assert f"\nmax_queued_bytes {3 * 2**48}\n" in raise_memory_limit(text, shipped, 2**50)
    assert raise_memory_limit(text, tmp_path / name, 2**50) == text
