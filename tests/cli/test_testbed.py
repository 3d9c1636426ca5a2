"""`har-edge testbed`: a bed around a command, and commands for a bed that runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.cli.commands.testbed import command_of
from har_edge.cli.main import build_parser, main
from har_edge.emulation import machine
from tests.emulation.machine import TIMEOUT_S, require_machine, traces

COMMAND = [sys.executable, "-m", "har_edge.cli.main", "testbed"]


@pytest.fixture
def _machine() -> None:
    require_machine()


def har_edge(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S)


@pytest.mark.parametrize(
    ("words", "action", "command"),
    [
        (["--devices", "2"], None, []),
        (["--devices", "2", "--each", "--", "cut", "--bed", "x"], None, ["cut", "--bed", "x"]),
        (["exec", "device-1", "--", "ls", "--", "-l"], "exec", ["ls", "--", "-l"]),
        (["exec", "--bed", "x", "device-1", "ls", "-l"], "exec", ["ls", "-l"]),
    ],
)
def test_a_command_is_told_from_an_action(words: list[str], action: str | None, command: list[str]) -> None:
    args = build_parser().parse_args(["testbed", *words])
    assert (args.action, command_of(args.words)) == (action, command)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: no devices; give --devices N, or --config FILE with [[devices]]"),
        (["--devices", "1", "--cpu", "0"], "error: cpu is 0; expected 0.01 or more cores, such as 0.2"),
        (["--devices", "1", "--link", "fast"], "error: 'fast' came; expected a rate such as 94mbit"),
        (["--devices", "1", "--each"], "error: --each came without a command; give one after --"),
        (["exec", "device-1"], "error: nothing to run; give a command after --"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["testbed", *words]) == 2
    assert capsys.readouterr().err.startswith(said)


def test_an_unknown_action_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["testbed", "fly"])
    assert "'fly' (choices: exec, cut, join, clean)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--devices", "1"], ["exec", "a", "--", "ls"], ["cut", "a"], ["join", "a"], ["clean"]]
)
def test_without_root_it_says_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    assert main(["testbed", *words]) == 2
    assert "needs root, who alone may make network namespaces and cgroups: sudo" in capsys.readouterr().err


@pytest.mark.usefixtures("_machine")
def test_a_command_runs_on_every_device(tmp_path: Path) -> None:
    file = tmp_path / "bed.toml"
    file.write_text('[[devices]]\nname = "a"\n[[devices]]\nname = "b"\n')
    # A line in one piece: both write to the same pipe.
    code = "import os, sys; os.write(1, f'{sys.argv[1:]}\\n'.encode()); sys.exit(int(sys.argv[2]) * 7)"
    answer = har_edge(
        "--config", str(file), "--cpu", "2", "--each", "--", sys.executable, "-c", code, "{device}", "{index}"
    )
    assert sorted(answer.stdout.splitlines()) == ["['a', '0']", "['b', '1']"]
    assert answer.returncode == 7
    assert "a            10.77.1.1    cpu 2, link unlimited, memory unlimited" in answer.stderr
    assert traces(answer.stderr.rpartition("bed ")[2].partition(",")[0]) == []


@pytest.mark.usefixtures("_machine")
def test_more_processor_than_the_machine_has_is_said() -> None:
    answer = har_edge("--devices", "2", "--cpu", str(os.cpu_count()), "--", "true")
    assert f"the devices may use {2 * (os.cpu_count() or 1)} cores together; this machine has" in answer.stderr
    assert answer.returncode == 0


@pytest.fixture
def bed(_machine: None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A bed without a command, and its id."""
    with subprocess.Popen([*COMMAND, "--devices", "1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "no command; the bed stays until Ctrl-C" not in said:
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        yield process, said.rpartition("bed ")[0].rpartition("bed ")[2].partition(",")[0]
        process.terminate()


@pytest.mark.slow
def test_commands_of_another_terminal(bed: tuple[subprocess.Popen[str], str]) -> None:
    process, name = bed
    connect = [sys.executable, "-c", "import socket; socket.create_connection(('broker', 1883), 1)"]
    here = ["--bed", name, "device-1"]
    assert har_edge("exec", *here, "--", *connect).returncode == 0
    assert har_edge("cut", *here).stdout == f"device-1 of bed {name} is cut off\n"
    assert har_edge("exec", *here, "--", *connect).returncode == 1
    assert har_edge("join", *here).stdout == f"device-1 of bed {name} is joined\n"
    deadline = time.monotonic() + TIMEOUT_S  # a cable that is back is found after a second or two, as on a real device
    while har_edge("exec", *here, "--", *connect).returncode != 0:
        assert time.monotonic() < deadline
    assert har_edge("cut", "--bed", name, "device-2").stderr == (
        f"error: no device 'device-2' in bed {name}; it has broker, device-1\n"
    )
    assert name not in har_edge("clean").stdout  # it lives
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 0
    assert traces(name) == []


@pytest.mark.usefixtures("_machine")
def test_a_command_on_the_host_side_cuts_and_joins_without_naming_the_bed() -> None:
    code = (
        "import subprocess, sys\n"
        "for action in ('cut', 'join'):\n"
        "    subprocess.run([*sys.argv[1:], action, 'device-1'], check=True)\n"
        "sys.exit(subprocess.run([*sys.argv[1:], 'exec', 'device-1', '--', 'false']).returncode + 4)\n"
    )
    answer = har_edge("--devices", "1", "--", sys.executable, "-c", code, *COMMAND)
    assert answer.stdout.count("device-1 of bed") == 2
    assert answer.returncode == 5
