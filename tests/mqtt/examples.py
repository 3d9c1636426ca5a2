"""The messages behind the golden files, which docs/reference/wire.md shows byte by byte.

After a change of the wire format that is meant (it comes with a new version), write the files anew:
    python -m tests.mqtt.examples
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from har_edge.protocol.wire import Message, decode, encode

FOLDER = Path(__file__).parent / "golden"

EXAMPLES: Mapping[str, Message] = {
    # One window of the chest, 2 samples of 2 channels, of an activity that is known.
    "window": Message(
        stream="subject7",
        seq=3,
        epoch=1,
        captured=(1700000000.25,),
        tensors={"chest": np.array([[[1.0, -2.0], [0.5, 9.75]]], np.float32)},
        truth=(4,),
    ),
    # A batch of two windows with two tensors; the second window has no label.
    "batch": Message(
        stream="subject7",
        seq=300,
        epoch=2,
        captured=(1700000000.25, 1700000002.75),
        tensors={
            "arm": np.array([[1, -1, 127], [0, 2, -128]], np.int8),
            "model/concat": np.array([[65535], [256]], np.uint16),
        },
        truth=(4, None),
    ),
    # An activation that was computed without two of the sources.
    "missing": Message(
        stream="subject7",
        seq=3,
        epoch=1,
        captured=(1700000000.25,),
        tensors={"fusion": np.array([[-128, 127]], np.int8)},
        missing=("ankle", "arm"),
    ),
    # The same with the short id of the tensor, and what the sensor had sent before: wire version 3.
    "extended": Message(
        stream="subject7",
        seq=3,
        epoch=1,
        captured=(1700000000.25,),
        tensors={"fusion": np.array([[-128, 127]], np.int8)},
        missing=("ankle", "arm"),
        sent=(0x0123456789ABCDEF, 300),
    ),
    # An activation that travels compressed: 64 numbers of two channels, all zero but for the last.
    "compressed": Message(
        stream="subject7",
        seq=3,
        epoch=1,
        captured=(1700000000.25,),
        tensors={"fusion": np.array([[[0, 0]] * 31 + [[0, 1]]], np.float32)},
    ),
    # A live stream: nobody knows the activity, and nothing crosses.
    "bare": Message(stream="s", seq=0, epoch=0, captured=(0.0,), tensors={}),
}

# The short ids of tensors in the examples that are written in wire version 3.
IDS: Mapping[str, Mapping[str, int]] = {"extended": {"fusion": 17}, "compressed": {"fusion": 17}}
# Those whose tensors travel compressed.
COMPRESSED = frozenset({"compressed"})


def example_bytes(name: str) -> bytes:
    """Return the bytes of an example."""
    compressed = EXAMPLES[name].tensors if name in COMPRESSED else ()
    return encode(EXAMPLES[name], 3, IDS[name], compressed) if name in IDS else encode(EXAMPLES[name])


def golden_bytes(name: str) -> bytes:
    """Return the bytes in an example's file."""
    return bytes.fromhex((FOLDER / f"{name}.hex").read_text(encoding="ascii"))


def read_example(name: str, payload: bytes) -> Message:
    """Read bytes as those who know the example's ids do."""
    return decode(payload, names={number: tensor for tensor, number in IDS.get(name, {}).items()})


def hex_lines(data: bytes) -> str:
    """Return bytes as 16 hexadecimal numbers a line."""
    return "".join(data[start : start + 16].hex(" ") + "\n" for start in range(0, len(data), 16))


if __name__ == "__main__":
    for name in EXAMPLES:
        (FOLDER / f"{name}.hex").write_text(hex_lines(example_bytes(name)), encoding="ascii")
