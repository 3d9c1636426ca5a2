"""`har-edge broker`: Mosquitto or the embedded one, until a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.cli.commands.broker import default_directory, plan_bytes
from har_edge.cli.main import main
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker import launcher as broker_module
from har_edge.mqtt.broker.launcher import free_port
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.resources import find_folder


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that Mosquitto's own user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="har-edge-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("embedded", [False, True])
def test_it_serves_until_a_signal(open_folder: Path, embedded: bool, number: int) -> None:
    port = free_port("127.0.0.1")
    options = ["--embedded"] if embedded else ["--directory", str(open_folder / "state")]
    command = [sys.executable, "-m", "har_edge.cli.main", "broker", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        name = "(embedded, MQTT 3.1.1 and 5)" if embedded else "Mosquitto "
        assert name in said and f"listens on 127.0.0.1:{port}; stop it with Ctrl-C" in said
        bus = open_bus(Address("127.0.0.1", port), Session("x"), ClientLibrary.PAHO)
        came: list[bytes] = []
        bus.subscribe(["t"])
        deadline = time.monotonic() + 20
        bus.publish("t", b"1")
        while not came:
            assert time.monotonic() < deadline, "the broker passes nothing on"
            came += [delivery.payload for delivery in bus.poll(0.05)]
            bus.publish("t", b"1")
        bus.close()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert "broker stopped" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(OSError, match="refused"):
        import socket

        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_taken_port_is_named(mosquitto: broker_module.Mosquitto, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "--port", str(mosquitto.address.port)]) == 2
    port, pid = mosquitto.address.port, mosquitto.process.pid
    assert capsys.readouterr().err.splitlines() == [
        f"error: port {port} on 127.0.0.1 is not free: mosquitto (process {pid}), for this machine only (127.0.0.1), "
        "listens there. Either",
        f"  listen elsewhere: --port {port + 1} (and where --directory is given, another one)",
        f"  or stop it (kill {pid}), and start this again",
        f"  or, if it is a broker, use it: export HAR_EDGE_BROKER=mqtt://127.0.0.1:{port}",
        "  (what har_edge needs of its settings: brokers/README.md)",
    ]


@pytest.mark.parametrize(
    ("given", "beside", "expected"),
    [
        ("secure.conf", None, find_folder("brokers") / "secure.conf"),
        ("secure.conf", "secure.conf", Path("secure.conf")),  # the user's own comes first
        ("./secure.conf", None, find_folder("brokers") / "secure.conf"),
        ("etc/secure.conf", None, Path("etc/secure.conf")),
        ("mine.conf", None, Path("mine.conf")),
        (None, "x.conf", find_folder("brokers") / "mosquitto.conf"),
    ],
)
def test_a_shipped_configuration_is_found_from_any_folder(
    given: str | None, beside: str | None, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        """Nothing is to run."""

    def start(config: Path, *_: object, **__: object) -> None:
        used.append(config)
        raise Started

    used: list[Path] = []
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: Path("mosquitto"))
    monkeypatch.setattr(broker_module, "start_mosquitto", start)
    monkeypatch.chdir(tmp_path)
    if beside:
        Path(beside).write_text("allow_anonymous true\n")
    with pytest.raises(Started):
        main(["broker", *(["--config", given] if given else [])])
    assert used == [expected]


def test_without_mosquitto_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    assert main(["broker"]) == 2
    error = capsys.readouterr().err
    assert (
        "error: Mosquitto is not installed; `apt-get install mosquitto`, or run `har-edge broker --embedded`" in error
    )


def test_a_configuration_is_not_for_the_embedded_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "--embedded", "--config", "x.conf"]) == 2
    assert "error: --config is Mosquitto's; leave it away with --embedded" in capsys.readouterr().err


def test_the_memory_of_a_plan_follows_from_its_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two generations, two checkpoints, and 256 MiB under way at each cut, and a tenth more; 64 MiB beside."""
    assert main(["slice", "float", "--at", "4", "--out", str(tmp_path / "slices")]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "slices").glob("*.tflite"))
    assert plan_bytes(tmp_path / "slices") == int(1.1 * (4 * size + 2 * 2**28)) + 2**26 and size > 10_000
    assert main(["broker", "--embedded", "--slices", str(tmp_path / "slices")]) == 2
    assert "--slices sets a limit of Mosquitto; leave it away with --embedded" in capsys.readouterr().err


def test_brokers_of_other_ports_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older version left for another port goes on where it is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    base = tmp_path / "har-edge"
    assert [default_directory(port) for port in (1883, 2883)] == [base, base / "port-2883"]
    base.mkdir()
    (base / "mosquitto.conf").write_text("listener 2883 127.0.0.1\nallow_anonymous true\n")
    assert [default_directory(port) for port in (1883, 2883, 3883)] == [base, base, base / "port-3883"]
