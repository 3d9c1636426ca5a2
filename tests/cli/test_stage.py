"""`har-edge stage` as processes on Mosquitto: nothing is lost, whoever is killed, replaced or fed garbage."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path

import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import find_model
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.mqtt.bus import Session
from har_edge.protocol import wire
from har_edge.protocol.status import State
from har_edge.resources import find_folder
from har_edge.runtime.slicing import prepare
from tests.cli.fleet import Fleet, Running

# Two streams, 40 windows each, 25 a second: long enough to disturb them, and more than are under way at once.
LOAD = ("--subjects", "1,2", "--windows", "40", "--speed", "60", "--in-flight", "8")


def all_well(fleet: Fleet, sensors: list[Running], streams: int = 2, windows: int = 40) -> None:
    fleet.until_results(streams * windows)
    assert [sensor.wait() for sensor in sensors] == [0] * len(sensors)
    assert fleet.all_once(streams, windows)
    assert not [one.log for one in fleet.running if "gave up" in one.output]


@pytest.mark.parametrize("client", ["paho", "native"])
@pytest.mark.parametrize("combine", [False, True])
def test_every_window_comes_once_and_all_say_goodbye(fleet: Fleet, client: str, combine: bool) -> None:
    if client == "native":
        pytest.importorskip("mqtt5")
    stages = fleet.stages("--client", client)
    load = ("--subjects", "1,2", "--windows", "40", "--speed", "max", "--client", client)
    sensors = [fleet.start("sensor", "--combine", *load)] if combine else fleet.sensors(*load)
    all_well(fleet, sensors)
    assert [stage.end() for stage in stages] == [0, 0, 0]
    fleet.until(lambda: all(fleet.state(f"stage-{i}") is State.STOPPED for i in range(3)), "no farewell")
    assert [fleet.counter(f"stage-{i}", "windows") for i in range(3)] == [80, 80, 80]
    assert fleet.sink.counters.duplicates == 0
    for index, stage in enumerate(stages):
        assert f"stage {index} connected: slice {index}: operators" in stage.output
        assert f"MQTT client: {client}" in stage.output
        assert f"stage {index} stopped: 80 windows, 0 messages rejected" in stage.output
    right = [result for result in fleet.results.values() if result.truth is not None]
    assert sum(result.label_id == result.truth for result in right) >= 0.8 * len(right)


def test_sensors_and_stages_that_are_told_another_reducer_agree_on_it(fleet: Fleet) -> None:
    """What a sensor sends by the reducer of the pipeline file is dropped and counted, and harms nothing."""
    reducer = ("--reducer", "chest=sod:0.5,ankle=paa:5+q8,arm=paa:10")
    stages = fleet.stages(*reducer)
    load = ("--subjects", "1,2", "--windows", "10", "--speed", "max")
    stray = fleet.start("sensor", "--source", "ankle", "--name", "stray", *load, "--in-flight", "0")
    assert stray.wait() == 0
    sensors = fleet.sensors(*load, *reducer)
    all_well(fleet, sensors, windows=10)
    assert [stage.end() for stage in stages] == [0, 0, 0]
    fleet.until(lambda: all(fleet.state(f"stage-{i}") is State.STOPPED for i in range(3)), "no farewell")
    assert sum(fleet.counter(f"stage-{i}", "rejected") for i in range(3)) == 20
    said = "".join(stage.output for stage in stages)
    assert said.count("the code of source 'ankle' is not what 'paa:5+q8' makes of 1 windows: ") == 2
    assert "(and 18 more like this since the last such line)" in said
    assert "code is int8 [1, 250, 9], expected uint8 [1, 522]; give sensor and stage the same reducer" in said
    assert "; reducer: chest sod:0.5" in said
    assert "reducer: sod:0.5; MQTT client:" in sensors[0].output


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_killed_stage_comes_back_and_nothing_is_lost(fleet: Fleet, index: int) -> None:
    stages = fleet.stages()
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(15)
    assert stages[index].end(signal.SIGKILL) == -signal.SIGKILL
    fleet.until(lambda: fleet.state(f"stage-{index}") is State.LOST, "the will did not say that the stage is lost")
    fleet.stage(index)
    all_well(fleet, sensors)


@pytest.mark.parametrize("client", ["paho", "native"])
def test_stages_killed_again_and_again_lose_nothing(fleet: Fleet, client: str) -> None:
    """Each restart does windows again; what comes of that must not crowd out the windows that are new."""
    if client == "native":
        pytest.importorskip("mqtt5")
    rng, stages = random.Random(0), fleet.stages("--client", client)
    load = ("--subjects", "1-6", "--windows", "100", "--speed", "max", "--client", client)
    sensors = fleet.sensors(*load)
    while len(fleet.results) < 500:
        fleet.until_results(len(fleet.results) + rng.randrange(10, 90))
        index = rng.randrange(3)
        stages[index].end(signal.SIGKILL)
        stages[index] = fleet.stage(index, "--client", client)
    fleet.until_results(600)
    assert [sensor.wait() for sensor in sensors] == [0, 0, 0] and fleet.all_once(6, 100)


def test_processes_take_turns_at_a_slice(fleet: Fleet) -> None:
    stages = [fleet.stage(index) for index in (1, 2)] + [fleet.stage(0, "--turn", str(turn)) for turn in range(2)]
    fleet.until_ready("stage-0", "stage-0-1", "stage-1", "stage-2")
    load = ("--combine", "--subjects", "1,2", "--windows", "40", "--speed", "max")
    all_well(fleet, [fleet.start("sensor", *load)])
    assert [stage.end() for stage in stages] == [0] * 4
    names = ("stage-0", "stage-0-1")
    fleet.until(lambda: all(fleet.state(name) is State.STOPPED for name in names), "no farewell")
    counts = [fleet.counter(name, "windows") for name in names]
    assert sum(counts) == 80 and min(counts) > 20 and fleet.sink.counters.duplicates == 0


def test_a_second_start_takes_the_stage_over(fleet: Fleet) -> None:
    stages = fleet.stages()
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(15)
    first = fleet.statuses["stage-1"].instance
    second = fleet.stage(1)
    assert stages[1].wait() == 3
    assert "stage 1: another process has taken over this stage; ending" in stages[1].output
    all_well(fleet, sensors)
    assert second.process.poll() is None and fleet.statuses["stage-1"].instance != first
    assert fleet.state("stage-1") is State.READY and "another process" not in second.output
    assert second.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_a_stage_cleanly(fleet: Fleet, number: int) -> None:
    stage = fleet.stage(1)
    fleet.until_ready("stage-1")
    assert stage.end(number) == 0
    late = fleet.open(Session(f"{fleet.name}-late"))  # who comes later reads it too: it is retained
    late.subscribe([fleet.topics.status("stage-1")])
    came: list[bytes] = []
    fleet.until(lambda: came.extend(one.payload for one in late.poll(0.05)) or came, "no retained status")
    assert b'"state":"stopped"' in came[0]
    late.close()
    assert "Traceback" not in stage.output


def test_garbage_among_the_data_is_counted_and_harms_nothing(fleet: Fleet) -> None:
    stages = fleet.stages()
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(10)
    rogue = fleet.open(Session(f"{fleet.name}-rogue"))
    epoch = fleet.pipeline.config.epoch
    window, activation = fleet.topics.window("subject1", "chest"), fleet.topics.activation(epoch, 0, "subject1")
    good = wire.encode(wire.Message("subject1", 7, epoch + 1, (1.0,), {}))
    for payload in (b"", b"garbage", b"\x97\x09" + good[2:], good, good[:-1], bytes(2_000_000)):
        rogue.publish(window, payload)
        rogue.publish(activation, payload)
    rogue.publish(window, bytes(16 * 1024 * 1024 - 100))  # larger than a stage takes with its topic
    fleet.until(lambda: rogue.poll(0.02) or rogue.unsent == 0, "the rogue could not send")
    rogue.close()
    all_well(fleet, sensors)
    assert [stage.end() for stage in stages] == [0, 0, 0]
    fleet.until(lambda: fleet.state("stage-0") is State.STOPPED, "no farewell")
    assert fleet.counter("stage-0", "rejected") >= 6
    said = stages[0].output
    # Texts that differ in numbers only are one kind, so which length is named depends on what came first.
    assert re.search(rf"dropped {window}: \d+ bytes came that start no MessagePack array", said)
    assert f"epoch {epoch + 1} came; expected {epoch}; restart the node with the older plan" in said
    assert "expected version 1 with 7 fields" in said


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_data_that_finds_no_stage_waits_for_it(fleet: Fleet, order: tuple[int, ...]) -> None:
    """Also where several stages take the same activations, and some are late: the broker cannot tell that."""
    sensors = fleet.sensors("--subjects", "1,2", "--windows", "40", "--speed", "max", "--in-flight", "8")
    fleet.until(lambda: all("nobody listens to" in one.output for one in sensors), "no sensor says that nobody listens")
    assert f"nobody listens to {fleet.topics.window('subject1', 'chest')}; keeping the message" in sensors[0].output
    assert "start the stages: `har-edge stage`" in sensors[0].output
    for index in order:
        stage = fleet.stage(index)
        if index != order[-1]:
            fleet.until(lambda one=stage: "connected" in one.output or "waiting for" in one.output, "it says nothing")  # type: ignore[misc]
    all_well(fleet, sensors)
    if order[0] == 0:
        assert "waiting for stage-1, stage-2, which must listen before this node sends" in fleet.running[3].output


@pytest.mark.slow
@pytest.mark.parametrize("client", ["paho", "native"])
def test_a_broker_that_restarts_loses_nothing(slices: Path, tmp_path: Path, own_broker: Mosquitto, client: str) -> None:
    if client == "native":
        pytest.importorskip("mqtt5")
    port, directory = own_broker.address.port, Path(own_broker.process.args[2]).parent  # type: ignore[index]
    config = find_folder("brokers") / "mosquitto.conf"
    with Fleet(slices, tmp_path, own_broker.address) as fleet:
        fleet.stages("--client", client)
        sensors = fleet.sensors(*LOAD, "--client", client)
        fleet.until_results(15)
        own_broker.stop()
        with start_mosquitto(config, directory, port=port):
            all_well(fleet, sensors)
            fleet.until_ready("stage-0", "stage-1", "stage-2")
            assert [fleet.counter(f"stage-{i}", "reconnects") for i in range(3)] == [1, 1, 1]


def test_a_stage_that_waits_for_others_stops_when_asked(fleet: Fleet) -> None:
    stage = fleet.stage(0)
    fleet.until(lambda: "waiting for stage-1, stage-2" in stage.output, "it does not say that it waits")
    assert stage.end() == 0 and "Traceback" not in stage.output


REFUSALS = {
    "unreachable": (["--broker", "mqtt://127.0.0.1:1"], "error: no broker at mqtt://127.0.0.1:1: "),
    "address": (["--broker", "http://x"], "error: broker is 'http://x'; expected mqtt://HOST[:PORT] or mqtts://HOST"),
    "index": (["--index", "3"], "error: stage 3 came; expected 0 to 2, for 3 slices"),
    "turn": (["--index", "2", "--turn", "0"], "error: --turn came for slice 2, which takes more than one message for"),
    "config": (["--config", "nowhere.toml"], "error: cannot read nowhere.toml: No such file or directory; make it"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_ends_with_code_2_and_says_why(
    slices: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    options, text = REFUSALS[case]
    assert main(["stage", "--index", "0", "--config", str(slices), *options]) == 2
    assert capsys.readouterr().err.startswith(text)


def test_a_changed_slice_is_refused(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in slices.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    slice_file = tmp_path / "slice-1.tflite"
    slice_file.write_bytes(slice_file.read_bytes()[:-1] + b"!")
    assert main(["stage", "--index", "1", "--config", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: slice {slice_file} has sha256 ") and "the file was changed" in error


def test_an_unknown_key_is_refused(slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in slices.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "pipeline.toml"
    file.write_text("colour = 3\n" + file.read_text())
    assert main(["stage", "--index", "1", "--config", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: unknown key `colour` in the top of the file; expected task, name, base, epoch, slices, "
        "max_payload_bytes, session_expiry_s, broker, join, delegate or flows; "
        "see docs/reference/pipeline-file.md for every key\n"
    )


def test_a_stage_of_another_model_under_the_same_name_is_refused_with_both_names(fleet: Fleet, tmp_path: Path) -> None:
    """The other model lives; once it has stopped, the name is free. A re-cut of the same model is no other model."""
    stages = fleet.stages()
    other, recut = tmp_path / "other", tmp_path / "recut"
    for folder, model, cuts in ((other, "float", [4]), (recut, "int8", [9])):
        found = find_model(model)
        assert found.entry is not None
        prepare(found.path, found.entry.task, folder, stages=2, cuts=cuts, name=fleet.name)
    refused = fleet.start("stage", "--index", "0", "--config", str(other))
    assert refused.wait() == 2
    said = " ".join(refused.output.split())
    assert f"error: pipeline '{fleet.name}' runs har-int8.tflite (sha256 " in said
    assert ", by stage-" in said and "but this folder is for har-float.tflite (sha256 " in said
    assert "mhealth: 250 samples at 50 Hz of chest, ankle, arm, 12 classes" in said
    assert "`har-edge slice --name NAME`" in said
    assert all(stage.process.poll() is None for stage in stages)
    taken = fleet.start("stage", "--index", "0", "--config", str(recut))
    assert stages[0].wait() == 3
    assert [running.end() for running in (taken, *stages[1:])] == [0, 0, 0]
    fleet.until(lambda: all(fleet.state(f"stage-{i}") is State.STOPPED for i in range(3)), "no farewell")
    allowed = fleet.start("stage", "--index", "0", "--config", str(other))
    fleet.until(lambda: "stage 0 connected" in allowed.output, "it is refused although nobody else is there")
    assert allowed.end() == 0


def test_a_status_says_what_a_stage_runs(fleet: Fleet) -> None:
    fleet.stage(1)
    fleet.until_ready("stage-1")
    status, manifest = fleet.statuses["stage-1"], fleet.pipeline.manifest
    card = status.slice
    assert card is not None and status.epoch == fleet.pipeline.config.epoch
    assert (card.index, card.count, card.start, card.stop) == (1, 3, 4, 9)
    assert (card.model, card.model_sha256) == ("har-int8.tflite", manifest.model_sha256)
