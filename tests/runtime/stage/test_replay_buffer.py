"""What a stage remembers of windows, and how much memory that takes."""

from __future__ import annotations

import numpy as np

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.runtime.stage.replay_buffer import (
    LEAST_OUTPUT_BYTES,
    LEAST_WINDOW_BYTES,
    OutputCache,
    ReplayBuffer,
)
from har_edge.runtime.stage.streams import MOST_STREAMS, Streams
from har_edge.runtime.stage.window import PartialWindow


def window(seq: int, nbytes: int = 100, stream: str = "s") -> PartialWindow:
    """Return a window of which one part came, in a message with something large beside it."""
    junk = {"code": np.zeros(nbytes, np.uint8), "junk": np.zeros(1_000_000, np.uint8)}
    payload = wire.encode(wire.Message(stream, seq, 1, (1.0,), junk))
    message = wire.decode(payload, len(payload))
    parts = {"code": message.tensors["code"]}
    return PartialWindow(
        message, 0.0, 9.0, parts=parts, deliveries=[Delivery("t", payload, (1, seq))], nbytes=len(payload)
    )


def test_only_the_parts_are_held_not_the_messages_that_brought_them() -> None:
    buffer = ReplayBuffer(10_000)
    assert buffer.keep(window(0, 5000), 1.0) == []
    shelved = buffer.take(("s", 0, 1))
    assert shelved is not None and shelved.nbytes == 5000 and shelved.at == 1.0 and not buffer
    assert shelved.window.parts["code"].base is None and shelved.window.parts["code"].nbytes == 5000
    assert not shelved.window.deliveries and not shelved.window.message.tensors and shelved.window.message.count == 1


def test_the_oldest_go_for_the_newest_and_what_is_too_large_is_not_kept() -> None:
    buffer = ReplayBuffer(12_000)
    assert buffer.keep(window(0, 5000), 1.0) == [] == buffer.keep(window(1, 5000), 2.0)
    assert [one.message.seq for one in buffer.keep(window(2, 5000), 3.0)] == [0]
    assert [one.message.seq for one in buffer.keep(window(3, 12_001), 4.0)] == [3]
    assert [buffer.take(("s", seq, 1)) is not None for seq in range(4)] == [False, True, True, False]


def test_a_share_that_holds_most_loses_its_own_windows() -> None:
    buffer = ReplayBuffer(20_000)
    assert buffer.keep(window(0, 5000, "quiet"), 1.0, "quiet") == []
    gone = [one.key for seq in range(6) for one in buffer.keep(window(seq, 5000, "flood"), 2.0 + seq, "flood")]
    assert gone == [("flood", 0), ("flood", 1), ("flood", 2)]
    assert [one.key for one in buffer.expire(99.0)] == [("quiet", 0), ("flood", 3), ("flood", 4), ("flood", 5)]
    assert buffer.keep(window(0, 15_000), 3.0) == [] and len(buffer) == 1


def test_many_small_windows_are_bounded_in_number() -> None:
    buffer = ReplayBuffer(3 * LEAST_WINDOW_BYTES)
    gone = [one.message.seq for seq in range(5) for one in buffer.keep(window(seq, 1), float(seq))]
    assert gone == [0, 1] and len(buffer) == 3
    assert [one.message.seq for one in buffer.expire(4.0)] == [2, 3] and len(buffer) == 1
    assert buffer.keep(window(9, 1), 5.0) == [] == buffer.keep(window(0, 1, stream="other"), 5.0)
    assert [one.message.seq for one in buffer.take_before("s", 2.0)] == [4, 9] and len(buffer) == 1


def test_outputs_are_bounded_in_bytes_and_number_and_come_as_they_were() -> None:
    cache = OutputCache(4 * LEAST_OUTPUT_BYTES)
    for seq in range(10):
        cache.keep(("s", seq), float(seq), (1.0,), [Outgoing("t", b"%d" % seq, needs_subscriber=True)])
    assert len(cache) == 4 and cache.find(("s", 5)) is None
    delivery = Delivery("x", b"", (1, 1))
    assert cache.replay(("s", 9), 20.0, (delivery,)) == [Outgoing("t", b"9", (delivery,), needs_subscriber=True)]
    again = cache.find(("s", 9))
    assert again is not None and again[0] == 20.0
    cache.keep(("s", 9), 21.0, (1.0,), [Outgoing("t", bytes(2 * LEAST_OUTPUT_BYTES))])
    assert len(cache) == 3 and cache.find(("s", 6)) is None
    cache.keep(("s", 10), 22.0, (1.0,), [Outgoing("t", bytes(5 * LEAST_OUTPUT_BYTES))])
    assert len(cache) == 0


def test_of_many_streams_those_that_moved_longest_ago_are_forgotten() -> None:
    streams = Streams()
    for number in range(MOST_STREAMS):
        streams.of(str(number)).last_run = number
    streams.of("0")
    streams.of("new")
    assert len(streams) == MOST_STREAMS
    assert [streams.find(name).last_run for name in ("0", "1", "2", "new")] == [0, -1, 2, -1]
