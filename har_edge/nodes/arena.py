"""A deployment that may be hurt: a broker, a coordinator, nodes and sensors, each a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from har_edge.errors import HarEdgeError, MessageError, NodeError
from har_edge.messaging.broker import Mosquitto, start_mosquitto
from har_edge.messaging.bus import Bus, Session
from har_edge.messaging.mqtt import Client, open_bus
from har_edge.messaging.topics import Topics
from har_edge.nodes.record import Record
from har_edge.resources import find_folder

_log = logging.getLogger(__name__)
POLL_S = 0.05
STOP_TIMEOUT_S = 15.0
COORDINATOR = "coordinator"
# Starts a command under a name, its output in a file, with these variables beside those of this process.
Spawn = Callable[[str, Sequence[str], Path, Mapping[str, str]], "subprocess.Popen[bytes]"]


def spawn_here(name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a command on this machine, in a session of its own: Ctrl-C in the terminal is for us."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | dict(environment),
            start_new_session=True,
        )


class MortalBroker:
    """Mosquitto with the shipped configuration, which may be killed and comes back with its port and its database."""

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        inside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Start it; `inside` enters the network it is to live in."""
        self._folder, self._host, self._inside = folder, host, inside
        self._mosquitto = self._start(0)
        self.description = self._mosquitto.description
        self.address = self._mosquitto.address

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal and wait until it has gone."""
        self._mosquitto.process.send_signal(number)
        self._mosquitto.process.wait(STOP_TIMEOUT_S)

    def start(self) -> None:
        """Start it again, if it does not run."""
        if self._mosquitto.process.poll() is not None:
            self._mosquitto = self._start(self.address.port)

    @property
    def saved_s_ago(self) -> float | None:
        """How old the database on disk is, in seconds; None where there is none."""
        file = self._folder / "mosquitto.db"
        return time.time() - file.stat().st_mtime if file.exists() else None

    def _start(self, port: int) -> Mosquitto:
        with self._inside():
            return start_mosquitto(find_folder("brokers") / "mosquitto.conf", self._folder, host=self._host, port=port)


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
class Arena:
    """Starts the processes of one pipeline, watches what they publish, and ends them all on exit.

    `places` maps a name to what `spawn` needs to know where it runs; every node has a cache of its own below `folder`.
    """

    topics: Topics
    broker: MortalBroker
    folder: Path
    spawn: Spawn = spawn_here
    client: Client = Client.AUTO
    record: Record = field(init=False)
    running: dict[str, Running] = field(default_factory=dict)
    bus: Bus = field(init=False)
    # Called at each step: keeps load coming.
    steps: list[Callable[[], None]] = field(default_factory=list)

    def __enter__(self) -> Arena:
        self.record = Record(self.topics)
        name = f"{self.topics.base}.{self.topics.pipeline}.arena-{os.getpid()}"
        self.bus = open_bus(self.broker.address, Session(name, expiry_s=3600, receive_max=8192), self.client)
        self.bus.subscribe(self.record.filters)
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
        base = ["--base", self.topics.base, "--pipeline", self.topics.pipeline, "--broker", self.broker.address.url]
        command = [sys.executable, "-m", "har_edge.cli.main", *words, *base, "--client", self.client.value]
        environment = {"XDG_CACHE_HOME": str(self.cache(name).parent.parent), "PYTHONUNBUFFERED": "1"}
        log = self.folder / f"{name}.log"
        self.running[name] = Running(name, self.spawn(name, command, log, environment), log)
        return self.running[name]

    def start_node(self, name: str) -> Running:
        """Start a device's node."""
        return self.start(name, "node", "--name", name)

    def cache(self, name: str) -> Path:
        """Return the folder where a process keeps its slices."""
        return self.folder / "caches" / name / "har-edge" / "slices"

    def has_cached(self, name: str, sha256: str) -> bool:
        """Tell whether a node has a file in its cache."""
        return any(sha256 in path.name for path in self.cache(name).rglob("*"))

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
                self.record.handle(delivery)
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
