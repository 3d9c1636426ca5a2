"""Commands of har_edge as processes on this machine: started under names, watched, killed and ended in one place."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from har_edge.errors import ConfigError, NodeError
from har_edge.mqtt.broker.watchdog import Watchdog
from har_edge.timing import PROCESS_STOP_S

# How long a process that is waited for may take to end.
WAIT_TIMEOUT_S = 60.0
# The start of every command line.
PROGRAM = (sys.executable, "-m", "har_edge.cli.main")
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it is started: words, log, variables beside those of this process, and the folder it runs in.

    Without a `log` the process writes its errors to those of this process, and its output nowhere.
    """

    words: Sequence[str]
    log: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


# Starts a command under a name, here or on an emulated device.
Spawn = Callable[[str, Command], "subprocess.Popen[bytes]"]


def spawn_here(name: str, command: Command) -> subprocess.Popen[bytes]:
    """Start a command on this machine, in a session of its own: Ctrl-C in the terminal is for the parent."""
    variables, folder = os.environ | dict(command.variables), command.folder
    if command.log is None:
        return subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=variables,
            cwd=folder,
            start_new_session=True,
        )
    with command.log.open("ab") as file:
        return subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=variables,
            cwd=folder,
            start_new_session=True,
        )


@dataclass(slots=True)
class Running:
    """A process that was started, and the command that started it."""

    name: str
    command: Command
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """The file with its output; ConfigError where none was asked for."""
        if self.command.log is None:
            raise ConfigError(f"{self.name} has no log; expected a process that was started with one")
        return self.command.log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """The output so far; empty without a log."""
        log = self.command.log
        return log.read_text(errors="replace") if log is not None and log.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """Return the exit code, once it has ended; raises subprocess.TimeoutExpired."""
        return self.process.wait(timeout_s)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = WAIT_TIMEOUT_S) -> int:
        """Send a signal, wait for the end and return the exit code; raises subprocess.TimeoutExpired."""
        self.send_signal(number)
        return self.wait(timeout_s)

    def last_lines(self, count: int = LAST_LINES) -> str:
        """Return the end of its output, and the exit code where it has ended."""
        state = "runs" if self.alive else f"exit code {self.process.returncode}"
        return "\n".join([f"--- {self.name} ({state})", *self.output.splitlines()[-count:]])


@dataclass(slots=True)
class Processes:
    """The processes of one deployment, by name; all of them end with this process, however that ends.

    A name has at most one living process. `spawn` starts one, `variables` go to each. `patience_s` is how long one may
    take to end when all are; with 0 they are killed, since SIGTERM does not end one that is stopped. They run in
    `folder`, by default in that of this process.
    """

    spawn: Spawn = spawn_here
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = PROGRAM
    patience_s: float = PROCESS_STOP_S
    folder: Path | None = None
    running: dict[str, Running] = field(default_factory=dict)
    _watchdog: Watchdog | None = None

    def start(
        self,
        name: str,
        words: Sequence[str],
        *,
        log: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command of `har-edge` under a name; raises NodeError where the name has a living process."""
        command = Command([*self.program, *words], log, {**self.variables, **(variables or {})}, self.folder)
        return self._start(name, command)

    def kill(self, name: str, number: int = signal.SIGKILL, timeout_s: float = PROCESS_STOP_S) -> int:
        """Send a signal that ends a process, wait for the end and return the exit code; NodeError where it goes on."""
        one = self.find(name)
        try:
            return one.end(number, timeout_s)
        except subprocess.TimeoutExpired:
            raise NodeError(f"{name} does not end on signal {number} within {timeout_s:.0f} s") from None

    def restart(self, name: str) -> Running:
        """Start the command of a name again, after its process, if that still runs, was asked to end."""
        one = self.find(name)
        if one.alive:
            self.kill(name, signal.SIGTERM)
        return self._start(name, one.command)

    def find(self, name: str) -> Running:
        """Return a process by its name; raises ConfigError where there has been none."""
        if name not in self.running:
            known = f"one of {', '.join(self.running)}" if self.running else "one that was started"
            raise ConfigError(f"no process {name!r}; expected {known}")
        return self.running[name]

    def alive(self, names: Iterable[str] | None = None) -> list[str]:
        """Return which of these names, by default of all, have a living process."""
        chosen = self.running if names is None else names
        return [name for name in chosen if name in self.running and self.running[name].alive]

    def last_lines(self) -> str:
        """Return the end of what each process wrote."""
        return "\n".join(one.last_lines() for one in self.running.values())

    def memory_bytes(self, name: str, key: str) -> int | None:
        """Return a figure of /proc/PID/status (VmRSS, VmHWM) of a process, in bytes; None where there is none."""
        try:
            text = Path(f"/proc/{self.find(name).process.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def stop(self) -> None:
        """End every process: by SIGTERM, then by SIGKILL where that was not enough."""
        running = [one for one in self.running.values() if one.alive]
        for one in running:
            if self.patience_s > 0:
                one.process.terminate()
            else:
                one.process.kill()
        deadline = time.monotonic() + (self.patience_s or PROCESS_STOP_S)
        for one in running:
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def _start(self, name: str, command: Command) -> Running:
        older = self.running.get(name)
        if older is not None and older.alive:
            raise NodeError(f"{name} runs already, as process {older.process.pid}; end it first")
        self._watchdog = self._watchdog or Watchdog()
        marked = replace(command, variables={**command.variables, **self._watchdog.variables})
        self.running[name] = Running(name, command, self.spawn(name, marked))
        self._watchdog.watch(self.running[name].process.pid)
        return self.running[name]
