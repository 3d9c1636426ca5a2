"""A deployment that may be hurt: a broker, a coordinator, nodes and sensors, each a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from har_edge.errors import HarEdgeError, MessageError, NodeError
from har_edge.experiments.environment import Environment
from har_edge.experiments.recorder import Recorder
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.topics import Topics

_log = logging.getLogger(__name__)
POLL_S = 0.05
STOP_TIMEOUT_S = 15.0
COORDINATOR = "coordinator"
CACHE = "XDG_CACHE_HOME"


@dataclass(slots=True)
class Running:
    """A process, and the file with what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def last_words(self, count: int = 12) -> str:
        """Return the end of what it said."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-count:])


@dataclass(slots=True)
class Cluster:
    """Starts the processes of one pipeline, watches what they publish, and ends them all on exit.

    What they say and every node's cache of its own are below `folder`; `environment` goes to all of them, `program` is
    what stands before the words of a command.
    """

    topics: Topics
    environment: Environment
    folder: Path
    client: ClientLibrary = ClientLibrary.AUTO
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = (sys.executable, "-m", "har_edge.cli.main")
    recorder: Recorder = field(init=False)
    running: dict[str, Running] = field(default_factory=dict)
    bus: Bus = field(init=False)
    # Called at each step: keeps load coming.
    steps: list[Callable[[], None]] = field(default_factory=list)

    def __enter__(self) -> Cluster:
        self.recorder = Recorder(self.topics)
        name = f"{self.topics.base}.{self.topics.pipeline}.arena-{os.getpid()}"
        self.bus = open_bus(
            self.environment.broker.address, Session(name, expiry_s=3600, receive_max=8192), self.client
        )
        self.bus.subscribe(self.recorder.filters)
        self.until(lambda: self.bus.connected, "no connection to the broker")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self.running.values():
            if one.alive:
                one.process.kill()  # kills what is stopped, too
                one.process.wait()
        with contextlib.suppress(HarEdgeError):
            self.bus.close(forget=True)

    def start(self, name: str, *words: str) -> Running:
        """Start a command of `har-edge` under a name; a name has at most one process at a time."""
        older = self.running.get(name)
        if older is not None and older.alive:
            raise NodeError(f"{name} runs already, as process {older.process.pid}; end it first")
        where = ["--broker", self.environment.broker.address.url, "--client", self.client.value]
        where += ["--base", self.topics.base, "--pipeline", self.topics.pipeline]
        command = [*self.program, *words, *where]
        own = {"PYTHONUNBUFFERED": "1"} | ({CACHE: str(self.folder / "caches" / name)} if words[0] == "node" else {})
        log = self.folder / f"{name}.log"
        self.running[name] = Running(name, self.environment.spawn(name, command, log, {**self.variables, **own}), log)
        return self.running[name]

    def start_node(self, name: str) -> Running:
        """Start a device's node."""
        return self.start(name, "node", "--name", name)

    def cache(self, name: str) -> Path:
        """Return the folder where a node keeps its slices."""
        return self.folder / "caches" / name / "har-edge" / "slices"

    def has_cached(self, name: str, sha256: str) -> bool:
        """Tell whether a node has a file in its cache."""
        return any(sha256 in path.name for path in self.cache(name).rglob("*"))

    def give(self, name: str, sha256: str, source: str) -> None:
        """Put a file from the cache of a node into that of another, as if it had been there before."""
        if not self.has_cached(name, sha256):
            for path in self.cache(source).rglob(f"*{sha256}*"):
                place = self.cache(name) / path.relative_to(self.cache(source))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)

    def forget(self, name: str, sha256: str) -> None:
        """Remove a file from the cache of a node."""
        for path in self.cache(name).rglob(f"*{sha256}*"):
            if path.is_file():
                path.unlink()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal that ends a process, and wait until it has gone."""
        one = self.running[name]
        one.signal(number)
        self.until(lambda: not one.alive, f"{name} does not end on signal {number}")

    def alive(self, names: Iterable[str]) -> list[str]:
        """Return which of these run."""
        return [name for name in names if name in self.running and self.running[name].alive]

    def step(self) -> None:
        """Take what has come, and do what is done at each step."""
        for delivery in self.bus.poll(POLL_S):
            self.bus.acknowledge(delivery)
            try:
                self.recorder.handle(delivery)
            except MessageError as error:
                _log.warning("dropped %s: %s", delivery.topic, error)
        for act in self.steps:
            act()

    def run_for(self, seconds: float) -> None:
        """Go on for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step()

    def until(self, done: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        """Go on until something holds; raises NodeError, with what everybody said last, when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise NodeError(f"{what} after {timeout_s:.0f} s\n{self.last_words()}")
            self.step()

    def last_words(self) -> str:
        """Return the end of what each process said, with its exit code."""
        return "\n".join(
            f"--- {one.name} ({'runs' if one.alive else f'exit code {one.process.returncode}'})\n{one.last_words()}"
            for one in self.running.values()
        )
