"""A broker that speaks no MQTT 5, each in its own way: the embedded one behind a door that turns MQTT 5 away."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from types import TracebackType

from har_edge.mqtt.address import Address


class Manner(enum.Enum):
    """What happens to a client that comes with MQTT 5."""

    CLOSES = "closes without an answer"  # RabbitMQ 3.10, rumqttd
    REFUSES = "CONNACK of 3.1.1, return code 1"  # aedes, Mosquitto before 1.6
    SILENT = "never answers"  # amqtt


class OldBroker:
    """Passes on what clients of 3.1.1 say; `refused` counts the others. Use as a context manager."""

    def __init__(self, behind: Address, manner: Manner) -> None:
        self._behind, self._manner = behind, manner
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self.refused = 0
        self._open: list[socket.socket] = []

    def __enter__(self) -> OldBroker:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            first = client.recv(65536)
            if not first:
                return
            if first[first.index(b"MQTT") + 4] == 5:
                self._turn_away(client)
                return
            behind = socket.create_connection((self._behind.host, self._behind.port))
            self._open.append(behind)
            behind.sendall(first)
            threading.Thread(target=_pump, args=(behind, client), daemon=True).start()
            _pump(client, behind)
        except (OSError, ValueError):
            client.close()

    def _turn_away(self, client: socket.socket) -> None:
        self.refused += 1
        if self._manner is Manner.REFUSES:
            client.sendall(bytes([0x20, 2, 0, 1]))
        if self._manner is not Manner.SILENT:
            client.shutdown(socket.SHUT_RDWR)
            client.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
