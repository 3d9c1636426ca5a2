"""Where a deployment that may be hurt runs, here or on emulated devices with cables; a broker that may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from har_edge.emulation.limits import BROKER, HOST, UNLIMITED, Device, Layout
from har_edge.emulation.testbed import Testbed
from har_edge.errors import BrokerError
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.resources import find_folder

STOP_TIMEOUT_S = 15.0
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


class RestartableBroker:
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

    def save(self) -> None:
        """Let it write its database, as it does every minute; sessions and queues in it survive if it is killed."""
        before, deadline = self._saved_at, time.monotonic() + STOP_TIMEOUT_S
        self._mosquitto.process.send_signal(signal.SIGUSR1)
        while self._saved_at == before:
            self._mosquitto.check()
            if time.monotonic() > deadline:
                raise BrokerError(f"Mosquitto saved nothing in {self._folder}: {self._mosquitto.last_words()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._mosquitto.process.wait(0.02)

    @property
    def saved_s_ago(self) -> float | None:
        """How old the database on disk is, in seconds; None where there is none."""
        return time.time() - self._saved_at if self._saved_at else None

    @property
    def _saved_at(self) -> float:
        """When the database was written (seconds since 1970), 0 where there is none."""
        file = self._folder / "mosquitto.db"
        return file.stat().st_mtime if file.exists() else 0.0

    def _start(self, port: int) -> Mosquitto:
        with self._inside():
            return start_mosquitto(find_folder("brokers") / "mosquitto.conf", self._folder, host=self._host, port=port)


@dataclass(frozen=True, slots=True)
class Environment:
    """The broker, how a process starts, and how the cable of a device is pulled and plugged in, where there are any."""

    broker: RestartableBroker
    spawn: Spawn = spawn_here
    disconnect: Callable[[str], None] | None = None
    reconnect: Callable[[str], None] | None = None


@contextlib.contextmanager
def local_environment(folder: Path) -> Iterator[Environment]:
    """Start the broker on this machine, its files below `folder`."""
    broker = RestartableBroker(folder / "broker")
    try:
        yield Environment(broker)
    finally:
        broker.stop()


@contextlib.contextmanager
def emulated_environment(folder: Path, devices: Sequence[str]) -> Iterator[Environment]:
    """Make emulated devices and start the broker among them; until the end this thread is in their network.

    What is not named after a device runs beside them. Raises UnsupportedError where this machine cannot do it.
    """
    with Testbed(Layout(tuple(Device(name, UNLIMITED) for name in devices))) as testbed, testbed.inside():

        def spawn(
            name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
        ) -> subprocess.Popen[bytes]:
            with log.open("ab") as file:
                where = name if name in devices else HOST
                return testbed.run(where, command, stdout=file, stderr=file, environment=environment)

        # One of our own beside that of the bed: it is killed, and comes back.
        broker = RestartableBroker(
            folder / "broker", testbed.emulation.host(BROKER).address, lambda: testbed.inside(BROKER)
        )
        try:
            yield Environment(broker, spawn, testbed.disconnect, testbed.reconnect)
        finally:
            broker.stop()
