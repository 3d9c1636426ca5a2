"""`har-edge sensor --live` as processes on Mosquitto: pipes, files and FIFOs, and what is refused."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from har_edge.cli.live_sensor import REPLAY
from har_edge.cli.main import build_parser, main
from har_edge.data.synthetic import synthesize
from har_edge.protocol.status import State
from tests.cli.fleet import Fleet

RATE, LENGTH, HOP = 50.0, 250, 125
SOURCES = {"chest": slice(0, 5), "ankle": slice(5, 14), "arm": slice(14, 23)}
BEGIN = 1_700_000_000.0


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Return float32 [n, 23]: 60 s of one activity after the other."""
    recording = synthesize(["subject1"], seconds_per_activity=5.0)[0]
    return np.concatenate(list(recording.samples.values()), axis=1)


def write(path: Path, values: np.ndarray, first: int = 0, begin: float = BEGIN) -> Path:
    """Write rows from `first` on as a device would say them, with time stamps."""
    rows = (
        "\t".join([f"{begin + row / RATE:.3f}", *map(repr, values[row].tolist())]) for row in range(first, len(values))
    )
    path.write_text("\n".join(rows) + "\n")
    return path


def test_three_devices_started_at_other_times_make_one_stream(fleet: Fleet, tmp_path: Path, table: np.ndarray) -> None:
    fleet.stages()
    sensors = []
    for number, (source, columns) in enumerate(SOURCES.items()):
        path = write(tmp_path / source, table[:, columns], first=number * 100)
        sensors.append(
            fleet.start("sensor", "--source", source, "--live", str(path), "--timestamps", "--stream", "anna")
        )
    first = int(np.ceil((BEGIN * RATE + 200) / HOP))  # the last device begins 4 s after the first
    last = int((BEGIN * RATE + len(table) - LENGTH) // HOP)
    fleet.until_results(last - first + 1)
    assert [sensor.wait() for sensor in sensors] == [0, 0, 0]
    assert {seq for _, seq in fleet.results} == set(range(first, last + 1)) and fleet.doubled == 0
    result = fleet.results["anna", first]
    assert result.captured == pytest.approx(first * HOP / RATE + (LENGTH - 1) / RATE) and result.truth is None
    # What the next ones were late for.
    assert "incomplete 2" in sensors[0].output and "incomplete 1" in sensors[1].output
    assert "unanswered" not in "".join(sensor.output for sensor in sensors)
    assert f"sensor arm done: {last - first + 1} windows in {last - first + 1} messages; lines" in sensors[2].output


def test_live_and_replay_give_the_same_answers(fleet: Fleet, tmp_path: Path, table: np.ndarray) -> None:
    """What a recording says when it is replayed, it says through a pipe, window by window."""
    fleet.stages()
    path = write(tmp_path / "all", table, begin=BEGIN)
    live = fleet.start("sensor", "--live", str(path), "--timestamps", "--stream", "anna")
    (tmp_path / "data").mkdir()
    rows = ("\t".join([*map(repr, values.tolist()), "1"]) for values in table)
    (tmp_path / "data" / "mHealth_subject1.log").write_text("\n".join(rows) + "\n")
    replay = fleet.start("sensor", "--name", "other", "--data", str(tmp_path / "data"), "--speed", "max")
    count = (len(table) - LENGTH) // HOP + 1
    fleet.until_results(2 * count)
    assert live.wait() == replay.wait() == 0
    first = int(BEGIN * RATE / HOP)
    for seq in range(count):
        one, other = fleet.results["anna", first + seq], fleet.results["subject1", seq]
        assert (one.label, one.confidence) == (other.label, other.confidence)


def test_a_fifo_with_faults_goes_on_says_what_it_did_and_ends_on_a_signal(
    fleet: Fleet, tmp_path: Path, table: np.ndarray
) -> None:
    fleet.stages()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sensor = fleet.start("sensor", "--live", str(fifo), "--timestamps", "--stream", "anna", "--name", "device")
    fleet.until_ready("device")
    now = round(time.time() / 2.5) * 2.5
    lines = write(tmp_path / "lines", table, begin=now).read_text().splitlines()
    lines[10] = "hello"
    lines[20] = "\t".join(["nan" if field == lines[20].split("\t")[3] else field for field in lines[20].split("\t")])
    del lines[1000:1010]
    for part in (lines[:500], lines[500:]):  # two writers, one after the other
        with fifo.open("w") as writer:
            writer.write("\n".join(part) + "\n")
        fleet.until(lambda: fleet.counter("device", "lines") >= 500, "the lines were not read")
    assert fleet.state("device") is State.READY
    fleet.until(lambda: fleet.counter("device", "lines") == len(lines), "the lines were not read")
    assert sensor.end(signal.SIGTERM) == 0
    assert fleet.counter("device", "unreadable_lines") == fleet.counter("device", "gaps") == 1
    assert fleet.counter("device", "lost_samples") == 10 and fleet.counter("device", "held_samples") == 2
    assert "dropped a line: 1 column ('hello'), expected 24 with '\\t' between them" in sensor.output
    assert "no finite number came for chest.acc_z; holding the last ones" in sensor.output
    assert "a gap (10 lost): 220 ms and 0 dropped lines between two samples, expected 20.0 ms and none" in sensor.output
    assert "messages; lines 2990, unreadable lines 1, not finite samples 1, gaps 1, " in sensor.output
    # A minute of lines came within a moment, so most of their times are not those of now.
    assert "lost samples 10" in sensor.output and "s ahead of the clock here" in sensor.output


def test_while_nobody_listens_the_oldest_windows_that_wait_are_dropped(
    fleet: Fleet, tmp_path: Path, table: np.ndarray
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sensor = fleet.start("sensor", "--live", str(fifo), "--timestamps", "--stream", "anna", "--queue", "3")
    text = write(tmp_path / "lines", table).read_text()
    with fifo.open("w") as writer:
        writer.write(text)
    fleet.until(lambda: fleet.counter("sensor-all-anna", "dropped_windows") > 0, "nothing was dropped")
    fleet.until(lambda: fleet.counter("sensor-all-anna", "lines") == len(table), "the lines were not read")
    made = (len(table) - LENGTH) // HOP + 1
    fleet.stages()
    fleet.until_results(made - fleet.counter("sensor-all-anna", "dropped_windows"))
    assert sensor.end() == 0 and max(seq for _, seq in fleet.results) == int(BEGIN * RATE / HOP) + made - 1
    assert "dropped the oldest of 3 windows that wait to be sent" in sensor.output
    assert f"dropped windows {made - len(fleet.results)}" in sensor.output.splitlines()[-1]


SPACES = "1 column ('1 2 3 4 5'), expected 5 with '\\t' between them; it has 5 by white space"


@pytest.mark.parametrize(
    ("line", "count", "options", "reason"),
    [
        (
            "1 2 3 4 5",
            300,
            [],
            f"300 lines came, and none is a sample; dropped a line: {SPACES}: set `delimiter` in the",
        ),
        ("{ms}\t1\t2\t3\t4\t5", 300, ["--timestamps"], "which looks like milliseconds; expected seconds since 1970"),
        ("1\t2\t3\t4\t5", 0, [], "no line came; expected one a sample"),
        (
            "1\t2\t3\t4\t5",
            200,
            [],
            "200 lines came, with 200 samples at most without a gap; a window needs 250, and up",
        ),
    ],
    ids=["delimiter", "milliseconds", "empty", "short"],
)
def test_a_device_that_gives_no_window_is_an_error_with_its_reason(
    fleet: Fleet, tmp_path: Path, line: str, count: int, options: list[str], reason: str
) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(line.replace("{ms}", str(1_700_000_000_000 + 20 * row)) + "\n" for row in range(count)))
    sensor = fleet.start("sensor", "--live", str(path), "--source", "chest", *options)
    assert sensor.wait() == 1
    assert "sensor chest ended: 0 windows in 0 messages" in sensor.output and "done" not in sensor.output
    assert "sensor chest: no window was sent: " in sensor.output and reason in sensor.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--live", "/nowhere"], "cannot read /nowhere: No such file or directory; expected a serial device, a FIFO"),
        (["--live", "-", "--speed", "2", "--keep-null"], "--speed, --keep-null came with --live; expected without"),
        (["--live", "-", "--stream", "a/b"], "name of the stream"),
        (["--live", "-", "--source", "leg"], "source 'leg' came; expected one of"),
    ],
)
def test_what_makes_no_sense_is_refused(
    slices: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["sensor", "--config", str(slices), *options]) == 2
    assert said in capsys.readouterr().err


def test_what_is_for_recordings_has_the_usual_values_of_the_command() -> None:
    args: argparse.Namespace = build_parser().parse_args(["sensor"])
    assert {name: getattr(args, name) for name in REPLAY} == REPLAY
