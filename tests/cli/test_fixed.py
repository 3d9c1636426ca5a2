"""`har-edge status --config` and `har-edge doctor --config`: slices that stages run, without a coordinator."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from har_edge.cli.main import main
from har_edge.cli.reports.status import draw
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.monitor.fixed_pipeline import FixedObserver
from har_edge.monitor.observer import Observer
from har_edge.monitor.probe_trace import last_holder
from har_edge.monitor.snapshot import ProbeView, Snapshot
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.status import NodeStatus, SliceInfo, State, StreamCount, encode_status
from har_edge.runtime.build import topics_of
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.neighbours import card_of
from har_edge.timing import STAGE_SILENT_S
from tests.cli.deployed import Stand
from tests.cli.fleet import Fleet
from tests.cli.test_eighty_columns import fits, lines_of
from tests.runtime.deployed import TOPICS, Said, deployment, generation, report

NOW = 100.0


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def json_of(fleet: Fleet, *options: str, code: int) -> Snapshot:
    ended = fleet.start("status", "--json", *options)
    assert ended.wait() == code, ended.output
    return msgspec.json.decode(ended.output, type=Snapshot)


def test_ready_when_all_stages_of_the_folder_let_a_window_through(fleet: Fleet) -> None:
    fleet.stages()
    seen = json_of(fleet, code=0)
    assert seen.ready and seen.probe is not None and seen.probe.seconds is not None and seen.probe.seconds > 0
    assert (seen.plan, seen.epoch, seen.model) == ("fixed", fleet.pipeline.config.epoch, "har-int8.tflite")
    assert [(one.stage, one.node, one.phase) for one in seen.stages] == [(k, f"stage-{k}", "running") for k in range(3)]
    table = fleet.start("status", COLUMNS="80")
    assert table.wait() == 0
    assert "fixed slices" in table.output and "ready: a probe window went through in" in table.output
    assert max(map(len, table.output.splitlines())) <= 80


def test_not_ready_names_the_stage_that_is_missing_and_how_to_start_it(fleet: Fleet) -> None:
    fleet.stage(2)
    fleet.until_ready("stage-2")
    seen = json_of(fleet, code=1)
    assert seen.probe is not None and not seen.ready
    start = f"har-edge stage --config {fleet.slices} --index 0"
    assert seen.probe.where == f"stage 0: it was never seen; start it with: {start}"
    assert [one.phase for one in seen.stages] == ["unreported", "unreported", "running"]


def test_a_stage_that_hangs_is_named_and_counters_have_an_age(fleet: Fleet) -> None:
    """Stage 1 stops without a word: its status says ready for as long as the broker waits for its keep-alive."""
    stages = fleet.stages()
    stages[1].process.send_signal(signal.SIGSTOP)
    try:
        seen = json_of(fleet, "--timeout", "2", code=1)
        assert seen.probe is not None and seen.probe.where == (
            "no answer came in 2.00 s: stage 0 sent it on; stage 1 had it last, and said nothing of itself for "
            "6.50 s: it hangs, or computes for long"
        ), seen.probe
        assert [one.phase for one in seen.stages] == ["running", "silent", "running"]
        assert [one.age_s is not None and one.age_s < 6.0 for one in seen.stages] == [True, False, True]
        assert seen.stages[1].age_s is None and seen.stages[1].listened_s > 6.5
        report = doctor(fleet, 1, "--timeout", "2")
        assert report["first"]["said"] == "stages", report
        assert re.fullmatch(
            r"stage 1: it said nothing of itself for \d.\d\d s: it hangs, or computes for long",
            report["stages"]["said"],
        ), report["stages"]
        start = f"har-edge stage --config {fleet.slices} --index 1"
        assert report["stages"]["mend"] == f"end it if it hangs, then `{start}` on its device"
    finally:
        stages[1].process.send_signal(signal.SIGCONT)
    assert json_of(fleet, code=0).ready


def test_stages_of_a_folder_are_named_to_who_looks_for_a_coordinator(fleet: Fleet) -> None:
    fleet.stages()
    said = "stages of a fixed folder live here (stage-0, stage-1, stage-2): say --config FOLDER"
    seen = Stand(fleet).run("status")
    assert seen.wait() == 1 and f"not ready: {said}" in flat(seen.output), seen.output
    looked = Stand(fleet).run("doctor", "--json", "--timeout", "1")
    assert looked.wait() == 1
    report = msgspec.json.decode(looked.output.splitlines()[-1])
    told = {one["check"]: one for one in report["findings"]}
    assert report["first_wrong"] == "coordinator" and told["coordinator"]["said"] == told["plan"]["said"] == said
    assert told["coordinator"]["mend"] == (
        "`har-edge doctor --config FOLDER`, with the folder that `har-edge slice` made"
    )


@pytest.mark.parametrize("command", ["watch", "sensor"])
def test_both_ways_to_name_a_pipeline_are_said_where_none_was_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command]) == 2
    said = flat(capsys.readouterr().err)
    assert "no pipeline.toml is in this folder; say --config FOLDER" in said and "or --pipeline NAME for what" in said


def test_the_age_of_counters_is_shown_and_none_are_shown_of_a_stage_that_is_missing(fleet: Fleet) -> None:
    fleet.stage(2)
    fleet.until_ready("stage-2")
    table = fleet.start("status", "--no-probe", COLUMNS="80")
    assert table.wait() == 1 and "not probed; stage 0: it was never seen\n" in table.output, table.output
    rows = [line.split() for line in table.output.splitlines() if re.match(r" +\d +\[", line)]
    assert rows[0][3:] == ["unreported", "-", "-", "-", "-"]
    assert rows[2][3:7] == ["running", "0", "0", "0"] and re.fullmatch(r"(> )?[\d.]+ m?s", " ".join(rows[2][7:])), rows


def test_a_stage_that_stopped_and_one_of_another_cut_are_told_apart(fleet: Fleet, tmp_path: Path) -> None:
    stages = fleet.stages()
    found = find_model("int8")
    assert found.entry is not None
    prepare(found.path, found.entry.task, tmp_path / "recut", stages=3, cuts=[4, 7], name=fleet.name)
    other = fleet.start("stage", "--index", "1", "--config", str(tmp_path / "recut"))
    assert stages[1].wait() == 3
    fleet.until_ready("stage-1")
    seen = json_of(fleet, code=1)
    assert seen.probe is not None and "stage 1: it runs operators [4, 7) of 3 slices, this folder has [4, 9) of 3" in (
        seen.probe.where
    )
    assert other.end() == 0
    fleet.until(lambda: fleet.state("stage-1") is State.STOPPED, "no farewell")
    seen = json_of(fleet, code=1)
    assert seen.stages[1].phase == "stopped" and "start it with" in seen.stages[1].detail


def doctor(fleet: Fleet, code: int, *options: str) -> dict[str, dict[str, str]]:
    ended = fleet.start("doctor", "--json", *options)
    assert ended.wait() == code, ended.output
    report = msgspec.json.decode(ended.output.splitlines()[-1])
    return {one["check"]: one for one in report["findings"]} | {"first": {"said": report["first_wrong"] or ""}}


def test_the_doctor_finds_nothing_wrong_with_a_pipeline_that_runs(fleet: Fleet) -> None:
    fleet.stages()
    sensor = fleet.start("sensor", "--subjects", "1", "--speed", "5")
    fleet.until_results(3)
    seen = doctor(fleet, 0)
    for name in ("broker", "folder", "stages", "sensors", "losses", "flow"):
        assert seen[name]["verdict"] == "ok", seen[name]
    assert "3 slices of har-int8.tflite" in seen["folder"]["said"] and "sensor-all-subject1" in seen["sensors"]["said"]
    assert "coordinator" not in seen and "plan" not in seen
    assert sensor.end() == 143


def test_the_doctor_names_what_is_wrong_first_and_its_mend(fleet: Fleet, tmp_path: Path) -> None:
    fleet.stage(2)
    fleet.until_ready("stage-2")
    seen = doctor(fleet, 1)
    assert seen["first"]["said"] == "stages" and seen["flow"]["verdict"] == "not reached"
    assert seen["stages"]["said"] == "stage 0: it was never seen"
    assert seen["stages"]["mend"] == f"`har-edge stage --config {fleet.slices} --index 0` on its device"
    damaged = tmp_path / "damaged"
    shutil.copytree(fleet.slices, damaged)
    (damaged / "slice-2.tflite").write_bytes(b"no model")
    seen = doctor(fleet, 1, "--config", str(damaged))
    assert (
        seen["first"]["said"] == "folder" and "slice-2.tflite is not what manifest.json says" in seen["folder"]["said"]
    )
    (damaged / "slice-2.tflite").unlink()
    os.mkfifo(damaged / "slice-2.tflite")  # nobody writes to it: whoever opens it as a file waits for ever
    assert "cannot read" in doctor(fleet, 1, "--config", str(damaged))["folder"]["said"]


def test_what_a_stopped_sensor_lost_is_said_until_it_is_cleared(fleet: Fleet, tmp_path: Path) -> None:
    stages = fleet.stages()
    gone = NodeStatus("sensor-a", "sensor", State.STOPPED, "i", 1.0, streams={"anna": StreamCount(1, 2.0, 20, 15, 3)})
    old = NodeStatus("stage-7", "stage", State.LOST, "i", 1.0)
    for status in (gone, old):
        fleet.bus.publish(fleet.topics.status(status.node), encode_status(status), retain=True)
    fleet.until(lambda: fleet.state("stage-7") is State.LOST, "not published")
    seen = doctor(fleet, 0)
    command = f"har-edge doctor --clear --config {fleet.slices} --broker {fleet.address.url}"
    assert seen["losses"]["verdict"] == "note" and command in seen["losses"]["mend"]
    assert seen["losses"]["said"] == "windows were lost by sensors that have gone: 5 of 20 of anna by sensor-a"
    assert seen["leftovers"]["verdict"] == "note" and "stage-7" in seen["leftovers"]["said"]
    assert stages[2].end() == 0
    fleet.until(lambda: fleet.state("stage-2") is State.STOPPED, "no farewell")
    cleared = fleet.start("doctor", "--clear")
    assert cleared.wait() == 0
    assert cleared.output.splitlines() == [
        "sensor-a: session ended, status removed", "stage-7: session ended, status removed",
    ]  # fmt: skip
    fleet.stage(2)
    fleet.until_ready("stage-2")
    seen = doctor(fleet, 0)
    assert seen["losses"]["verdict"] == seen["leftovers"]["verdict"] == "ok"
    again = fleet.start("doctor", "--clear")
    assert again.wait() == 0 and again.output == f"nothing is left over of pipeline {fleet.name}\n"


def test_stages_that_reject_every_message_are_named(fleet: Fleet) -> None:
    fleet.stages()
    for _ in range(5):
        fleet.bus.publish(fleet.topics.window("anna", "chest"), b"no window")
    fleet.until(lambda: fleet.counter("stage-0", "rejected") == 5, "it does not say that it rejected them")
    seen = doctor(fleet, 1)
    assert seen["first"]["said"] == "losses" and seen["flow"]["verdict"] == "ok"
    assert seen["losses"]["said"] == "messages could not be used since these started: 5 by stage-0"


# --- without processes --------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(slices: Path) -> Pipeline:
    return load_pipeline(slices)


def observed(pipeline: Pipeline, *statuses: NodeStatus) -> FixedObserver:
    seen = FixedObserver(pipeline, NOW)
    prefix = f"{pipeline.config.base}/v1/{pipeline.config.name}/node/"
    for status in statuses:
        seen.handle(Delivery(f"{prefix}{status.node}/status", encode_status(status), (0, 0)), NOW, NOW)
    return seen


def stage(pipeline: Pipeline, index: int, card: SliceInfo | None, **counters: int) -> NodeStatus:
    epoch = pipeline.config.epoch
    return NodeStatus(f"stage-{index}", "stage", State.READY, "i", 1.0, counters=counters, epoch=epoch, slice=card)


def test_another_model_is_named_and_an_older_stage_passes(pipeline: Pipeline) -> None:
    other = msgspec.structs.replace(card_of(pipeline, 1), model="b.tflite", model_sha256="b" * 64)
    seen = observed(pipeline, stage(pipeline, 0, None), stage(pipeline, 1, other))
    assert seen.problem(0, NOW) == ("running", "")
    phase, problem = seen.problem(1, NOW)
    assert phase == "other model" and problem.startswith(
        "it runs a slice of b.tflite (sha256 bbbbbbbbbbb…), not of har-"
    )


def test_a_stage_that_a_parity_stands_for_keeps_no_window_back_and_is_named(tmp_path: Path) -> None:
    found = find_model("int8")
    assert found.entry is not None
    split = "whole:0-10 parity:10-15@2 parity:15-16@2 whole:16-17=0,0,1"
    prepare(found.path, found.entry.task, tmp_path / "parity", stages=1, split=split)
    pipeline = load_pipeline(tmp_path / "parity")
    stages = [stage(pipeline, index, card_of(pipeline, index)) for index in range(4)]
    assert (observed(pipeline, *stages).stalled(NOW), observed(pipeline, *stages).spared(NOW)) == ("", "")
    for away, keeps_back in (({1}, ""), ({2}, ""), ({0}, "stage 0: it is lost"), ({3}, "stage 3: it is lost")):
        said = [msgspec.structs.replace(one, state=State.LOST) if k in away else one for k, one in enumerate(stages)]
        seen = observed(pipeline, *said)
        assert seen.stalled(NOW).startswith(keeps_back) and bool(seen.stalled(NOW)) == bool(keeps_back)
        spared = "" if keeps_back else f"a parity stands for stage {min(away)}: it is lost; start it with: "
        assert seen.spared(NOW).startswith(spared) and bool(seen.spared(NOW)) == bool(spared)
    seen = observed(pipeline, *(stages[k] for k in (0, 3)))
    assert seen.spared(NOW) == ""
    assert seen.stalled(NOW).startswith("stage 1, like 2, and a parity stands for one alone: it was never seen; start")
    seen = observed(pipeline, *(stages[k] for k in (0, 1, 3)))
    view = ProbeView(True, 0.004, 1, seen.spared(NOW))
    text = lines_of(draw(seen.snapshot(NOW, NOW, view), 80))
    assert flat("\n".join(text)).count("a parity stands for stage 2: it was never seen") == 1
    fits("\n".join(text))


def test_a_stage_that_takes_turns_and_is_away_is_named_with_the_command_that_starts_it(pipeline: Pipeline) -> None:
    names = {"stage-0-1": State.READY, "stage-1-2": State.LOST, "stage-2-1": State.STOPPED, "stage-3-1": State.LOST}
    seen = observed(pipeline, *(NodeStatus(name, "stage", state, "i", 1.0) for name, state in names.items()))
    (lost, command), (stopped, _) = seen.away_turns()
    assert lost.startswith("stage-1-2 takes turns at slice 1 and is lost: windows that the broker gives to it wait")
    assert command == f"har-edge stage --config {pipeline.folder} --index 1 --turn 2"
    assert stopped.startswith("stage-2-1 takes turns at slice 2 and is stopped")


def test_stages_that_compute_in_different_ways_are_named_where_bits_may_differ(tmp_path: Path) -> None:
    found = find_model("float")
    assert found.entry is not None
    prepare(found.path, found.entry.task, tmp_path / "float", stages=2, cuts=[4])
    pipeline = load_pipeline(tmp_path / "float")
    cards = [card_of(pipeline, 0, "xnnpack"), card_of(pipeline, 1, "none")]
    seen = observed(pipeline, *(stage(pipeline, index, card) for index, card in enumerate(cards)))
    snapshot = seen.snapshot(NOW, NOW)
    assert "computes in float32" in snapshot.disagreement and "delegate none" in snapshot.disagreement
    fits("\n".join(lines_of(draw(snapshot, 80))))
    same = observed(pipeline, *(stage(pipeline, index, card_of(pipeline, index, "none")) for index in range(2)))
    assert same.snapshot(NOW, NOW).disagreement == ""


def test_losses_of_stages_and_of_each_stream_are_shown_and_nothing_is_cut(pipeline: Pipeline) -> None:
    streams = {f"person-in-the-living-room-{number}": StreamCount(1, 2.0, 1000, 990, number) for number in range(3)}
    sensor = NodeStatus("sensor-all-person-in-the-living-room", "sensor", State.READY, "i", 1.0, streams=streams)
    stages = [stage(pipeline, index, card_of(pipeline, index), windows=123_456, given_up=7) for index in range(3)]
    seen = observed(pipeline, sensor, *stages).snapshot(NOW, NOW, ProbeView(False, None, 1, "no answer " * 20))
    assert [(one.stream, one.sent, one.answered, one.lost, one.open) for one in seen.sent] == [
        ("person-in-the-living-room-0", 1000, 990, 0, 10),
        ("person-in-the-living-room-1", 1000, 990, 1, 9),
        ("person-in-the-living-room-2", 1000, 990, 2, 8),
    ]
    assert seen.counts.lost == 21
    text = "\n".join(lines_of(draw(seen, 80)))
    fits(text)
    assert text.split().count("123456") == 3 and text.split().count("1000") == 3
    assert "person-in-the-living-room-2 by" in text


CHAIN = {0: (), 1: (0,), 2: (1,)}


@pytest.mark.parametrize(
    ("seen", "earlier", "silent", "said"),
    [
        ({0}, CHAIN, {1}, "stage 0 sent it on; stage 1 had it last, and said nothing of itself for 6 s: it hangs, or "
         "computes for long"),
        ({0, 1}, CHAIN, (), "stages 0, 1 sent it on; stage 2 had it last"),
        ((), CHAIN, {0}, "stage 0 had it last, and said nothing of itself for 6 s: it hangs, or computes for long"),
        ((), CHAIN, (), "nothing was seen of it behind stage 0: it holds the window, or this user may not read what "
         "stages send (act/#)"),
        ({0}, {0: (), 1: (), 2: (0, 1)}, (), "stage 0 sent it on; stage 1 had it last"),
        ((), {0: (), 1: (), 2: (0, 1)}, {1}, "stage 1 had it last, and said nothing of itself for 6 s: it hangs, or "
         "computes for long"),
    ],
)  # fmt: skip
def test_the_stage_that_holds_a_probe(
    seen: set[int], earlier: dict[int, tuple[int, ...]], silent: set[int], said: str
) -> None:
    assert last_holder(seen, earlier, silent, "6 s") == said


def test_a_stage_is_silent_only_after_it_has_had_the_time_to_speak(pipeline: Pipeline) -> None:
    seen = FixedObserver(pipeline, NOW)
    topics = topics_of(pipeline)
    for index in range(3):
        said = encode_status(stage(pipeline, index, card_of(pipeline, index)))
        # Of stage 1 comes what the broker retains alone: twice, as two subscriptions cover it.
        for stored, at in ((True, NOW), (index == 1, NOW + 1.0)):
            seen.handle(Delivery(topics.status(f"stage-{index}"), said, (0, 0), retained=stored), at, at)
    assert seen.silent(NOW + STAGE_SILENT_S) == set() and not seen.all_heard()
    assert seen.silent(NOW + STAGE_SILENT_S + 0.5) == {1} and not seen.is_alive("stage-1", NOW + STAGE_SILENT_S + 0.5)
    assert (seen.age(0, NOW + 3.0), seen.age(1, NOW + 3.0)) == (2.0, None)
    assert seen.problem(1, NOW + STAGE_SILENT_S + 0.5)[0] == "silent"
    assert seen.silent(NOW + STAGE_SILENT_S + 1.5) == {0, 1, 2}


@pytest.mark.parametrize("columns", [80, 200])
def test_the_command_that_starts_a_stage_stands_once_on_lines_of_its_own(pipeline: Pipeline, columns: int) -> None:
    # A path that is longer than a line is broken all the same.
    pipeline = dataclasses.replace(pipeline, folder=Path("/home/pi/a-folder-of-some-length/slices"))
    seen = observed(pipeline)
    where = seen.stalled(NOW)
    for probe, obstacle in ((ProbeView(False, None, 0, where), ""), (None, where)):
        snapshot = msgspec.structs.replace(seen.snapshot(NOW, NOW, probe), obstacle=obstacle)
        console = Console(width=columns, file=io.StringIO(), color_system=None)
        console.print(draw(snapshot, columns))
        assert isinstance(console.file, io.StringIO)
        text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
        assert ": stage 0: it was never seen\n" in text or "; stage 0: it was never seen\n" in text
        joined = text.replace(" \\\n    ", " ").splitlines()
        for index in range(3):
            start = f"    har-edge stage --config {pipeline.folder} --index {index}"
            assert joined.count(start) == 1 and "\n".join(joined).count(start.strip()) == 1


def test_names_are_whole_and_columns_that_nobody_fills_left_out(pipeline: Pipeline) -> None:
    names = ["sensor-all-subject7", "sensor-all-subject7-in-the-kitchen-upstairs", "sensor-ankle-subject7"]
    seen = observed(pipeline, *(NodeStatus(name, "sensor", State.READY, "i", 1.0) for name in names))
    lines = lines_of(draw(seen.snapshot(NOW, NOW), 80))
    assert [line.split() for line in lines if line.startswith(("node", "sensor"))] == [
        ["node", "role", "state"], *([name, "sensor", "ready"] for name in names)
    ]  # fmt: skip
    fits("\n".join(lines))


def test_a_name_that_is_too_long_goes_on_in_the_next_line() -> None:
    names = [f"raspberry-pi-in-the-living-room-of-the-people-on-the-second-floor-{number}" for number in range(3)]
    said, observer = Said(), Observer(TOPICS, NOW)
    heard = [said.plan(deployment(generation(*names)))]
    for number, name in enumerate(names):
        heard += [said.status(name, state=State.BUSY), said.beat(name, NOW, report(number, windows=9))]
    for delivery in heard:
        observer.handle(delivery, NOW, NOW)
    lines = lines_of(draw(observer.snapshot(NOW + 0.1, NOW), 80))
    fits("\n".join(lines))
    assert not any("…" in line for line in lines)
    nodes, _, stages = "\n".join(lines).partition("epoch 1000, current")
    for name in names:
        assert name in "".join(re.findall(r"^(\S+)", nodes, re.M))
    assert [row.split()[3] for row in stages.splitlines() if re.match(r" +\d \d-\d", row)] == ["running"] * 3
