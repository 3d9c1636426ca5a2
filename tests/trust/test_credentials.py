"""Users of a secured broker: what the command writes, and that a real Mosquitto holds each of them to its own."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.cli.arguments.options import find_address
from har_edge.cli.commands.credentials import ROLES
from har_edge.cli.main import build_parser, main
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Session, SessionLease, TakenOver
from har_edge.mqtt.connect import open_bus
from har_edge.resources import find_folder
from har_edge.trust.credentials import access_of, open_credentials, read_client, role_lists, secret_id

pytest.importorskip("cryptography")


def add(folder: Path, name: str, role: str, *more: str) -> int:
    return main(["credentials", "add", name, "--role", role, "--folder", str(folder), *more])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "secure"
    assert add(folder, "pi-1", "node", "--url", "mqtts://127.0.0.1:8883") == 0
    for name, role in (("pi-2", "node"), ("wrist", "sensor"), ("eye", "watcher"), ("box", "coordinator")):
        assert add(folder, name, role) == 0
    return folder


def test_users_are_added_listed_and_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["credentials", "remove", "pi-2", "--folder", str(folder)]) == 0
    assert main(["credentials", "list", "--folder", str(folder)]) == 0
    shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()[-4:]]
    assert shown == [["box", "coordinator"], ["eye", "watcher"], ["pi-1", "node"], ["wrist", "sensor"]]
    assert "pi-2" not in (folder / "passwords").read_text() + (folder / "acl").read_text()
    assert not (folder / "clients" / "pi-2").exists()
    for path in ("passwords", "acl", "broker.key", "ca.key", "credentials.json", "clients/pi-1/client.json"):
        assert (folder / path).stat().st_mode & 0o077 == 0, path
    line = next(one for one in (folder / "passwords").read_text().splitlines() if one.startswith("wrist:"))
    assert re.fullmatch(r"wrist:\$7\$101\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{86}==", line)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("pi-1", "--role", "node"), "pi-1 is there with the role node"),
        (("a/b", "--role", "node"), "name 'a/b'; expected 1 to 128 letters"),
        (("new", "--role", "node", "--url", "mqtts://other"), "is for mqtts://127.0.0.1:8883"),
    ],
)
def test_what_cannot_be_added_says_why(
    folder: Path, words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["credentials", "add", *words, "--folder", str(folder)]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_the_first_one_needs_the_address_of_the_broker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add the first with --url"):
        open_credentials(tmp_path, None, "h")
    with pytest.raises(ConfigError, match="expected mqtts://NAME"):
        open_credentials(tmp_path, "mqtt://box", "h")


def test_roles_are_those_of_the_page_and_write_only_what_is_their_own() -> None:
    readme = (find_folder("brokers") / "README.md").read_text(encoding="utf-8")
    page = dict(re.findall(r"^ *user (\w+)\n((?: *topic .*\n)+)", readme, re.MULTILINE))
    assert {role: [line.strip() for line in lines.splitlines()] for role, lines in page.items()} == role_lists()
    assert set(ROLES) == set(role_lists())
    for role, lines in role_lists().items():
        written = re.findall(r"topic (?:write|readwrite) (\S+/(?:node|beat)/\S+)", access_of("me", role, lines))
        assert role == "coordinator" or all(topic.endswith(("/node/me/status", "/beat/me")) for topic in written)


def test_client_ids_are_the_same_on_devices_that_share_sessions_and_unguessable(folder: Path) -> None:
    clients = {name: read_client(folder / "clients" / name) for name in ("pi-1", "pi-2", "box", "wrist", "eye")}
    ids = {name: secret_id("har.har.7.stage-0.0", one.secret) for name, one in clients.items()}
    assert ids["pi-1"] == ids["pi-2"] == ids["box"] and len(set(ids.values())) == 3
    assert ids["pi-1"].startswith("har.har.7.stage-0.0.") and len(ids["pi-1"]) == len("har.har.7.stage-0.0.") + 32


def test_a_client_folder_that_others_may_read_is_refused(folder: Path) -> None:
    (folder / "clients" / "eye" / "client.json").chmod(0o644)
    with pytest.raises(ConfigError, match="may be read by others"):
        read_client(folder / "clients" / "eye")


def test_credentials_come_from_the_option_or_the_environment_and_a_service_keeps_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder / "clients" / "eye"
    for name in ("HAR_EDGE_BROKER", "HAR_EDGE_PASSWORD", "HAR_EDGE_USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def address(*words: str):  # type: ignore[no-untyped-def]
        return find_address(build_parser().parse_args(["watch", *words]), BrokerConfig(), Path())

    found = address("--credentials", str(place))
    assert (found.url, found.username, found.ca_file) == ("mqtts://127.0.0.1:8883", "eye", place / "ca.crt")
    assert found.password == read_client(place).password
    monkeypatch.setenv("HAR_EDGE_CREDENTIALS", str(place))
    assert address() == found
    assert address("--broker", "mqtt://127.0.0.1:1").username is None, "a broker of its own"
    capsys.readouterr()
    assert main(["service", "install", "node", "--user", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"HAR_EDGE_CREDENTIALS={place}" in said.replace('"', "") and "HAR_EDGE_BROKER" not in said


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder, with Mosquitto on its files."""
    from har_edge.mqtt.broker.launcher import start_mosquitto

    if shutil.which("mosquitto") is None and not Path("/usr/sbin/mosquitto").exists():
        pytest.skip("needs Mosquitto")
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)  # Mosquitto's user walks through them
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = start_mosquitto(open_credentials(folder, None, "").config(), tmp_path / "run", host="127.0.0.1", port=port)
    for name in open_credentials(folder, None, "").users:
        path = folder / "clients" / name / "client.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"url": f"mqtts://127.0.0.1:{port}"}))
    yield folder
    broker.stop()


