"""What a process started ends with it, although it was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from har_edge.mqtt.broker.launcher import find_mosquitto, free_port
from har_edge.mqtt.broker.watchdog import Watchdog

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")
SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody waited for has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until_gone(*pids: int, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, f"of {pids} some outlive who started them"
        time.sleep(0.02)


def start(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process


def test_closing_ends_what_is_left_and_waits_for_it() -> None:
    watchdog = Watchdog()
    polite, ended = start(SLEEP), start(SLEEP)
    ended.kill()
    ended.wait()
    for one in (polite, ended):
        watchdog.watch(one.pid)
    watchdog.close()
    assert polite.wait(5) == -signal.SIGTERM


def test_a_child_of_which_it_was_not_told_is_known_by_its_environment() -> None:
    """An interrupt may come between the start of a child and the moment in which its number is told."""
    ours, theirs = Watchdog(), Watchdog()
    marked, other = (
        subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | one.variables, stdout=subprocess.DEVNULL)
        for one in (ours, theirs)
    )
    ours.close()
    assert marked.wait(5) == -signal.SIGTERM and other.poll() is None
    theirs.close()
    assert other.wait(5) == -signal.SIGTERM


@pytest.mark.slow
def test_what_does_not_heed_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog, deaf = Watchdog(), start(DEAF)
    watchdog.watch(deaf.pid)
    watchdog.close()
    assert deaf.wait(5) == -signal.SIGKILL


def test_signals_for_all_do_not_end_it_before_the_others() -> None:
    watchdog, child = Watchdog(), start(SLEEP)
    watchdog.watch(child.pid)
    time.sleep(0.3)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        watchdog._process.send_signal(number)
    time.sleep(0.3)
    assert watchdog._process.poll() is None
    watchdog.close()
    assert child.wait(5) == -signal.SIGTERM


def test_without_its_watchdog_a_process_goes_on() -> None:
    watchdog = Watchdog()
    watchdog._process.kill()
    watchdog._process.wait()
    child = start(SLEEP)
    watchdog.watch(child.pid)
    watchdog.close()
    assert child.poll() is None
    child.kill()
    child.wait()


def listener_of(port: int) -> int:
    from har_edge.mqtt.broker.ports import find_listener

    found = find_listener(port)
    assert found is not None and found.pid is not None and found.program == "mosquitto"
    return found.pid


@needs_mosquitto
def test_a_broker_command_that_is_killed_leaves_no_mosquitto_and_no_held_port(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "har_edge.cli.main", "broker", "--port", str(port), "--directory", str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and "listens on" in first.stdout.readline()
    mosquitto = listener_of(port)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"is not free: mosquitto (process {mosquitto}" in second.stderr
    assert f"kill {mosquitto}" in second.stderr and "--port" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    until_gone(mosquitto)
    third = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert third.stdout is not None and "listens on" in third.stdout.readline()
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    again = listener_of(port)
    third.send_signal(signal.SIGINT)
    assert third.wait(10) == 0
    until_gone(again)


def test_a_killed_starter_takes_its_children_with_it_in_a_terminal_and_without() -> None:
    code = (
        "import subprocess, sys\n"
        "from har_edge.mqtt.broker.watchdog import Watchdog\n"
        "watchdog = Watchdog()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=subprocess.DEVNULL,"
        " start_new_session=True)\n"
        "watchdog.watch(child.pid)\n"
        "print(child.pid, watchdog._process.pid, flush=True)\n"
        "input()\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child, watchdog = map(int, starter.stdout.readline().split())
    assert not is_gone(child) and os.getsid(watchdog) == watchdog != os.getsid(starter.pid)
    starter.kill()
    starter.communicate()
    until_gone(child, watchdog)
