"""`har-edge status`: on a broker where a test says what coordinator and nodes would, and real stages answer."""

from __future__ import annotations

import re
import time

import msgspec
import pytest

from har_edge.monitor.snapshot import Snapshot
from har_edge.protocol.status import StagePhase
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import RunState, TrainingProgress, encode_progress
from tests.cli.deployed import NODES, Stand
from tests.cli.fleet import Fleet
from tests.runtime.deployed import report


@pytest.fixture
def stand(fleet: Fleet) -> Stand:
    return Stand(fleet)


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_ready_when_a_window_goes_through(stand: Stand) -> None:
    stand.fleet.stages()
    stand.everything()
    table = stand.run("status", COLUMNS="80")
    assert table.wait() == 0, table.output
    assert re.search(r"ready: a probe window went through in \d", table.output), table.output
    assert max(map(len, table.output.splitlines())) <= 80
    for node in NODES:
        assert re.search(rf"{node} +node +running", table.output), table.output
    lines = stand.run("status", "--json")
    assert lines.wait() == 0, lines.output
    seen = msgspec.json.decode(lines.output, type=Snapshot)
    assert seen.ready and seen.probe is not None and seen.probe.seconds is not None and 0 < seen.probe.seconds < 5
    assert (seen.epoch, seen.revision, seen.pipeline) == (stand.epoch, 3, stand.fleet.name)
    assert [(one.stage, one.node, one.phase) for one in seen.stages] == [
        (k, f"pi-{k + 1}", "running") for k in range(3)
    ]
    assert seen.flow.results == 0, "the probe is nobody's result"


def test_not_ready_without_a_plan(stand: Stand) -> None:
    ended = stand.run("status")
    assert ended.wait() == 1
    assert "not ready: there is no plan: start `har-edge coordinator`" in flat(ended.output)


@pytest.mark.parametrize("options", [(), ("--no-probe",)])
@pytest.mark.parametrize(
    ("state", "age_s", "code", "text"),
    [
        (RunState.RUNNING, 0.0, 0, "no pipeline is deployed; training goes on: walks"),
        (RunState.WAITING, 0.0, 0, "no pipeline is deployed; training goes on: walks"),
        (RunState.RUNNING, 60.0, 1, "there is no plan: start `har-edge coordinator`"),
        (RunState.FINISHED, 0.0, 1, "there is no plan: start `har-edge coordinator`"),
    ],
)
def test_a_training_that_goes_on_needs_no_plan(
    stand: Stand, state: RunState, age_s: float, code: int, text: str, options: tuple[str, ...]
) -> None:
    progress = TrainingProgress(
        run="walks",
        author="one",
        time=time.time() - age_s,
        state=state,
        mode="sync",
        round=1,
        epoch=1,
        epochs=2,
    )
    alone = f"{stand.fleet.name}-alone"
    stand.say(Topics("har", alone).training("walks", "progress"), encode_progress(progress))
    ended = stand.run("status", "--pipeline", alone, *options)
    assert ended.wait() == code, ended.output
    assert text in flat(ended.output)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (report(1, StagePhase.FETCHING, detail="3 of 9 chunks"), "stage 1 on pi-2 is fetching: 3 of 9 chunks"),
        (None, "stage 1 on pi-2: the node does not speak of it"),
    ],
)
def test_not_ready_names_the_stage_that_does_not_run(stand: Stand, said: object, text: str) -> None:
    stand.everything()
    stand.reports["pi-2"] = [] if said is None else [msgspec.structs.replace(said, epoch=stand.epoch)]  # type: ignore[type-var]
    ended = stand.run("status", "--timeout", "2")
    assert ended.wait() == 1 and f"not ready: {text}" in flat(ended.output), ended.output


def test_not_ready_when_a_node_does_not_beat(stand: Stand) -> None:
    stand.everything()
    del stand.reports["pi-3"]
    stand.nodes = ("pi-1", "pi-2")
    ended = stand.run("status", "--timeout", "3")
    assert ended.wait() == 1 and "stage 2 on pi-3: that node does not answer" in flat(ended.output), ended.output
    assert re.search(r"pi-3 +node +silent", ended.output), ended.output


def test_not_ready_says_where_the_probe_got_stuck(stand: Stand) -> None:
    """Stage 2 says that it runs, but nobody does; stages 0 and 1 say how many windows they had before and after."""
    stand.everything()
    stand.counting = 2
    ended = stand.run("status", "--timeout", "2")
    assert ended.wait() == 1
    assert "no stage listens to" in flat(ended.output), ended.output
    stand.fleet.bus.subscribe([stand.fleet.topics.window("+", source) for source in stand.fleet.pipeline.task.inputs])
    ended = stand.run("status", "--timeout", "2")
    text = (
        "stage 1 on pi-2 was the last to handle a window; stage 2 on pi-3 handled none since: 0 messages in its queue"
    )
    assert ended.wait() == 1 and text in flat(ended.output), ended.output


def test_no_probe_is_not_called_ready(stand: Stand) -> None:
    stand.everything()
    ended = stand.run("status", "--no-probe", "--json")
    seen = msgspec.json.decode(ended.output, type=Snapshot)
    assert ended.wait() == 0 and not seen.ready and seen.probe is None and len(seen.nodes) == 4
    assert seen.obstacle == ""


def test_no_probe_fails_where_something_stands_in_the_way(stand: Stand) -> None:
    ended = stand.run("status", "--no-probe")
    assert ended.wait() == 1 and "not probed; there is no plan: start `har-edge coordinator`" in flat(ended.output)
    stand.everything()
    stand.nodes = ("pi-1", "pi-2")
    ended = stand.run("status", "--no-probe", "--json")
    seen = msgspec.json.decode(ended.output, type=Snapshot)
    assert ended.wait() == 1 and seen.obstacle == "stage 2 on pi-3: that node does not answer"
    stand.nodes = NODES
    ended = stand.run("status", "--no-probe")
    assert ended.wait() == 0 and "not probed; nothing that was seen stands in the way of windows" in flat(ended.output)


def test_files_that_do_not_come_are_named(stand: Stand) -> None:
    stand.plan(files={"encoder.tflite": "0" * 64})
    stand.statuses()
    ended = stand.run("status", "--timeout", "2")
    assert ended.wait() == 1 and f"no probe could be made: {'0' * 64} did not come" in flat(ended.output), ended.output


def test_what_the_network_says_cannot_move_the_cursor(stand: Stand) -> None:
    stand.everything()
    stand.reports["pi-1"] = [report(0, StagePhase.FAILED, epoch=stand.epoch, detail="\x1b[2Jgone [bold]x")]
    ended = stand.run("status", "--no-probe", COLUMNS="120")
    assert r"\x1b[2Jgone [bold]x" in ended.output and "\x1b[2J" not in ended.output


def test_live_goes_on_until_it_is_stopped(stand: Stand) -> None:
    stand.everything()
    running = stand.start("status", "--live", "--json", "--no-probe")
    stand.fleet.until(lambda: stand.beat() or running.output.count("\n") >= 2, "no two lines")
    running.end()
    seen = [msgspec.json.decode(line, type=Snapshot) for line in running.output.splitlines() if line.startswith("{")]
    assert len(seen) >= 2 and seen[1].time > seen[0].time