def test_mosquitto_takes_the_users_and_lets_nobody_write_the_status_of_another(served: Path) -> None:
    def connect(name: str):  # type: ignore[no-untyped-def]
        args = build_parser().parse_args(["status", "--credentials", str(served / "clients" / name)])
        return open_bus(find_address(args, BrokerConfig(), Path()), Session(f"t-{name}", clean_start=True))

    buses = {name: connect(name) for name in ("pi-1", "wrist", "eye", "box")}
    buses["box"].subscribe(["har/v1/har/node/+/status", "har/v1/har/plan", "har/v1/har/signature"])
    buses["box"].poll(0.2)
    for name in ("pi-1", "wrist", "eye"):
        for topic in ("node/pi-1/status", "node/wrist/status", "plan"):
            buses[name].publish(f"har/v1/har/{topic}", f"{name} at {topic}".encode())
    end, came = time.monotonic() + 1.5, set()
    while time.monotonic() < end:
        came |= {one.payload.decode() for one in buses["box"].poll(0.1)}
        for name in ("pi-1", "wrist", "eye"):
            buses[name].poll(0.02)
    assert came == {"pi-1 at node/pi-1/status", "wrist at node/wrist/status"}
    for bus in buses.values():
        bus.close()


def test_a_client_that_loses_its_session_to_a_stranger_stays_and_ends_only_for_a_successor() -> None:
    """The broker says that the session was taken over (0x8E); what is retained says whether that was rightful."""
    from har_edge.mqtt.broker.embedded import start_embedded

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = start_embedded(host="127.0.0.1", port=port)
    lease = SessionLease("claim", lambda delivery: delivery.payload == b"rightful")
    mine = open_bus(broker.address, Session("mine", lease=lease))
    open_bus(broker.address, Session("mine", clean_start=True)).close()
    end = time.monotonic() + 10
    while mine.traffic.reconnects == 0 and time.monotonic() < end:
        mine.poll(0.1)
    assert mine.traffic.reconnects == 1 and mine.connected
    successor = open_bus(broker.address, Session("claims", clean_start=True))
    successor.publish("claim", b"rightful", retain=True)
    successor.poll(0.2)
    thief = open_bus(broker.address, Session("mine", clean_start=True))
    with pytest.raises(TakenOver):
        while time.monotonic() < end + 10:
            mine.poll(0.1)
    for bus in (successor, thief):
        bus.close()
    broker.stop()


def test_a_service_that_was_taken_over_waits_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from har_edge.cli import main as main_module

    waited: list[float] = []
    monkeypatch.setattr(main_module.time, "sleep", waited.append)
    monkeypatch.setattr(main_module.signal, "signal", lambda *_: None)
    assert main_module._wait_taken_over(3) == 3 and waited == []
    monkeypatch.setenv(main_module.TAKEN_OVER_VARIABLE, "300")
    assert main_module._wait_taken_over(0) == 0 and waited == []
    assert main_module._wait_taken_over(3) == 3 and waited == [300]
