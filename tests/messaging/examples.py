"""The messages behind the golden files, which docs/wire.md shows byte by byte.

After a change of the wire format that is meant (it comes with a new version), write the files anew:
    python -m tests.messaging.examples
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from har_edge.messaging.wire import Message, encode

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
    # A live stream: nobody knows the activity, and nothing crosses.
    "bare": Message(stream="s", seq=0, epoch=0, captured=(0.0,), tensors={}),
}


def hex_lines(data: bytes) -> str:
    """Return bytes as 16 hexadecimal numbers a line."""
    return "".join(data[start : start + 16].hex(" ") + "\n" for start in range(0, len(data), 16))


if __name__ == "__main__":
    for name, message in EXAMPLES.items():
        (FOLDER / f"{name}.hex").write_text(hex_lines(encode(message)), encoding="ascii")
