"""The embedded broker as a child process, which ends with this process; for machines without Mosquitto."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from har_edge import __version__
from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.launcher import check_free, free_port, reachable

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0
DESCRIPTION = f"har_edge {__version__} (embedded, MQTT 3.1.1 and 5)"
# The limits of the embedded broker, in the words of the commands that use it.
LIMITS = "sessions and messages live in its memory: they end with it"


@dataclass(slots=True)
class EmbeddedBroker:
    """The broker's process. `stop` ends it, and so does any end of this process."""

    address: Address
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None = None
    description: str = DESCRIPTION

    def check(self) -> None:
        if self.process.poll() is not None:
            raise BrokerError(
                f"the embedded broker ended by itself (exit code {self.process.returncode}); start it again"
            )

    def stop(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.log is not None:
            self.log.close()


def start_embedded(*, host: str = "127.0.0.1", port: int = 0, log: Path | None = None) -> EmbeddedBroker:
    """Run the embedded broker in a child process and wait until it answers; `port` 0 takes a free port.

    The broker logs to `log`, or writes warnings to standard error without one. Raises BrokerError when the port is
    taken or the process does not start.
    """
    port = port or free_port(host)
    check_free(host, port)
    output = log.open("ab") if log is not None else None
    # The same interpreter and package as this one; a session of its own, so that Ctrl-C reaches us first.
    process = subprocess.Popen(
        [sys.executable, "-m", "har_edge.mqtt.broker.embedded", host, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=output,
        start_new_session=True,
    )
    broker = EmbeddedBroker(Address(reachable(host), port), process, output)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((broker.address.host, port), timeout=1).close()
            return broker
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                code = process.poll()
                broker.stop()
                raise BrokerError(
                    f"the embedded broker did not start at {broker.address.url} (exit code {code})"
                ) from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)


def main() -> None:
    """Serve until standard input ends; the process that started this one holds the other end."""
    from har_edge.mqtt.broker.server import Server

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s embedded broker: %(message)s")
    host, port = sys.argv[1], int(sys.argv[2])
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    Server(listener, DESCRIPTION).serve(over.is_set)


if __name__ == "__main__":
    main()
