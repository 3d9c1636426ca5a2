"""Ending the processes that this one started when it has gone, however it went: killed with SIGKILL, too.

A small process of its own waits for the end of a pipe whose other end only this one holds, and then ends what it was
told of. The kernel's own signal at a parent's death (PR_SET_PDEATHSIG, prctl(2)) does not do: it is forgotten when a
process changes its user, as Mosquitto does, and it comes when the thread ends that started the child.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

# How long a process may take to end by itself.
PATIENCE_S = 5.0


def _spawn() -> subprocess.Popen[bytes]:
    # This very file, with nothing but the standard library: a fifth of the memory of a process of the package. A
    # session of its own, so that Ctrl-C in the terminal does not end it first.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass(slots=True)
class Watchdog:
    """Ends the children that it watches when this process has gone; start it before them, `close` it after them."""

    _process: subprocess.Popen[bytes] = field(default_factory=_spawn)

    def watch(self, pid: int) -> None:
        """Take charge of a child that this process has not waited for yet."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # who killed the watchdog wants it so
            self._process.stdin.write(b"%d\n" % pid)
            self._process.stdin.flush()

    def close(self) -> None:
        """End it, and what is left of those that it watches."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Read a process id a line until standard input ends; then end those that still run."""
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
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in watched:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(one, number)
        watched = _await_end(watched, PATIENCE_S)


def _await_end(watched: list[int], patience_s: float) -> list[int]:
    """Return those that still run after a while; the descriptor of a process can be read when it has ended."""
    deadline = time.monotonic() + patience_s
    while watched:
        ended, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
        if not ended:
            break
        watched = [one for one in watched if one not in ended]
    return watched


if __name__ == "__main__":
    main()
