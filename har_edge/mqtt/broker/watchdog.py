"""End the child processes of this process when it has gone, even when it was killed with SIGKILL.

A small process waits for the end of a pipe whose other end only this process holds, and then ends the children. The
kernel's own signal at a parent's death (PR_SET_PDEATHSIG, prctl(2)) does not serve. A process that changes its user, as
Mosquitto does, loses it, and it comes when the thread ends that started the child.

A child is known by its number once it is watched, and before that by a variable of its environment: between the moment
in which it exists and the one in which its number is told, this process may be interrupted or killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

# A process gets so long to end by itself.
PATIENCE_S = 5.0
# A child whose parent was killed while it started has its environment after this time.
START_S = 0.1
VARIABLE = "HAR_EDGE_WATCHED"


def _spawn(token: str) -> subprocess.Popen[bytes]:
    # This very file, with nothing but the standard library: a fifth of the memory of a process of the package. A
    # session of its own, so that Ctrl-C in the terminal does not end it first.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={name: text for name, text in os.environ.items() if name != VARIABLE},  # no child of another watchdog
        start_new_session=True,
    )


@dataclass(slots=True)
class Watchdog:
    """Ends the children that it watches when this process has gone. Start it before them, and `close` it after them.

    Children that have its `variables` in their environment are watched from their first moment.
    """

    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._process = _spawn(self._token)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the environment by which a child is known."""
        return {VARIABLE: self._token}

    def watch(self, pid: int) -> None:
        """Watch a child that this process has not waited for yet."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # who killed the watchdog wants it so
            self._process.stdin.write(b"%d\n" % pid)
            self._process.stdin.flush()

    def close(self) -> None:
        """End the watchdog, and the watched children that still run."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Read one process id a line until standard input ends; then end the processes that still run."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # it is the last to go
        signal.signal(number, signal.SIG_IGN)
    watched: list[int] = []
    for line in sys.stdin.buffer:
        try:
            # A descriptor names the process for good; its number may be another's later (pidfd_open(2)).
            watched.append(os.pidfd_open(int(line)))
        except ProcessLookupError:  # it has ended already
            continue
        except OSError as error:
            print(f"process {int(line)} may outlive who started it: {error}", file=sys.stderr, flush=True)
    mark = f"{VARIABLE}={sys.argv[1]}".encode()
    watched += _find_marked(mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in watched:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(one, number)
        watched = _await_end(watched, PATIENCE_S)
        if number == signal.SIGTERM:
            time.sleep(START_S)
            watched += _find_marked(mark)


def _find_marked(mark: bytes) -> list[int]:
    """Return a descriptor of each process that has this variable in its environment (proc_pid_environ(5))."""
    found = []
    # No pathlib: it would double the memory of this process.
    for number in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            process = os.pidfd_open(int(number))
            try:
                with open(f"/proc/{number}/environ", "rb") as file:  # noqa: PTH123
                    is_marked = mark in file.read().split(b"\0")
            except OSError:
                is_marked = False
            if is_marked:
                found.append(process)
            else:
                os.close(process)
    return found


def _await_end(watched: list[int], patience_s: float) -> list[int]:
    """Return the processes that still run after `patience_s` seconds; a process's descriptor is readable once it has
    ended.
    """
    deadline = time.monotonic() + patience_s
    while watched:
        ended, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            break
        watched = [one for one in watched if one not in ended]
    return watched


if __name__ == "__main__":
    main()
