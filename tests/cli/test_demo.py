"""`har-edge demo`: the whole pipeline in one command, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import Catalog, load_catalog, store_catalog
from har_edge.config.task import SourceInput, StreamTask
from har_edge.mqtt.broker import launcher as broker_module
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from tests.cli.fleet import TIMEOUT_S, environment
from tests.tflite import models


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A working directory without data, and no processes left at the end."""
    if not request.node.get_closest_marker("dataset"):
        monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def check(summary: dict[str, object], windows: int) -> None:
    assert (summary["windows_in"], summary["windows_out"]) == (windows, windows)
    assert (summary["lost"], summary["duplicated"]) == (0, 0)
    assert isinstance(summary["accuracy"], float) and summary["accuracy"] >= 0.8
    assert all(isinstance(summary[name], int) for name in ("raw_bytes", "sensor_wire_bytes", "stage_wire_bytes"))
    p50, p99 = summary["latency_p50_ms"], summary["latency_p99_ms"]
    assert isinstance(p50, float) and isinstance(p99, float) and 0 < p50 <= p99


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_it_needs_nothing_and_answers_every_window(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--windows", "20", "--speed", "max", "--json", "out.json"]) == 0
    said = capfd.readouterr()
    assert "no recordings found: using synthetic data; get the real ones with: har-edge data fetch" in said.err
    assert "40 in, 40 out, 0 lost, 0 doubled" in said.out and "Mosquitto " in said.out
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    check(summary, 40)
    assert summary["real"] is False and summary["data"] == "synthetic data"
    assert 0 < summary["sensor_wire_bytes"] < summary["raw_bytes"]
    assert set(summary["resident_bytes"]) >= {"stage-0", "stage-1", "stage-2"}
    assert "Traceback" not in said.err


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_fewer_bytes_for_the_same_windows_by_another_reducer(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--model", "int8", "--windows", "20", "--reducer", "paa:10+q8", "--batch", "10"]
    options += ["--speed", "50", "--json", "out.json"]
    assert main(["demo", *options]) == 0
    said = capfd.readouterr().out
    assert "\nreducer  paa:10+q8\n" in said and "a window, all sensors together" in said
    assert "with the waiting of the sensors: the first window of a message waits 9 hops (0.45 s) for the last" in said
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    check(summary, 40)
    assert summary["sensor_wire_bytes"] < 0.12 * summary["raw_bytes"] and summary["latency_p95_ms"] > 400
    assert (summary["reducer"], summary["batch"]) == ("paa:10+q8", "10 windows a message")


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("grouping", ["all", "type"])
def test_one_sensor_has_all_sources_where_they_are_grouped(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, grouping: str
) -> None:
    inputs = {"all": 23} if grouping == "all" else {"acc": 9, "gyro": 6}
    content = models.averaging({f"in_{source}": (100, size) for source, size in inputs.items()}, classes=12)
    (tmp_path / "own.tflite").write_bytes(content)
    shipped = load_catalog().models[0]
    task = msgspec.structs.replace(
        shipped.task,
        stream=StreamTask("mhealth", 50.0, 100, 50, grouping),
        inputs={source: SourceInput(f"in_{source}", "paa:5+q8") for source in inputs},
        output="scores",
    )
    sha256 = hashlib.sha256(content).hexdigest()
    entry = msgspec.structs.replace(shipped, name="own", file="own.tflite", sha256=sha256, task=task)
    store_catalog(Catalog(1, [entry]), tmp_path)
    options = ["--windows", "10", "--speed", "max", "--stages", "2", "--json", "out.json"]
    assert main(["demo", "--model", "own.tflite", *options]) == 0
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert (summary["windows_in"], summary["windows_out"], summary["lost"]) == (20, 20, 0)
    assert [name for name in summary["resident_bytes"] if name.startswith("sensor-")] in ([], ["sensor-all"])
    takes = " ".join(re.findall(r"takes (.*)", capfd.readouterr().out))
    assert all(source in takes for source in inputs)


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
def test_many_streams_at_once_lose_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ten streams times what each may have under way is more than a stage may hold."""
    options = ["--subjects", "1-10", "--windows", "40", "--speed", "max", "--model", "float", "--stages", "2"]
    assert main(["demo", *options, "--json", "out.json"]) == 0
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    check(summary, 400)
    assert "gave up" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.usefixtures("mosquitto")
def test_it_runs_on_real_recordings(tmp_path: Path) -> None:
    assert main(["demo", "--windows", "20", "--speed", "max", "--json", "out.json"]) == 0
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    check(summary, 40)
    assert summary["real"] is True and summary["data"].startswith("real data from ")


@pytest.mark.slow
def test_without_mosquitto_it_says_that_the_broker_is_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    assert main(["demo", "--windows", "10", "--subjects", "7", "--speed", "max", "--json", "out.json"]) == 0
    said = capfd.readouterr()
    assert "Mosquitto is not installed: using the embedded broker" in said.out + said.err
    summary = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    check(summary, 10)
    assert "(embedded" in summary["broker"]


@pytest.mark.slow
def test_it_uses_the_broker_it_is_given_and_leaves_nothing_there(
    mosquitto: broker_module.Mosquitto, tmp_path: Path
) -> None:
    url = mosquitto.address.url
    assert main(["demo", "--broker", url, "--windows", "5", "--speed", "max", "--json", "out.json"]) == 0
    check(msgspec.json.decode((tmp_path / "out.json").read_bytes()), 10)
    bus = open_bus(mosquitto.address, Session("look"), ClientLibrary.PAHO)
    bus.subscribe(["har/v1/+/node/+/status"])
    bus.publish("look", b"")
    deadline, retained = time.monotonic() + 20, []
    while bus.unsent or not bus.connected:
        assert time.monotonic() < deadline
        retained += bus.poll(0.05)
    retained += bus.poll(0.2)
    bus.close()
    assert [one.topic for one in retained if "/local-" in one.topic or "/demo-" in one.topic] == []


def children(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_stops_everything_it_started(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "har_edge.cli.main", "demo", "--speed", "1"]
    log = tmp_path / "log"
    # A shell lets what it starts in the background ignore SIGINT, and a child inherits that, but no handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=file, stderr=file)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + TIMEOUT_S
    while len(started := children(process.pid)) < 9:  # broker, three stages, three sensors, two that watch over these
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        os.sched_yield()
    process.send_signal(number)
    # Python itself makes -SIGINT of an interrupt that hits an import at the wrong moment; a shell sees 130 both times.
    codes = {-number} if number == signal.SIGKILL else {128 + number, -number} - {-signal.SIGTERM}
    assert process.wait(TIMEOUT_S) in codes, log.read_text()
    while any(map(alive, started)):
        assert time.monotonic() < deadline, "processes were left behind"
        os.sched_yield()
    assert "Traceback" not in log.read_text()


@pytest.mark.usefixtures("mosquitto")
def test_what_cannot_be_ends_with_code_2_and_says_why(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--broker", "mqtt://127.0.0.1:1"]) == 2
    assert "error: no broker at mqtt://127.0.0.1:1: " in capfd.readouterr().err
    (tmp_path / "text.tflite").write_text("hello, I am no flatbuffer")
    assert main(["demo", "--model", "text.tflite"]) == 2
    assert "error: text.tflite: no manifest says which windows this model takes" in capfd.readouterr().err
    assert main(["demo", "--model", "nowhere"]) == 2
    assert "error: no model 'nowhere': expected one of float, int8, " in capfd.readouterr().err
    assert main(["demo", "--stages", "40", "--windows", "1"]) == 2
    assert "error: " in capfd.readouterr().err
