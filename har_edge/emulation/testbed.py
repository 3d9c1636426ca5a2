"""An emulated test bed as a context manager: made on entry, gone on exit, and gone too when this process is killed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import IO

from har_edge.emulation import cgroups, emulation, network
from har_edge.emulation.emulation import Host
from har_edge.emulation.limits import BROKER, HOST, Layout
from har_edge.emulation.machine import check_machine
from har_edge.errors import ConfigError, NodeError
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.resources import find_folder

_log = logging.getLogger(__name__)
Stream = int | IO[bytes] | None


class Testbed:
    """Devices, a broker's host with Mosquitto, and the bridge between them.

    `emulation` says what there is; every method that takes a host knows `host` (the bridge's side, without limits),
    `broker`, and the devices by name. Raises UnsupportedError where this machine cannot do it.
    """

    __test__ = False  # pytest takes every class of that name for a test

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._broker: Mosquitto | None = None

    def __enter__(self) -> Testbed:
        check_machine()
        try:
            emulation.cleanup_stale()
        except NodeError as error:  # what a dead test bed left is no reason to make no other
            _log.warning("%s", error)
        self.emulation, self._owner = emulation.register(self._layout)
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "har_edge.emulation.watcher", self.emulation.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            emulation.build(self.emulation, self._layout)
            self._start_broker()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def devices(self) -> list[Host]:
        """The devices, in order."""
        return [host for host in self.emulation.hosts if host.name != BROKER]

    def run(
        self,
        host: str,
        command: Sequence[str],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; its process id is that of the command itself, HAR_EDGE_BROKER is set."""
        self.emulation.namespace(host)
        if not command:
            raise ConfigError(f"nothing to run on {host}; expected a command")
        return subprocess.Popen(
            [sys.executable, "-m", "har_edge.emulation.enter", self.emulation.id, host, *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | dict(environment or {}),
        )

    def inside(self, host: str = HOST) -> AbstractContextManager[None]:
        """Put this thread into the network of a host for a while: a socket made then stays there."""
        return network.inside(self.emulation.namespace(host))

    def limit_cpu(self, device: str, cores: float) -> None:
        """Give a device another share of the processor, from now on."""
        cgroups.limit_cpu(self.emulation.groups_of(device), cores)

    def disconnect(self, device: str) -> None:
        """Pull the cable of a device out."""
        self.emulation.disconnect(device)

    def reconnect(self, device: str) -> None:
        """Plug it in again."""
        self.emulation.reconnect(device)

    def check(self) -> None:
        """Raise BrokerError when Mosquitto has ended by itself."""
        if self._broker is not None:
            self._broker.check()

    def close(self) -> None:
        """Kill what still runs in the test bed, and take it down."""
        if self._broker is not None:
            self._broker.stop()
        emulation.destroy(self.emulation)
        # The watcher goes last: it finishes what a second Ctrl-C may leave.
        self._watcher.kill()
        self._watcher.wait()
        os.close(self._owner)

    def _start_broker(self) -> None:
        config, host = find_folder("brokers") / "mosquitto.conf", self.emulation.host(BROKER)
        with network.inside(self.emulation.namespace(BROKER)):
            folder = self.emulation.folder / "broker"
            self._broker = start_mosquitto(config, folder, host=host.address, port=emulation.BROKER_PORT)
        cgroups.attach(self.emulation.groups_of(BROKER), self._broker.process.pid)
