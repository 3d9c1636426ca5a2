"""A server that plays one script a connection: MQTT 5 seen from the other side, byte by byte where needed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import mqtt5

from har_edge.mqtt.address import Address

_Kind = TypeVar("_Kind")
_TIMEOUT_S = 10.0


class Ended(Exception):
    """The client has closed the connection."""


class ClientConnection:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray()
        connection.settimeout(_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> mqtt5.Packet:
        """Return the next packet; raises Ended."""
        while True:
            try:
                with memoryview(self._buffer) as view:
                    packet, size = mqtt5.read(view)
                del self._buffer[:size]
                return packet
            except IndexError:
                pass
            except ValueError as error:
                if "protocol version" not in str(error):
                    raise
                raise Ended from None  # a client that got no answer tries 3.1.1, which no script plays
            try:
                piece = self.connection.recv(65536)
            except ConnectionError:
                piece = b""
            if not piece:
                raise Ended
            self._buffer += piece

    def expect(self, kind: type[_Kind]) -> _Kind:
        """Return the next packet of a kind; pings are answered on the way, a goodbye ends the script."""
        while True:
            packet = self.read()
            if isinstance(packet, kind):
                return packet
            if isinstance(packet, mqtt5.DisconnectPacket):
                raise Ended
            assert isinstance(packet, mqtt5.PingReqPacket), f"{packet} came, {kind.__name__} was expected"
            self.send(mqtt5.PingRespPacket())

    def send(self, *packets: object) -> None:
        """Send packets, or plain bytes."""
        data = b"".join(p if isinstance(p, bytes) else p.write() for p in packets)  # type: ignore[attr-defined]
        self.connection.sendall(data)

    def accept(self, **properties: object) -> mqtt5.ConnectPacket:
        """Take CONNECT, send CONNACK."""
        connect = self.expect(mqtt5.ConnectPacket)
        self.send(mqtt5.ConnAckPacket(**properties))  # type: ignore[arg-type]
        return connect

    def idle(self) -> None:
        """Read until the client says goodbye or closes; answer nothing."""
        while not isinstance(self.read(), mqtt5.DisconnectPacket):
            pass


Script = Callable[[ClientConnection], None]


class ScriptedServer:
    """Plays the first script for the first connection, and so on; the last one for all that follow."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts, self.connections, self.errors = scripts, 0, list[BaseException]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            threading.Thread(target=self._play, args=(script, connection), daemon=True).start()

    def _play(self, script: Script, connection: socket.socket) -> None:
        with connection:
            try:
                script(ClientConnection(connection))
            except Ended:
                pass
            except BaseException as error:
                self.errors.append(error)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_TIMEOUT_S)
