"""Load and run a model once in a child process before this process loads it: some damaged models end their process.

The runtime checks little of a file that it loads. Every program that runs models of others (a stage, a node, `--check`,
`profile`) calls this check first. The check remembers a model that passed by its SHA-256 and the runtime's version, so
the next start costs nothing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from har_edge.errors import ModelError

_log = logging.getLogger(__name__)
FILE_NAME = "checked.txt"
TIMEOUT_S = 120.0
# The child may take this fraction of the device's memory; the rest is for other processes.
MEMORY_PART = 0.75
MAX_LINES = 1024
_MAX_BYTES = 1024 * 1024
_CHILD = (sys.executable, "-m", "har_edge.inference.load_check_child")


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """Checks each model once for a runtime, and keeps the verdicts in `folder` if it can be written.

    `command` starts the child. It reads the model from standard input; its arguments are the bytes of memory, the
    seconds of processor time and the delegate. A model that the runtime refuses properly is left to the caller, who
    gets the same error.
    """

    folder: Path | None
    command: tuple[str, ...] = _CHILD
    timeout_s: float = TIMEOUT_S
    _passed: set[str] = field(default_factory=set)
    _failed: dict[str, str] = field(default_factory=dict)

    def __call__(self, content: bytes | memoryview, what: str, delegate: str = "xnnpack") -> None:
        """Return when `content` loads and runs. Raises ModelError, which names `what`, for a model that must not be
        loaded.

        The delegate "none" runs other code than "xnnpack", so each has a verdict of its own. A verdict after a crash
        holds for this process only; a verdict that a model passed holds for later ones, too.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        line = f"{sha256} {runtime_name()}" + ("" if delegate == "xnnpack" else f" {delegate}")
        if line not in self._passed and line not in self._failed:
            self._passed.update(self._read())
        if line in self._passed:
            return
        problem = self._failed.get(line)
        if problem is None:
            problem = self._run(content, delegate)
            if problem:
                self._failed[line] = problem
            elif problem is not None:
                self._passed.add(line)
                self._write(line)
        if problem:
            raise ModelError(f"{what}: {problem} (sha256 {sha256})")

    def _run(self, content: bytes | memoryview, delegate: str) -> str | None:
        """Return why a model must not be loaded: an empty text if it may be, None if the runtime refuses it."""
        import json  # most starts know their verdicts, and need none of this
        import subprocess

        from har_edge.inference.load_check_child import DAMAGED, REFUSED

        told = [str(_memory_bytes()), str(int(self.timeout_s)), delegate]
        try:
            done = subprocess.run(
                [*self.command, *told], input=content, capture_output=True, timeout=self.timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return (
                f"it did not run once within {self.timeout_s:g} s in a test process; expected a model that this device "
                "can run; cut it into more slices"
            )
        except OSError as error:
            mend = f"look whether this user may run {self.command[0]}"
            if error.errno in (errno.ENOMEM, errno.EAGAIN):
                mend = "free some memory, or end other processes"
            raise ModelError(f"no test process could be started: {error.strerror}; {mend}") from None
        if done.returncode < 0:
            return _ended_by(-done.returncode, done.stderr)
        if done.returncode in (0, REFUSED):
            return "" if done.returncode == 0 else None
        if done.returncode == DAMAGED:
            return f"the file is damaged: {json.loads(done.stdout)['error']}"
        said = _last_line(done.stderr)
        return f"the test process ended with exit code {done.returncode}: {said}; look whether har_edge is whole"

    def _read(self) -> set[str]:
        if self.folder is None:
            return set()
        try:
            with (self.folder / FILE_NAME).open("rb") as file:
                return set(file.read(_MAX_BYTES).decode("ascii", "replace").splitlines())
        except OSError:
            return set()

    def _write(self, line: str) -> None:
        """Append a verdict in one write; a file that has grown long begins anew."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / FILE_NAME
            mode = "w" if len(self._read()) >= MAX_LINES else "a"
            with path.open(mode, encoding="ascii") as file:
                file.write(line + "\n")
        except OSError as error:
            _log.info("the verdict is not kept, so the next start checks again: %s", error)


@cache
def runtime_name() -> str:
    """Return the runtime with its version, and the machine's kind."""
    from har_edge.inference.interpreter import RUNTIME

    return f"{RUNTIME}-{os.uname().machine}"


def default_folder() -> Path:
    """Return `$XDG_CACHE_HOME/har-edge`, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "har-edge"


@cache
def default_check() -> LoadCheck:
    """Return the check of this process, for models that come from no store."""
    return LoadCheck(default_folder())


def _memory_bytes() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_PART)


def _ended_by(number: int, stderr: bytes) -> str:
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    said = _last_line(stderr)
    cause = {
        "SIGKILL": "most likely for want of memory; free some, or cut the model into more slices",
        "SIGXCPU": "since it took too long; cut the model into more slices",
    }.get(name, "so this process does not load it: compare its hash, cut the model again, or use another runtime")
    return f"{name} ended a test process that loaded and ran this model once{f' ({said})' if said else ''}, {cause}"


def _last_line(stderr: bytes) -> str:
    """Return the last line of an output, for one line of a log."""
    lines = [line.strip() for line in stderr[-2000:].decode("utf-8", "replace").splitlines() if line.strip()]
    return "".join(ch if ch.isprintable() else "?" for ch in lines[-1][:200]) if lines else ""
