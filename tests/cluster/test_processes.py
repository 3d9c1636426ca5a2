"""Processes by name: one living process a name, ended in every way, with what they wrote."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.cluster.processes import Processes
from har_edge.errors import ConfigError, NodeError

# Says its words, one variable and its folder, and then ends as the last word asks.
SCRIPT = """
import os, pathlib, signal, sys, time
if sys.argv[-1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(sys.argv[1:], os.environ["SAID"], pathlib.Path.cwd(), flush=True)
if sys.argv[-1] == "fail":
    sys.exit("it failed")
time.sleep(60)
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(variables={"SAID": "all"}, program=(sys.executable, "-c", SCRIPT), patience_s=0.5, folder=tmp_path)
    yield made
    made.stop()


def until_said(processes: Processes, name: str) -> str:
    deadline = time.monotonic() + 20
    while not (said := processes.find(name).output):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return said


def test_a_name_has_one_living_process(processes: Processes, tmp_path: Path) -> None:
    one = processes.start("one", ["word"], log=tmp_path / "one.log", variables={"SAID": "own"})
    assert until_said(processes, "one") == f"['word'] own {tmp_path}\n" and one.alive
    with pytest.raises(NodeError, match=rf"one runs already, as process {one.process.pid}; end it first"):
        processes.start("one", ["word"])
    assert processes.kill("one") == -signal.SIGKILL and not one.alive and processes.alive() == []
    again = processes.restart("one")
    assert again.command == one.command and again.alive and processes.alive(["one", "two"]) == ["one"]
    third = processes.restart("one")
    assert again.process.returncode == -signal.SIGTERM and third.alive


def test_all_end_even_those_that_do_not_listen_and_those_that_are_stopped(processes: Processes, tmp_path: Path) -> None:
    for name in ("polite", "deaf", "stopped"):
        processes.start(name, [name], log=tmp_path / f"{name}.log")
        until_said(processes, name)
    processes.find("stopped").send_signal(signal.SIGSTOP)
    with pytest.raises(NodeError, match="deaf does not end on signal 15 within 0 s"):
        processes.kill("deaf", signal.SIGTERM, timeout_s=0.2)
    processes.stop()
    codes = {name: one.process.returncode for name, one in processes.running.items()}
    assert codes == {"polite": -signal.SIGTERM, "deaf": -signal.SIGKILL, "stopped": -signal.SIGKILL}
    processes.stop()


def test_without_patience_all_are_killed(processes: Processes, tmp_path: Path) -> None:
    processes.patience_s = 0.0
    one = processes.start("one", ["one"], log=tmp_path / "one.log")
    until_said(processes, "one")
    processes.stop()
    assert one.process.returncode == -signal.SIGKILL


def test_the_last_lines_name_each_process_and_how_it_ended(processes: Processes, tmp_path: Path) -> None:
    failed = processes.start("failed", ["fail"], log=tmp_path / "failed.log")
    assert failed.wait(20) == 1
    processes.start("other", ["other"], log=tmp_path / "other.log")
    until_said(processes, "other")
    first, said, why, second, last = processes.last_lines().splitlines()
    assert (first, why, second) == ("--- failed (exit code 1)", "it failed", "--- other (runs)")
    assert said.startswith("['fail']") and last.startswith("['other']")


def test_what_was_never_started_is_said(processes: Processes) -> None:
    with pytest.raises(ConfigError, match="no process 'one'; expected one that was started"):
        processes.kill("one")
    silent = processes.start("silent", ["silent"])
    assert silent.output == ""
    with pytest.raises(ConfigError, match="silent has no log; expected a process that was started with one"):
        _ = silent.log
    assert processes.memory_bytes("silent", "VmRSS") and processes.memory_bytes("silent", "Nothing") is None
