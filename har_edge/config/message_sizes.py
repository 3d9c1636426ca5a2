"""The sizes of the messages of a cut model: limits of nodes and brokers, and memory, follow from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec
from har_edge.tflite.packing import Rounding, parse_packing

# A message's own fields, at most: stream, numbers, missing sources, and what else docs/reference/wire.md lists.
HEAD_BYTES = 16 * 1024
# Bytes of a tensor beside its data: its id or name, dtype, shape and lengths.
TENSOR_BYTES = 128
_WIRE_BYTES = {Rounding.FLOAT16: 2, Rounding.INT8: 1}


def tensor_bytes(spec: TensorSpec, *, packed: bool = False) -> int:
    """Return the bytes of a tensor of one window, in the slices or (`packed`) as it travels, where zstd saves nothing.

    A dimension of any size counts as 1.
    """
    each = np.dtype(spec.dtype).itemsize
    if packed and spec.packing:
        each = _WIRE_BYTES.get(parse_packing(spec.packing).rounding, each)
    return math.prod(max(1, size) for size in spec.shape) * each


def message_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the most bytes that a message with these tensors has for one window."""
    return HEAD_BYTES + sum(tensor_bytes(spec, packed=True) + TENSOR_BYTES + 4 * len(spec.name) for spec in specs)


def window_size(entry: SliceEntry) -> int:
    """Return about how many bytes the parts of one window take in the memory of a slice, with their messages."""
    return HEAD_BYTES + sum(map(tensor_bytes, entry.inputs))


def sends_bytes(entry: SliceEntry, sends: Collection[str]) -> int:
    """Return the most bytes of a message with one window that a slice sends to others, 0 where it sends none."""
    flows: dict[int, list[TensorSpec]] = {}
    for spec in entry.outputs:
        if spec.name in sends:
            flows.setdefault(spec.flow, []).append(spec)
    return max(map(message_bytes, flows.values()), default=0)


# A plan may deploy a generation while the one before it drains, and a training keeps its last checkpoint until the next
# one is whole. The broker's own database and queues come beside.
_GENERATIONS, _CHECKPOINTS, _SHARE, _LEAST_BROKER_BYTES = 2, 2, 1.1, 64 * 1024 * 1024


def broker_bytes(manifest: SliceManifest, file_bytes: int, under_way_bytes: int) -> int:
    """Return how many bytes a broker needs for a plan with this cut.

    Args:
        file_bytes: of all files of the slices together. A checkpoint of a training holds as much.
        under_way_bytes: most bytes of the messages of all windows under way, at each cut of the model.
    """
    retained = (_GENERATIONS + _CHECKPOINTS) * file_bytes
    return int(_SHARE * (retained + len(manifest.slices) * under_way_bytes)) + _LEAST_BROKER_BYTES


def largest_message(manifest: SliceManifest) -> int:
    """Return the most bytes of a message with one window, of all that sensors and slices of this cut send."""
    taken = {spec.name for entry in manifest.slices for spec in entry.inputs}
    made = {spec.name for entry in manifest.slices for spec in entry.outputs}
    # One sensor may send all sources in one message.
    windows = {spec.name: spec for entry in manifest.slices for spec in entry.inputs if spec.name not in made}
    return max(message_bytes(windows.values()), *(sends_bytes(entry, taken) for entry in manifest.slices))
