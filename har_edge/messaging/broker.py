"""Starting a broker: Mosquitto where it is installed, else amqtt inside this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from har_edge.errors import BrokerError, ConfigError
from har_edge.messaging.address import Address

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class RunningBroker(Protocol):
    """A broker that this process started."""

    @property
    def address(self) -> Address:
        """Where clients reach it."""

    @property
    def description(self) -> str:
        """Name and version, fit to print."""

    def stop(self) -> None:
        """Stop it and wait until it has gone."""


@dataclass(slots=True)
class Mosquitto:
    """A Mosquitto process; use as a context manager, or call `stop`."""

    address: Address
    description: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Mosquitto:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def find_mosquitto() -> Path | None:
    """Return Mosquitto's executable, None where it is not installed; /usr/sbin counts even when PATH lacks it."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def mosquitto_version(executable: Path) -> str:
    """Return `Mosquitto <version>`."""
    answer = subprocess.run([executable, "-h"], capture_output=True, text=True, check=False, timeout=_START_TIMEOUT_S)
    first = (answer.stdout or answer.stderr).partition("\n")[0]
    return first.replace("mosquitto version", "Mosquitto").strip() or "Mosquitto of unknown version"


def start_mosquitto(
    config: Path, directory: Path, *, host: str = "127.0.0.1", port: int = 0, extra: str = "", log: Path | None = None
) -> Mosquitto:
    """Run Mosquitto with a configuration of `brokers/`, its database in `directory`, and wait until it answers.

    `port` 0 takes a free one; `extra` is appended to the configuration. Raises BrokerError when it is not installed,
    does not start, or the port is taken; ConfigError when the configuration cannot be read.
    """
    executable = find_mosquitto()
    if executable is None:
        raise BrokerError("Mosquitto is not installed; `apt-get install mosquitto`, or use the embedded broker")
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the broker configuration {config}: {error}") from None
    port = port or free_port(host)
    check_free(host, port)
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / "mosquitto.conf"
    # The listener comes first, since TLS settings belong to the listener before them.
    written.write_text(
        f"listener {port} {host}\n{text}\npersistence_location {directory}/\n{extra}\n", encoding="utf-8"
    )
    if os.geteuid() == 0:
        with contextlib.suppress(LookupError):  # Mosquitto gives up root for this user where it exists
            shutil.chown(directory, "mosquitto")
    with (log or directory / "mosquitto.log").open("ab") as output:
        process = subprocess.Popen([executable, "-c", written], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    broker = Mosquitto(
        Address(reachable(host), port, tls="\ncertfile " in text + extra), mosquitto_version(executable), process
    )
    _await_listening(broker, log or directory / "mosquitto.log")
    return broker


def _await_listening(broker: Mosquitto, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((broker.address.host, broker.address.port), timeout=1).close()
            return
        except OSError:
            ended = broker.process.poll()
            if ended is not None or time.monotonic() > deadline:
                broker.stop()
                tail = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise BrokerError(
                    f"Mosquitto did not start (exit code {ended}): {' | '.join(tail) or 'it said nothing'}"
                ) from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                broker.process.wait(0.02)


def reachable(host: str) -> str:
    """Return where a client on this machine reaches a listener bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def free_port(host: str) -> int:
    """Return a TCP port that is free now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((reachable(host), 0))
        return int(probe.getsockname()[1])


def check_free(host: str, port: int) -> None:
    """Raise BrokerError when something listens on the port already."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((reachable(host), port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {host} is not free: {error}; stop what listens there, or choose another --port"
            ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
