"""The messages of each slice of a manifest, for plans that were not searched for: one for each flow, as stages send."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.tflite.manifest import SliceManifest, TensorSpec


@dataclass(frozen=True, slots=True)
class MessageLoad:
    """The messages that a slice receives and sends for a window, and their bytes."""

    received: int
    received_bytes: int
    sent: int
    sent_bytes: int

    def seconds(self, message_s: float, byte_s: float) -> float:
        """Return the processor seconds of all messages, each of which costs its sender and its taker the same."""
        return (self.received + self.sent) * message_s + self.bytes * byte_s

    @property
    def bytes(self) -> int:
        return self.received_bytes + self.sent_bytes


def message_loads(manifest: SliceManifest) -> tuple[MessageLoad, ...]:
    """Return the messages of each slice. Tensors that no slice makes come from sensors, one message each.

    Bytes are those of tensors before they are packed.
    """
    entries = manifest.slices
    flows = {spec.name: (k, spec.flow) for k, entry in enumerate(entries) for spec in entry.outputs}
    taken = {spec.name for entry in entries for spec in entry.inputs}
    last = max(k for k, entry in enumerate(entries) if any(spec.name not in taken for spec in entry.outputs))
    found = []
    for k, entry in enumerate(entries):
        received = {flows.get(spec.name, (-1, spec.name)) for spec in entry.inputs}
        sends = [spec for spec in entry.outputs if spec.name in taken]
        sent, answers = {spec.flow for spec in sends}, k == last
        found.append(
            MessageLoad(
                len(received),
                len(received) * HEAD_BYTES + sum(map(_bytes, entry.inputs)),
                len(sent) + answers,
                len(sent) * HEAD_BYTES + sum(map(_bytes, sends)) + answers * RESULT_BYTES,
            )
        )
    return tuple(found)


def _bytes(spec: TensorSpec) -> int:
    """Return the bytes of a tensor of one window."""
    return math.prod(abs(size) for size in spec.shape) * np.dtype(spec.dtype).itemsize
