"""The place of a deployment that faults are injected into: this machine, or emulated devices with cables."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.cluster.broker import RestartableBroker
from har_edge.cluster.processes import Command, Spawn, spawn_here
from har_edge.emulation.limits import BROKER, HOST, UNLIMITED, Device, Layout
from har_edge.emulation.testbed import Testbed


@dataclass(frozen=True, slots=True)
class Environment:
    """The broker, how a process starts, and how the cable of a device is pulled and plugged in, where there are any."""

    broker: RestartableBroker
    spawn: Spawn = spawn_here
    disconnect: Callable[[str], None] | None = None
    reconnect: Callable[[str], None] | None = None


def spawn_on(testbed: Testbed, devices: Mapping[str, str]) -> Spawn:
    """Return what starts each process on the emulated device of its name, and those without one beside them."""

    def spawn(name: str, command: Command) -> subprocess.Popen[bytes]:
        where = devices.get(name, HOST)
        if command.log is None:
            return testbed.run(where, command.words, stdout=subprocess.DEVNULL, environment=command.variables)
        with command.log.open("ab") as file:
            return testbed.run(where, command.words, stdout=file, stderr=file, environment=command.variables)

    return spawn


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

    A process that is not named after a device runs beside them. Raises UnsupportedError when this machine cannot
    emulate devices.
    """
    with Testbed(Layout(tuple(Device(name, UNLIMITED) for name in devices))) as testbed, testbed.inside():
        # Beside the broker of the test bed: this one is killed, and comes back.
        broker = RestartableBroker(
            folder / "broker", testbed.emulation.host(BROKER).address, lambda: testbed.inside(BROKER)
        )
        try:
            spawn = spawn_on(testbed, {name: name for name in devices})
            yield Environment(broker, spawn, testbed.disconnect, testbed.reconnect)
        finally:
            broker.stop()
