"""`har-edge sensor` as processes on Mosquitto, and what it refuses."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from har_edge.cli.built_sensor import name_of
from har_edge.cli.main import build_parser, main
from har_edge.mqtt.bus import Session
from har_edge.protocol import wire
from har_edge.protocol.status import State
from har_edge.protocol.topics import is_id
from har_edge.runtime.build import names_of
from tests.cli.fleet import Fleet


def test_it_sends_the_windows_of_a_source_and_says_what_it_did(fleet: Fleet) -> None:
    listener = fleet.open(Session(f"{fleet.name}-listener"))
    listener.subscribe([fleet.topics.window("+", "arm")])
    fleet.until(lambda: listener.poll(0.02) or listener.connected, "no connection")
    sensor = fleet.start(
        "sensor", "--source", "arm", "--subjects", "3,4", "--windows", "12", "--speed", "max", "--batch", "5",
        "--in-flight", "0",
    )  # fmt: skip
    messages: list[wire.Message] = []

    def listen() -> bool:
        for delivery in listener.poll(0.02):
            listener.acknowledge(delivery)
            messages.append(wire.decode(delivery.payload, names=names_of(fleet.pipeline)))
        return len(messages) >= 6

    fleet.until(listen, "too few messages")
    assert sensor.wait() == 0
    assert [(one.stream, one.seq, one.count) for one in messages] == [
        ("subject3", 0, 5), ("subject4", 0, 5), ("subject3", 5, 5), ("subject4", 5, 5), ("subject3", 10, 2),
        ("subject4", 10, 2),
    ]  # fmt: skip
    assert {name: array.dtype.name for name, array in messages[0].tensors.items()} == {"arm": "int8"}
    assert "no recordings found: using synthetic data; get the real ones with: har-edge data fetch" in sensor.output
    assert "sensor arm connected: arm of subject3, subject4, synthetic data; reducer: q8:0." in sensor.output
    assert "sensor arm sent, answers not heard: 24 windows in 6 messages" in sensor.output
    fleet.until(lambda: fleet.state("sensor-arm-subject3-subject4") is State.STOPPED, "no farewell")
    assert fleet.counter("sensor-arm-subject3-subject4", "windows") == 24
    assert fleet.counter("sensor-arm-subject3-subject4", "raw_bytes") == 2 * (11 * 125 + 250) * 9 * 4
    assert fleet.counter("sensor-arm-subject3-subject4", "sent_bytes") > 24 * 250 * 9
    listener.close()


def test_it_says_what_several_windows_a_message_cost_in_time(fleet: Fleet) -> None:
    """The first of 4 windows, 2.5 s apart, waits for 3 more; 50 times faster, that is 150 ms."""
    fleet.stages()
    sensors = fleet.sensors("--subjects", "1", "--windows", "8", "--speed", "50", "--batch", "4")
    fleet.until_results(8)
    assert [sensor.wait() for sensor in sensors] == [0, 0, 0] and fleet.all_once(1, 8)
    text = "4 windows a message: the first window of a message waits 3 hops (0.15 s) for the last"
    assert all(text in sensor.output for sensor in sensors)
    delays = [fleet.results["subject1", seq].emitted - fleet.results["subject1", seq].captured for seq in range(8)]
    assert all(delays[first] > 0.149 and delays[first] > delays[first + 3] + 0.149 for first in (0, 4))


def test_of_two_sensors_with_one_name_the_older_ends_and_says_so(fleet: Fleet) -> None:
    older = fleet.start("sensor", "--source", "chest", "--subjects", "1", "--speed", "5")
    fleet.until_ready("sensor-chest-subject1")
    first = fleet.statuses["sensor-chest-subject1"].instance
    younger = fleet.start("sensor", "--source", "chest", "--subjects", "1", "--speed", "5")
    assert older.wait() == 3
    assert (
        "sensor chest: another sensor named sensor-chest-subject1 has connected; ending (give each its --name)"
        in older.output
    )
    fleet.until(
        lambda: (
            fleet.state("sensor-chest-subject1") is State.READY
            and fleet.statuses["sensor-chest-subject1"].instance != first
        ),
        "the younger sensor is not there",
    )
    assert younger.process.poll() is None
    assert younger.end(signal.SIGTERM) == 143


def test_sensors_of_two_persons_do_not_take_each_other_over(fleet: Fleet) -> None:
    """Neither replay nor live, and none of them was given a name."""
    first = fleet.start("sensor", "--source", "chest", "--subjects", "1", "--speed", "5")
    second = fleet.start("sensor", "--source", "chest", "--subjects", "2", "--speed", "5")
    fleet.until_ready("sensor-chest-subject1", "sensor-chest-subject2")
    assert first.process.poll() is second.process.poll() is None
    assert first.end() == second.end() == 143


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--source", "arm"], "sensor-arm"),
        (["--subjects", "7,8"], "sensor-all-subject7-subject8"),
        (["--live", "-", "--stream", "anna"], "sensor-all-anna"),
        (["--name", "mine", "--subjects", "7"], "mine"),
    ],
)
def test_the_default_name_has_the_streams(options: list[str], name: str) -> None:
    args = build_parser().parse_args(["sensor", *options])
    assert name_of(args) == name


def test_a_default_name_is_never_too_long_and_still_tells_lists_apart() -> None:
    names = [name_of(build_parser().parse_args(["sensor", "--subjects", f"1-{last}"])) for last in (99, 98)]
    assert len(set(names)) == 2 and all(is_id(name) and name.startswith("sensor-all-subject1-") for name in names)


def test_no_sensor_takes_the_session_of_a_stage_that_lives(fleet: Fleet) -> None:
    stage = fleet.stage(1)
    fleet.until_ready("stage-1")
    sensor = fleet.start("sensor", "--source", "chest", "--name", "stage-1", "--subjects", "1")
    assert sensor.wait() == 2
    assert "error: 'stage-1' is the name of a stage that is alive; expected a name of its own for each" in sensor.output
    assert stage.process.poll() is None and fleet.state("stage-1") is State.READY


def test_a_sensor_without_its_companion_does_not_wait_for_ever(fleet: Fleet) -> None:
    """It ends and says so; when the others come too, all windows are answered."""
    file = fleet.slices / "pipeline.toml"
    file.write_text(file.read_text().replace("timeout_s = 30.0", "timeout_s = 3.0"))
    fleet.stages()  # windows that a busy machine sends a second or two apart still meet
    load = ("--subjects", "1", "--windows", "20", "--speed", "max", "--in-flight", "5")
    alone = fleet.start("sensor", "--source", "ankle", *load, "--give-up", "6")
    assert alone.wait() == 1 and "5 windows in 10 messages; resent 5, unanswered 5" in alone.output
    fleet.until(lambda: fleet.state("sensor-ankle-subject1") is State.STOPPED, "no farewell")
    figures = fleet.statuses["sensor-ankle-subject1"].streams["subject1"]
    assert (figures.sent, figures.answered, figures.lost) == (5, 0, 5)
    sensors = fleet.sensors(*load)
    fleet.until_results(20)
    assert [sensor.wait() for sensor in sensors] == [0, 0, 0] and fleet.all_once(1, 20)


def test_it_stops_cleanly_while_nobody_listens(fleet: Fleet) -> None:
    sensor = fleet.start("sensor", "--subjects", "1", "--speed", "max")
    fleet.until(lambda: "nobody listens to" in sensor.output, "it does not say that nobody listens")
    assert sensor.end() == 143
    fleet.until(lambda: fleet.state("sensor-all-subject1") is State.STOPPED, "no farewell")


REFUSALS = {
    "source": (
        ["--source", "leg"],
        "error: source 'leg' came; expected one of chest, ankle, arm, which the model take",
    ),
    "unreachable": (["--broker", "mqtt://127.0.0.1:1"], "no broker at mqtt://127.0.0.1:1: "),
    "reducer": (["--reducer", "paa:0"], "error: source 'chest': paa:0: expected a piece of 1 to 250 samples"),
    "recipe": (["--reducer", "arm=pca:8"], "error: source 'arm': reducer 'pca:8': pca:8 is a recipe that is yet to be"),
    "method": (["--reducer", "squeeze:8"], "error: source 'chest': reducer 'squeeze:8': no method 'squeeze:8', expec"),
    "window": (
        ["--reducer", "stats"],
        "error: source 'chest' gives windows [250, 5], of which reducer 'stats' makes fe",
    ),
    "source of a reducer": (["--reducer", "leg=q8"], "error: a reducer came for source leg; expected sources that the"),
    "list of reducers": (
        ["--reducer", "arm=q8,arm=paa:5"],
        "error: --reducer 'arm=q8,arm=paa:5': 'arm=paa:5' came; expected one SPEC for all sources, or SOURCE=SPEC,SOU",
    ),
    "data": (["--data", "empty"], "error: --data: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_ends_with_code_2_and_says_why(
    slices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.delenv("HAR_EDGE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options, text = REFUSALS[case]
    assert main(["sensor", "--config", str(slices), "--subjects", "1", *options]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (["--speed", "0"], "'0' is no speed; expected a factor from 0.0001 to 1000000, or max"),
        (["--speed", "fast"], "'fast' is no speed; expected a factor from 0.0001 to 1000000, or max"),
        (["--windows", "0"], "'0' came; expected a whole number above 0"),
        (["--batch", "-1"], "expected 1 to 1024 windows a message"),
        (["--in-flight", "-1"], "expected a whole number"),
        (["--subjects", ","], "',' names no stream; expected numbers such as 7,8 or 1-6, or names"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    capsys: pytest.CaptureFixture[str], option: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sensor", *option])
    assert caught.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_replay_says_how_many_of_how_many_and_fails(fleet: Fleet, number: int, code: int) -> None:
    fleet.stages()
    sensor = fleet.start("sensor", "--subjects", "1,2", "--windows", "30", "--speed", "10", "--name", "one")
    fleet.until_results(4)
    assert sensor.end(number) == code
    fleet.until(lambda: fleet.state("one") is State.STOPPED, "no farewell")
    sent = fleet.counter("one", "windows")
    assert 4 <= sent < 60 and "done" not in sensor.output
    assert f"sensor all interrupted: {sent} of 60 windows in {3 * sent} messages" in sensor.output
    assert fleet.statuses["one"].detail.endswith(f"; interrupted after {sent} windows")


def test_a_replay_that_is_stopped_with_all_windows_out_names_those_without_an_answer(fleet: Fleet) -> None:
    sensor = fleet.start("sensor", "--subjects", "1", "--windows", "2", "--speed", "max", "--name", "one")
    fleet.until(lambda: fleet.counter("one", "windows") == 2, "nothing was sent")
    assert sensor.end() == 143
    assert re.search(r"sensor all interrupted: 2 of 2 windows in \d+ messages; .*unanswered 2", sensor.output)


def test_one_window_in_one_message_is_said_so(fleet: Fleet) -> None:
    fleet.stages()
    sensor = fleet.start("sensor", "--subjects", "1", "--windows", "1", "--combine", "--speed", "max")
    assert sensor.wait() == 0 and "sensor all done: 1 window in 1 message\n" in sensor.output
