"""The wire format: a message with tensors <-> MessagePack bytes (docs/wire.md gives every field with example bytes).

A message is a MessagePack array, so that any MessagePack library reads it:

    [1, stream, seq, epoch, captured, truth, [[name, dtype, shape, data], ...]]
    [2, stream, seq, epoch, captured, truth, [[name, dtype, shape, data], ...], missing]

Version 2 is for activations of windows that were run without some sources, and for nothing else. One message carries
one window, or a batch of consecutive windows: `captured` and `truth` then have one entry a window, and the tensors have
the batch as their first dimension (the stage that takes them checks that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.messaging.topics import MAX_ID_LENGTH, is_id

Array = npt.NDArray[Any]

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
MAX_BATCH = 1024
MAX_TENSORS = 64
MAX_RANK = 8
MAX_MISSING = 64

# Wire code -> little-endian NumPy dtype. Bools travel as one byte.
DTYPES = {
    code: np.dtype(code if code in {"i1", "u1", "b1"} else "<" + code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8")
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)]
_Label = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


@dataclass(frozen=True, slots=True)
class Message:
    """One window on its way, or a batch of consecutive ones.

    `seq` is the number of the first window; `captured` holds, for each window, when its last sample was captured
    (seconds since the Unix epoch, by the sensor's clock); `truth` the recording's labels where they are known (None
    stands for a window that has none). `tensors` maps names to arrays; `missing` names the sources that they were
    computed without.
    """

    stream: str
    seq: int
    epoch: int
    captured: tuple[float, ...]
    tensors: Mapping[str, Array]
    truth: tuple[int | None, ...] | None = field(default=None)
    missing: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.captured)


class _Tensor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    dtype: str
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_RANK)]
    data: memoryview


class _Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    version: int
    stream: str
    seq: _Count
    epoch: _Count
    captured: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    truth: tuple[_Label | None, ...] | None
    tensors: Annotated[tuple[_Tensor, ...], msgspec.Meta(max_length=MAX_TENSORS)]


class _Lacking(_Envelope, array_like=True, frozen=True, forbid_unknown_fields=True):
    missing: Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=MAX_MISSING)]


_encode = msgspec.msgpack.Encoder().encode
# The first two bytes, array of so many and version, say which of the two it is.
_HEADS = {
    b"\x97\x01": msgspec.msgpack.Decoder(_Envelope).decode,
    b"\x98\x02": msgspec.msgpack.Decoder(_Lacking).decode,
}


def encode(message: Message) -> bytes:
    """Return the bytes of a message.

    Raises MessageError for what `decode` would refuse: too many windows, tensors or dimensions, an unknown dtype,
    missing sources that are no ids.
    """
    if not 1 <= message.count <= MAX_BATCH or len(message.tensors) > MAX_TENSORS:
        raise MessageError(
            f"{message.count} windows with {len(message.tensors)} tensors; "
            f"expected 1 to {MAX_BATCH} windows and at most {MAX_TENSORS} tensors a message"
        )
    _check_missing(message.missing)
    tensors = []
    for name, array in message.tensors.items():
        code = _CODES.get(array.dtype)
        if array.ndim > MAX_RANK:
            raise MessageError(f"tensor {name!r} has {array.ndim} dimensions; expected at most {MAX_RANK}")
        if code is None:
            raise MessageError(f"tensor {name!r} is {array.dtype}; expected one of {', '.join(DTYPES)} (little-endian)")
        tensors.append((name, code, array.shape, np.ascontiguousarray(array).data.cast("B") if array.size else b""))
    fields = (message.stream, message.seq, message.epoch, message.captured, message.truth, tuple(tensors))
    return _encode((2, *fields, message.missing) if message.missing else (1, *fields))


def decode(payload: bytes | memoryview, limit: int = MAX_PAYLOAD_BYTES) -> Message:
    """Return the message in a payload; its tensors are read-only views of the payload, not copies.

    Raises MessageError for anything but a well-formed message of at most `limit` bytes.
    """
    _check_head(payload, limit)
    try:
        envelope: _Envelope = _HEADS[bytes(payload[:2])](payload)
    except (msgspec.DecodeError, UnicodeDecodeError, MemoryError, RecursionError) as error:
        raise MessageError(
            f"{len(payload)} bytes came that are no message of wire version {payload[1]}: {error}"
        ) from None
    if not is_id(envelope.stream):
        raise MessageError(f"stream {envelope.stream!r} came; expected letters, digits, '_' or '-'")
    if not all(map(math.isfinite, envelope.captured)):
        raise MessageError(f"capture times {envelope.captured} came; expected finite seconds since 1970")
    count = len(envelope.captured)
    if envelope.truth is not None and len(envelope.truth) != count:
        raise MessageError(f"{len(envelope.truth)} labels came for {count} windows; expected one a window")
    missing = envelope.missing if isinstance(envelope, _Lacking) else ()
    _check_missing(missing)
    tensors: dict[str, Array] = {}
    for tensor in envelope.tensors:
        if tensor.name in tensors:
            raise MessageError(f"tensor {tensor.name!r} came twice in one message; expected each name once")
        tensors[tensor.name] = _view(tensor)
    return Message(envelope.stream, envelope.seq, envelope.epoch, envelope.captured, tensors, envelope.truth, missing)


def _check_head(payload: bytes | memoryview, limit: int) -> None:
    """Refuse by size and version before anything is parsed, so that nothing is allocated for a stranger."""
    if len(payload) > limit:
        raise MessageError(
            f"{len(payload)} bytes came; expected at most {limit}; raise the limit or send fewer windows"
        )
    if len(payload) < 2 or not (0x90 <= payload[0] <= 0x9F or payload[0] in (0xDC, 0xDD)):
        raise MessageError(f"{len(payload)} bytes came that start no MessagePack array; expected a message")
    if bytes(payload[:2]) not in _HEADS:
        version = payload[1] if payload[0] <= 0x9F and payload[1] < 0x80 else "unknown"
        raise MessageError(
            f"wire version {version} with the head {bytes(payload[:2]).hex()} came; expected version 1 with "
            "7 fields or version 2 with 8; update the older of the two nodes"
        )


def _check_missing(missing: tuple[str, ...]) -> None:
    if len(missing) > MAX_MISSING or len(set(missing)) < len(missing) or not all(map(is_id, missing)):
        raise MessageError(
            f"missing sources {', '.join(map(repr, missing))} came; expected at most {MAX_MISSING} ids, each once"
        )


def _view(tensor: _Tensor) -> Array:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise MessageError(f"tensor {tensor.name!r} has dtype {tensor.dtype!r}; expected one of {', '.join(DTYPES)}")
    expected = math.prod(tensor.shape) * dtype.itemsize
    if tensor.data.nbytes != expected:
        raise MessageError(
            f"tensor {tensor.name!r} has {tensor.data.nbytes} bytes; "
            f"expected {expected} for {tensor.dtype} {tensor.shape}"
        )
    try:
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    except ValueError as error:  # no element, but dimensions that NumPy cannot count
        raise MessageError(f"tensor {tensor.name!r} has the shape {tensor.shape}, which is no array: {error}") from None
