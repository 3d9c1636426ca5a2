"""Bytes that go through a socket in pieces of any size come out as they went in."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("mqtt5")

from har_edge.mqtt.clients import byte_queues
from har_edge.mqtt.clients.byte_queues import KEPT_BYTES, READ_BYTES, ReadBuffer, WriteQueue


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        for one in (left, right):
            one.setblocking(False)
        yield left, right


@pytest.mark.parametrize("tls", [False, True])
def test_what_is_queued_arrives_whole_and_in_order(pair: tuple[socket.socket, socket.socket], *, tls: bool) -> None:
    rng, queue, buffer, got = random.Random(1), WriteQueue(), ReadBuffer(), bytearray()
    pieces = [rng.randbytes(rng.choice([1, 4, 100, 20_000, 300_000])) for _ in range(300)]
    whole, sent, left = b"".join(pieces), 0, iter(pieces)
    while len(got) < len(whole):
        for piece in (piece for _, piece in zip(range(rng.randrange(4)), left, strict=False)):
            queue.append(piece)
        sent += queue.flush(pair[0], tls=tls)
        buffer.read(pair[1], rng.choice([1, 1000, READ_BYTES]))
        taken = rng.randrange(len(buffer) + 1)
        got += buffer.view[:taken]
        buffer.take(taken)
    assert bytes(got) == whole and sent == len(whole) and not queue and not len(buffer)


def test_a_large_piece_goes_to_the_socket_as_it_is_behind_small_ones() -> None:
    seen: list[object] = []

    class Socket:
        def sendmsg(self, pieces: list[bytes]) -> int:
            seen.extend(pieces)
            return sum(map(len, pieces)) - 3

        def send(self, piece: memoryview) -> int:
            seen.append(piece)
            return len(piece)

    queue, large = WriteQueue(), bytes(100_000)
    queue.extend([b"ack", b"head", large])
    assert queue.flush(Socket(), tls=False) == 100_004  # type: ignore[arg-type]
    assert seen[2] is large and queue, "what the socket did not accept waits"
    assert queue.flush(Socket(), tls=False) == 3 and not queue  # type: ignore[arg-type]
    assert isinstance(seen[3], memoryview) and seen[3].obj is large


def test_a_lost_connection_is_told_and_one_that_is_full_or_empty_is_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    queue, buffer = WriteQueue(), ReadBuffer()
    queue.append(bytes(64 * 1024 * 1024))
    assert 0 < queue.flush(pair[0], tls=False) < 64 * 1024 * 1024 and queue
    assert queue.flush(pair[0], tls=False) == 0
    assert ReadBuffer().read(pair[0]) is None and not buffer.more
    pair[0].close()
    with pytest.raises(OSError, match=r"closed|descriptor"):
        queue.flush(pair[0], tls=False)
    while buffer.read(pair[1]):
        buffer.take(len(buffer))
    assert buffer.read(pair[1]) == 0


def test_a_buffer_grows_with_what_came_and_is_let_go_when_it_is_empty(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_queues, "KEPT_BYTES", 2 * READ_BYTES)
    assert KEPT_BYTES > READ_BYTES
    queue, buffer, whole = WriteQueue(), ReadBuffer(), random.Random(2).randbytes(5 * READ_BYTES)
    queue.append(whole)
    while len(buffer) < len(whole):
        queue.flush(pair[0], tls=False)
        buffer.read(pair[1])
    assert buffer.view == whole and len(buffer._memory) <= 4 * len(whole)
    buffer.take(len(whole))
    assert len(buffer._memory) == READ_BYTES
    buffer.put(b"rest")
    assert buffer.view == b"rest"
