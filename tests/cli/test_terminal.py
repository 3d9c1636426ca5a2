"""Every command on a real terminal of 80 columns: no line is longer, so that no word and no figure is parted.

Of `train` and `bench` only the renderers are tested (test_eighty_columns.py): these compute for long.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from har_edge.mqtt.broker.launcher import find_mosquitto, free_port
from tests.cli.fleet import Fleet
from tests.cli.terminal import Terminal

DEVICES = """
[[device]]
name = "raspberry-pi-in-the-kitchen-upstairs"
speed = 0.5
link_bytes_per_s = 2_000_000
latency_s = 0.003
[[device]]
name = "raspberry-pi-in-the-living-room"
count = 3
speed = 0.25
link_bytes_per_s = 2_000_000
latency_s = 0.003
"""


@pytest.mark.slow
@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize(
    "command",
    [
        ("slice", "int8", "--list"),
        ("slice", "int8", "--stages", "3", "--out", "slices"),
        ("slice", "int8", "--at", "9", "--check", "--out", "slices"),
        ("profile", "int8", "--out", "profile.json"),
        ("plan", "int8", "--devices", "devices.toml"),
        ("data", "info"),
        ("evaluate", "--model", "int8", "--stages", "2", "--mqtt", "--subjects", "1"),
        ("demo", "--windows", "3", "--speed", "max"),
        ("service", "list", "--user"),
        ("service", "install", "sensor", "--user", "--options", "--pipeline", "har", "--live", "/dev/ttyUSB0"),
    ],
    ids=" ".join,
)
def test_commands_that_end(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text(DEVICES)
    with Terminal(*command, cwd=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "config")) as terminal:
        assert terminal.end() == 0, terminal.text
        terminal.check()


@pytest.mark.parametrize(
    "command",
    [
        ("watch", "--pipeline", "nowhere", "--broker", "mqtt://127.0.0.1:1"),
        ("slice", "a-model-that-is-not-there", "--stages", "3", "--out", "x"),
        ("stage", "--config", "a-folder-that-is-not-there", "--index", "0"),
        ("evaluate", "--model", "int8", "--png", "x.png", "--top-k", "99"),
    ],
    ids=" ".join,
)
def test_errors(command: tuple[str, ...], tmp_path: Path) -> None:
    with Terminal(*command, cwd=tmp_path) as terminal:
        assert terminal.end() == 2 and "error: " in terminal.text
        terminal.check()


@pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
@pytest.mark.parametrize("kind", ["mosquitto", "--embedded"])
def test_a_broker_and_a_second_one_on_its_port(kind: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    options = [kind] if kind.startswith("--") else ["--directory", str(tmp_path / "state")]
    command = ["broker", "--port", str(free_port("127.0.0.1")), *options]
    with Terminal(*command, cwd=tmp_path) as first:
        first.until_said("listens on")
        with Terminal(*command, cwd=tmp_path) as second:
            assert second.end() == 2 and "is not free" in second.text
            second.check()
        assert first.stop() == 0
        first.check()


def test_a_fixed_pipeline_and_all_that_look_at_it(fleet: Fleet) -> None:
    def start(command: str, *options: str) -> Terminal:
        config = ["--config", str(fleet.slices), "--broker", fleet.address.url]
        return Terminal(command, *config, *options, cwd=fleet.cwd)

    with start("watch") as watch:
        watch.until_said("nobody runs pipeline")  # the table stands between the lines of a notice
        with start("stage", "--index", "0") as stage, start("doctor") as early, start("status") as not_ready:
            assert (early.end(), not_ready.end()) == (1, 1)
            for index in (1, 2):
                fleet.stage(index)
            fleet.until_ready("stage-0", "stage-1", "stage-2")
            with start("sensor", "--source", "chest", "--subjects", "1", "--give-up", "60") as sensor:
                watch.until_said("no result of subject1 comes: no sensor at work sends")
                with start("doctor") as doctor, start("status") as status:
                    assert doctor.end() == 0, doctor.text
                    assert status.end() == 0, status.text
                sensor.stop()
            watch.end(signal.SIGINT)
            stage.stop()
            for terminal in (watch, early, not_ready, stage, sensor, doctor):
                terminal.check()
            status.check("sensor-chest-subject1")
        with start("doctor", "--clear") as clear:
            assert clear.end() == 0
            clear.check()


def test_a_coordinated_pipeline_of_nodes_that_compute_in_different_ways(fleet: Fleet) -> None:
    def start(command: str, *options: str) -> Terminal:
        where = ["--pipeline", f"{fleet.name}c", "--broker", fleet.address.url]
        return Terminal(command, *where, *options, cwd=fleet.cwd)

    names = ("raspberry-pi-in-the-kitchen-upstairs", "b")
    with (
        start("node", "--name", names[0], "--cache", "c1") as first,
        start("node", "--name", names[1], "--cache", "c2", "--delegate", "none") as second,
        start("coordinator", "--model", "float", "--stages", "2") as coordinator,
    ):
        coordinator.until_said("sensors switch to it", "answers may differ in the last bits")
        with start("status", "--cache", "c3") as status, start("doctor", "--cache", "c4") as doctor:
            assert status.end() == 0, status.text
            assert doctor.end() == 0, doctor.text
        for terminal in (coordinator, first, second):
            terminal.stop()
        for terminal in (coordinator, first, second, doctor):
            terminal.check()
        status.check(names[0])
