"""The tensors of a micro-batch as bytes: one after the other, little-endian, in the order of a stage's description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import MessageError
from har_edge.learning.updates.compression import PackedVector
from har_edge.learning.updates.vector_parts import split_vector
from har_edge.protocol.training import VectorPart
from har_edge.tflite.gradient.spec import PortSpec
from har_edge.tflite.gradient.stage_spec import port_bytes, sum_bytes

Array = NDArray[Any]
Arrays = Mapping[str, Array]
# Parts count values of four bytes, as those of vectors do.
_WORD = 4


def pack_tensors(arrays: Arrays, ports: Iterable[PortSpec]) -> bytes:
    """Return the values of some tensors, by name, as bytes. Raises MessageError for another shape or type."""
    parts = []
    for port in ports:
        values = arrays[port.name]
        if values.shape != tuple(port.shape) or values.dtype != np.dtype(port.dtype):
            raise MessageError(
                f"tensor {port.name} is {values.dtype} {list(values.shape)}; expected {port.dtype} {list(port.shape)}"
            )
        parts.append(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
    return b"".join(parts)


def unpack_tensors(data: bytes, ports: Sequence[PortSpec]) -> dict[str, Array]:
    """Return tensors by name, as views of the bytes. Raises MessageError for another number of bytes."""
    expected = sum_bytes(ports)
    if len(data) != expected:
        raise MessageError(f"{len(data)} bytes of tensors came; expected {expected}, as the stage's description says")
    arrays, start = {}, 0
    for port in ports:
        dtype, size = np.dtype(port.dtype), port_bytes(port)
        values = np.frombuffer(data, dtype.newbyteorder("<"), size // dtype.itemsize, start)
        arrays[port.name] = values.astype(dtype, copy=False).reshape(port.shape)
        start += size
    return arrays


def split_bytes(kind: str, data: bytes) -> list[VectorPart]:
    """Return bytes as parts that a small broker forwards."""
    return split_vector(PackedVector(kind, -(-len(data) // _WORD), data))
