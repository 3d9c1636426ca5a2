"""What a deployed stage remembers of windows, and how much memory that takes."""

from __future__ import annotations

import numpy as np

from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.runtime.stage.join import PartialWindow
from har_edge.runtime.stage.replay_buffer import ReplayBuffer


def gathered(seq: int, nbytes: int = 100) -> PartialWindow:
    """A window of which one part came, in a message with something large beside it."""
    junk = {"code": np.zeros(nbytes, np.uint8), "junk": np.zeros(1_000_000, np.uint8)}
    payload = wire.encode(wire.Message("s", seq, 1, (1.0,), junk))
    message = wire.decode(payload, len(payload))
    parts = {"code": message.tensors["code"]}
    return PartialWindow(
        message, 0.0, 9.0, parts=parts, deliveries=[Delivery("t", payload, (1, seq))], nbytes=len(payload)
    )


def test_only_the_parts_are_held_not_the_messages_that_brought_them() -> None:
    recall = ReplayBuffer(1000)
    assert recall.keep(gathered(0), 1.0) == []
    past = recall.find(("s", 0))
    assert past is not None and past.nbytes == 100 and past.at == 1.0
    assert past.gathered.parts["code"].base is None and past.gathered.parts["code"].nbytes == 100
    assert not past.gathered.deliveries and not past.gathered.message.tensors and past.gathered.message.count == 1


def test_the_oldest_go_for_the_newest_and_what_is_too_large_is_not_kept() -> None:
    recall = ReplayBuffer(250)
    assert recall.keep(gathered(0), 1.0) == [] == recall.keep(gathered(1), 2.0)
    assert [one.message.seq for one in recall.keep(gathered(2), 3.0)] == [0]
    assert [one.message.seq for one in recall.keep(gathered(3, 251), 4.0)] == [3]
    assert [recall.find(("s", seq)) is not None for seq in range(4)] == [False, True, True, False]
