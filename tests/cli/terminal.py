"""A command on a terminal of 80 columns: what a person would see of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli.fleet import TIMEOUT_S, environment

COLUMNS, ROWS = 80, 40
# Colours and cursor movements (ECMA-48, control sequences), and titles of windows.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


class Terminal:
    """Runs a command of har-edge on a pseudo terminal, and gathers what it writes; use as a context manager."""

    def __init__(self, *command: str, cwd: Path, **changes: str) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        kept = {
            name: value for name, value in environment(TERM="xterm-256color", **changes).items() if name != "COLUMNS"
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "har_edge.cli.main", *command],
            cwd=cwd, env=kept, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._written = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What was written, without colours and cursor movements."""
        return _CONTROL.sub("", self._written.decode("utf-8", "replace"))

    def read(self, timeout_s: float = 0.05) -> None:
        """Gather what came."""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while select.select([self._master], [], [], timeout_s)[0]:
                came = os.read(self._master, 65536)
                self._written += came
                timeout_s = 0.0
                if not came:
                    break

    def until(self, done: Callable[[], bool]) -> None:
        """Gather until something holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline, self.text
            self.read()

    def until_said(self, *texts: str) -> None:
        self.until(lambda: all(text in re.sub(r"\s+", " ", self.text) for text in texts))

    def end(self, number: int | None = None) -> int:
        """Send a signal if there is one, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        self.until(lambda: self.process.poll() is not None)
        self.read()
        return self.process.wait()

    def stop(self) -> int:
        return self.end(signal.SIGINT)

    def check(self, *names: str) -> None:
        """Fail where the terminal would part a word: in a line that is longer than it is wide.

        Only a word that fits into no line may be: a path. A name may be cut where these names stand there in full.
        """
        assert self.text.strip() and ("…" not in self.text or names), self.text
        assert all(name in self.text for name in names), self.text
        for line in re.split(r"[\r\n]+", self.text):
            longest = max(map(len, line.split()), default=0)
            assert len(line) <= COLUMNS or longest > COLUMNS - 12, f"{len(line)} columns: {line!r}"
