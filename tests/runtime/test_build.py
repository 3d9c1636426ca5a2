"""How much a stage takes from the broker at once."""

from __future__ import annotations

import pytest

from har_edge.config.wiring import Wiring
from har_edge.runtime.build import RECEIVE_LEAST, RECEIVE_MAX, receive_max
from har_edge.tflite.manifest import SliceEntry, TensorSpec


def wiring(*shape: int, makers: int = 1, source: bool = False) -> Wiring:
    tensors = tuple(TensorSpec(f"t{number}", shape, "float32") for number in range(makers))
    entry = SliceEntry("slice.tflite", "0" * 64, 0, 1, tensors, tensors)
    earlier = {} if source else {number: (f"t{number}",) for number in range(makers)}
    return Wiring(makers, entry, {"chest": "t0"} if source else {}, earlier, ("t0",), False)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        (wiring(1, 100), RECEIVE_MAX),
        (wiring(-1, 512, 512), 64),
        (wiring(1, 4096, 4096), RECEIVE_LEAST),
        (wiring(1, 4096, 4096, makers=2), RECEIVE_MAX),
        (wiring(1, 4096, 4096, source=True), RECEIVE_LEAST),
    ],
    ids=["small", "a megabyte", "large", "parts that wait for others", "one source"],
)
def test_large_messages_wait_at_the_broker_unless_parts_wait_for_each_other(taken: Wiring, expected: int) -> None:
    assert receive_max(taken) == expected
