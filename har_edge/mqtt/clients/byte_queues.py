"""The bytes of a connection on their way out and in: many packets in each system call, large ones without copies."""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Iterable

from har_edge.mqtt.clients.packets import LARGE_BYTES, would_block

READ_BYTES = 256 * 1024
KEPT_BYTES = 4 * 1024 * 1024  # a buffer that has grown larger is let go once it is empty
_MOST_PIECES = 256  # in one system call; POSIX promises 16, Linux takes 1024 (IOV_MAX)


class WriteQueue:
    """Pieces of packets to write. TLS takes one piece a call, so that small ones are joined; else nothing is copied."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def append(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def extend(self, pieces: Iterable[bytes]) -> None:
        self._pieces.extend(pieces)

    def clear(self) -> None:
        self._pieces.clear()

    def flush(self, connection: socket.socket, *, tls: bool) -> int:
        """Write as much as the socket accepts, and return how many bytes; raises OSError for a lost connection."""
        sent = 0
        while self._pieces:
            try:
                size, wanted = self._send_joined(connection) if tls else self._send(connection)
            except OSError as error:
                if not would_block(error):
                    raise
                break
            sent += size
            if size < wanted:
                break
        return sent

    def _send(self, connection: socket.socket) -> tuple[int, int]:
        """Write pieces as they are; return how many bytes were written, and how many there were."""
        if len(self._pieces) == 1:
            pieces = [self._pieces[0]]
            size = connection.send(pieces[0])
        else:
            pieces = list(itertools.islice(self._pieces, _MOST_PIECES))
            size = connection.sendmsg(pieces)
        left = size
        for piece in pieces:
            if left < len(piece):
                self._pieces[0] = memoryview(piece)[left:]
                break
            left -= len(piece)
            self._pieces.popleft()
        return size, sum(map(len, pieces))

    def _send_joined(self, connection: socket.socket) -> tuple[int, int]:
        """Write small pieces joined up to a bound, so that a long queue is not copied for each call."""
        pieces = [self._pieces.popleft()]
        size = len(pieces[0])
        while self._pieces and size < LARGE_BYTES and len(self._pieces[0]) < LARGE_BYTES:
            pieces.append(self._pieces.popleft())
            size += len(pieces[-1])
        data, sent = pieces[0] if len(pieces) == 1 else b"".join(pieces), 0
        try:
            sent = connection.send(data)
        finally:
            if sent < size:
                self._pieces.appendleft(memoryview(data)[sent:])
        return sent, size


class ReadBuffer:
    """Bytes that came and are not taken yet, in memory that a socket reads into; it grows as they come."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(READ_BYTES))
        self._start = self._end = 0
        self.more = False  # whether the last read filled its room, so that more may be there

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def view(self) -> memoryview:
        """The bytes; release it before the next read."""
        return self._memory[self._start : self._end]

    def clear(self) -> None:
        self._start = self._end = 0
        if len(self._memory) > KEPT_BYTES:
            self._memory = memoryview(bytearray(READ_BYTES))

    def put(self, content: bytes) -> None:
        """Begin anew with these bytes."""
        self.clear()
        self._make_room(len(content))
        self._memory[: len(content)] = content
        self._end = len(content)

    def take(self, size: int) -> None:
        """Forget the first bytes."""
        self._start += size
        if self._start == self._end:
            self.clear()

    def read(self, connection: socket.socket, most_bytes: int = READ_BYTES) -> int | None:
        """Read once and return the number of bytes: None when none are there yet, 0 at the end of the connection."""
        self._make_room(1)
        room = min(most_bytes, READ_BYTES, len(self._memory) - self._end)
        try:
            size = connection.recv_into(self._memory[self._end :], room)
        except OSError as error:
            if not would_block(error):
                raise
            self.more = False
            return None
        self._end += size
        self.more = size == room
        return size

    def _make_room(self, size: int) -> None:
        """Have room behind the last byte: at the front of the memory where that is enough, else in twice as much."""
        if self._end + size <= len(self._memory):
            return
        count, larger = len(self), self._memory
        if 2 * (count + size) > len(larger):
            larger = memoryview(bytearray(2 * max(len(larger), count + size)))
        larger[:count] = self._memory[self._start : self._end]
        self._memory, self._start, self._end = larger, 0, count
