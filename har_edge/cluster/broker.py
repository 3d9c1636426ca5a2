"""A broker for a cluster: Mosquitto where it is installed, else the embedded one; one that may be killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.errors import BrokerError
from har_edge.mqtt.broker import launcher
from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.resources import find_folder

if TYPE_CHECKING:
    from har_edge.mqtt.broker.launcher import RunningBroker
STOP_TIMEOUT_S = 15.0


def start_broker(folder: Path) -> RunningBroker:
    """Start a broker of the shipped configuration on a free port, its files below `folder`."""
    if launcher.find_mosquitto() is None:
        return start_embedded()
    folder.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own and must get in
    return start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker")


class RestartableBroker:
    """Mosquitto with the shipped configuration that can be killed and started again on its port with its database."""

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
        self._mosquitto.stop()  # what watches it ends, too

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._mosquitto.process.pid

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
