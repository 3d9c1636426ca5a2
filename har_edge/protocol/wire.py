"""The wire format: a message with tensors <-> MessagePack bytes (docs/reference/wire.md shows every field).

A message is a MessagePack array, so that any MessagePack library reads it:

    [1, stream, seq, epoch, captured, truth, [[name, dtype, shape, data], ...]]
    [2, stream, seq, epoch, captured, truth, [[name, dtype, shape, data], ...], missing]
    [3, stream, seq, epoch, captured, truth, [[ref, dtype, shape, data], ...], fields]

Version 2 is for activations of windows that were run without some sources, and for nothing else. Version 3 is for
senders whose manifest allows it: `ref` is the short id that the manifest gives a tensor, or a name; `fields` maps
numbers to further values, of which a reader may ignore unknown even ones, but not unknown odd ones (as the elective and
critical options of CoAP, RFC 7252 section 5.4.1). A dtype with `z` before it says that the data are compressed.

One message carries one window, or a batch of consecutive windows: `captured` and `truth` then have one entry a window,
and the tensors have the batch as their first dimension (the stage that takes them checks that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.protocol.compression import compress, expand
from har_edge.protocol.topics import MAX_ID_LENGTH, is_id

Array = npt.NDArray[Any]

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
MAX_BATCH = 1024
MAX_TENSORS = 64
MAX_TENSORS_3 = 4096  # from version 3 on; what a reader allocates for a count that only claims to be so large: 32 KiB
MAX_NAME = 1024
MAX_RANK = 8
MAX_MISSING = 64
MAX_FIELDS = 32
MAX_COUNT = 2**62
NEWEST = 3

# Wire code -> little-endian NumPy dtype. Bools travel as one byte.
DTYPES = {
    code: np.dtype(code if code in {"i1", "u1", "b1"} else "<" + code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8")
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
COMPRESSED = "z"  # before a code: the data are a frame of Zstandard (protocol/compression.py), from version 3 on

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)]
_Label = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
_Dtype = Annotated[str, msgspec.Meta(max_length=8)]
_Ref = Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | _Name
_Missing = Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=MAX_MISSING)]
_Run = Annotated[int, msgspec.Meta(ge=0)]  # MessagePack has no integer above 2^64 - 1
_Key = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]

NO_IDS: Mapping[str, int] = MappingProxyType({})
NO_NAMES: Mapping[int, str] = MappingProxyType({})


class Field(IntEnum):
    """The fields of version 3 that this program reads; docs/reference/wire.md names those that are reserved."""

    MISSING = 1
    SENT = 2


class Message(msgspec.Struct, frozen=True, gc=False):
    """One window on its way, or a batch of consecutive ones.

    `seq` is the number of the first window; `captured` holds, for each window, when its last sample was captured
    (seconds since the Unix epoch, by the sensor's clock); `truth` the recording's labels where they are known (None
    stands for a window that has none). `tensors` maps names to arrays; `missing` names the sources that they were
    computed without. `sent` is a pair: the run of the sensor for this stream (64 bits that each start draws at
    random), and how many windows of the stream that run had sent before the first one of this message. `unknown` are
    the ids of tensors that came, but that the reader has no name for.
    """

    stream: str
    seq: int
    epoch: int
    captured: tuple[float, ...]
    tensors: Mapping[str, Array]
    truth: tuple[int | None, ...] | None = None
    missing: tuple[str, ...] = ()
    sent: tuple[int, int] | None = None
    unknown: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.captured)

    @property
    def content(self) -> str:
        """The content of the message, for a log."""
        named = ", ".join(self.tensors) or "none"
        if not self.unknown:
            return named
        ids = ", ".join(map(str, self.unknown[:8]))
        return f"{named} and tensors of the ids {ids}, unknown here: copy the folder of slices to all nodes"


class _Tensor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    ref: _Name
    dtype: _Dtype
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_RANK)]
    data: memoryview


class _Head(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    version: int
    stream: _Id
    seq: _Count
    epoch: _Count
    captured: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    truth: tuple[_Label | None, ...] | None


class _Envelope(_Head, array_like=True, frozen=True, forbid_unknown_fields=True):
    tensors: Annotated[tuple[_Tensor, ...], msgspec.Meta(max_length=MAX_TENSORS)]


class _Lacking(_Envelope, array_like=True, frozen=True, forbid_unknown_fields=True):
    missing: _Missing


class _ShortTensor(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    ref: _Ref
    dtype: _Dtype
    shape: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=MAX_RANK)]
    data: memoryview


class _Extended(_Head, array_like=True, frozen=True, forbid_unknown_fields=True):
    tensors: Annotated[tuple[_ShortTensor, ...], msgspec.Meta(max_length=MAX_TENSORS_3)]
    # Raw: the value of a field that nobody here knows is passed over, not built.
    fields: Annotated[dict[_Key, msgspec.Raw], msgspec.Meta(max_length=MAX_FIELDS)]


_encode = msgspec.msgpack.Encoder().encode
# The first two bytes, array of so many and version, say which of the three it is.
_HEADS: Mapping[bytes, Callable[[bytes | memoryview], _Envelope | _Extended]] = {
    b"\x97\x01": msgspec.msgpack.Decoder(_Envelope).decode,
    b"\x98\x02": msgspec.msgpack.Decoder(_Lacking).decode,
    b"\x98\x03": msgspec.msgpack.Decoder(_Extended).decode,
}
_read_missing = msgspec.msgpack.Decoder(_Missing).decode
_read_sent = msgspec.msgpack.Decoder(tuple[_Run, _Count]).decode


def encode(
    message: Message, version: int = 1, ids: Mapping[str, int] = NO_IDS, compressed: Collection[str] = ()
) -> bytes:
    """Return the bytes of a message, for readers of this wire version at least (as the manifest says).

    Args:
        message: `sent` is left out below version 3, which has no place for it; `unknown` tensors always are.
        version: 1 writes version 1, or 2 where sources are missing; 3 writes version 3.
        ids: the short ids of tensors, which stand for their names from version 3 on.
        compressed: the names of tensors that travel compressed where that makes them smaller, from version 3 on.

    Raises MessageError for what `decode` would refuse: too many windows, tensors or dimensions, an unknown dtype, a
    name that is too long, missing sources that are no ids, figures out of range.
    """
    most = MAX_TENSORS if version < 3 else MAX_TENSORS_3
    if not 1 <= message.count <= MAX_BATCH or len(message.tensors) > most:
        hint = "" if version >= 3 or len(message.tensors) <= MAX_TENSORS else _CUT_AGAIN
        raise MessageError(
            f"{message.count} windows with {len(message.tensors)} tensors; "
            f"expected 1 to {MAX_BATCH} windows and at most {most} tensors a message{hint}"
        )
    _check(message)
    short = ids if version >= 3 else NO_IDS
    tensors = tuple([_pack(short.get(name, name), array) for name, array in message.tensors.items()])
    if compressed and version >= 3:
        tensors = tuple(
            [
                _compress(packed, array) if name in compressed else packed
                for packed, (name, array) in zip(tensors, message.tensors.items(), strict=True)
            ]
        )
    head = (message.stream, message.seq, message.epoch, message.captured, message.truth, tensors)
    if version >= 3:
        fields: dict[int, Any] = {Field.MISSING.value: message.missing} if message.missing else {}
        if message.sent is not None:
            fields[Field.SENT.value] = message.sent
        return _encode((3, *head, fields))
    return _encode((2, *head, message.missing) if message.missing else (1, *head))


_CUT_AGAIN = "; cut the model again with `har-edge slice --wire 3`"


_Packed = tuple[str | int, str, tuple[int, ...], memoryview | bytes]


def _compress(packed: _Packed, array: Array) -> _Packed:
    """Return a tensor compressed, or as it was where that is no longer."""
    ref, code, shape, data = packed
    frame = compress(array)
    return (ref, COMPRESSED + code, shape, frame) if len(frame) + len(COMPRESSED) < len(data) else packed


def _pack(ref: str | int, array: Array) -> _Packed:
    code = _CODES.get(array.dtype)
    if code is None:
        raise MessageError(f"tensor {ref!r} is {array.dtype}; expected one of {', '.join(DTYPES)} (little-endian)")
    if array.ndim > MAX_RANK:
        raise MessageError(f"tensor {ref!r} has {array.ndim} dimensions; expected at most {MAX_RANK}")
    if isinstance(ref, str) and not 1 <= len(ref) <= MAX_NAME:
        raise MessageError(
            f"the name of tensor {ref[:64]!r}... has {len(ref)} characters; expected 1 to {MAX_NAME}{_CUT_AGAIN}"
        )
    return ref, code, array.shape, np.ascontiguousarray(array).data.cast("B") if array.size else b""


def _check(message: Message) -> None:
    """Refuse to send what no reader would take."""
    _check_head_fields(message.stream, message.captured, message.truth)
    if not (0 <= message.seq <= MAX_COUNT and 0 <= message.epoch <= MAX_COUNT):
        raise MessageError(f"seq {message.seq}, epoch {message.epoch}; expected 0 to 2^62")
    if message.truth is not None:
        for label in message.truth:
            if label is not None and not -(2**31) <= label < 2**31:
                raise MessageError(f"label {label}; expected one of 32 bits")
    if message.sent is not None and not (0 <= message.sent[0] < 2**64 and 0 <= message.sent[1] <= MAX_COUNT):
        raise MessageError(f"sent {message.sent}; expected a run below 2^64 and a count up to 2^62")
    if message.missing:
        _check_missing(message.missing)


def decode(payload: bytes | memoryview, limit: int = MAX_PAYLOAD_BYTES, names: Mapping[int, str] = NO_NAMES) -> Message:
    """Return the message in a payload; its tensors are read-only views of the payload, not copies.

    `names` says what short ids stand for; tensors of other ids are left out, and listed in `unknown`. Tensors that came
    compressed are arrays of their own.
    Raises MessageError for anything but a well-formed message of at most `limit` bytes, before and after expanding.
    """
    _check_head(payload, limit)
    try:
        envelope = _HEADS[bytes(payload[:2])](payload)
        missing, sent = _read_fields(envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, MemoryError, RecursionError) as error:
        raise MessageError(
            f"{len(payload)} bytes came that are no message of wire version {payload[1]}: {error}"
        ) from None
    _check_head_fields(envelope.stream, envelope.captured, envelope.truth)
    if missing:
        _check_missing(missing)
    tensors: dict[Any, Array] = {}
    unknown = []
    room = limit  # bytes that tensors may yet expand to
    for tensor in envelope.tensors:
        name = tensor.ref
        if type(name) is int:
            name = names.get(name, name)
            if type(name) is int:
                unknown.append(name)
        if name in tensors:
            raise MessageError(f"tensor {name!r} came twice in one message; expected each once")
        if tensor.dtype.startswith(COMPRESSED) and isinstance(tensor, _ShortTensor):
            tensors[name] = _expand(tensor, name, room)
            room -= tensors[name].nbytes
        else:
            tensors[name] = _view(tensor, name)
    for number in unknown:
        del tensors[number]
    return Message(
        envelope.stream,
        envelope.seq,
        envelope.epoch,
        envelope.captured,
        tensors,
        envelope.truth,
        missing,
        sent,
        tuple(unknown),
    )


def _read_fields(envelope: _Envelope | _Extended) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Return the missing sources and what was sent; refuse what must not be ignored."""
    if isinstance(envelope, _Lacking):
        return envelope.missing, None
    if isinstance(envelope, _Envelope):
        return (), None
    missing: tuple[str, ...] = ()
    sent: tuple[int, int] | None = None
    for key, raw in envelope.fields.items():
        if key == Field.SENT.value:
            sent = _read_sent(raw)
        elif key == Field.MISSING.value:
            missing = _read_missing(raw)
        elif key % 2:
            raise MessageError(
                f"field {key} came in a message of wire version 3, which must not be ignored and is not known here; "
                "update this node"
            )
    return missing, sent


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
            "7 fields, or version 2 or 3 with 8; update the older of the two nodes"
        )


def _check_head_fields(stream: str, captured: tuple[float, ...], truth: tuple[int | None, ...] | None) -> None:
    if not is_id(stream):
        raise MessageError(f"stream {stream!r} came; expected letters, digits, '_' or '-'")
    if not all(map(math.isfinite, captured)):
        raise MessageError(f"capture times {captured} came; expected finite seconds since 1970")
    if truth is not None and len(truth) != len(captured):
        raise MessageError(f"{len(truth)} labels came for {len(captured)} windows; expected one a window")


def _check_missing(missing: tuple[str, ...]) -> None:
    if len(missing) > MAX_MISSING or len(set(missing)) < len(missing) or not all(map(is_id, missing)):
        raise MessageError(
            f"missing sources {', '.join(map(repr, missing))} came; expected at most {MAX_MISSING} ids, each once"
        )


def _expand(tensor: _ShortTensor, name: str | int, room: int) -> Array:
    """Return a tensor that came compressed; nothing larger than `room` bytes is allocated."""
    dtype = DTYPES.get(tensor.dtype[len(COMPRESSED) :])
    if dtype is None:
        raise _unknown_dtype(tensor, name)
    size = math.prod(tensor.shape) * dtype.itemsize
    if size > room:
        raise MessageError(
            f"tensor {name!r} expands to {size} bytes; expected at most {room} yet in this message; raise the limit or "
            "send fewer windows"
        )
    try:
        return expand(tensor.data, dtype, tensor.shape)
    except (MessageError, ValueError) as error:  # ValueError: no element, but dimensions that NumPy cannot count
        raise MessageError(f"tensor {name!r}: {error}") from None


def _unknown_dtype(tensor: _Tensor | _ShortTensor, name: str | int) -> MessageError:
    return MessageError(f"tensor {name!r} has dtype {tensor.dtype!r}; expected one of {', '.join(DTYPES)}")


def _view(tensor: _Tensor | _ShortTensor, name: str | int) -> Array:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise _unknown_dtype(tensor, name)
    expected = math.prod(tensor.shape) * dtype.itemsize
    if tensor.data.nbytes != expected:
        raise MessageError(
            f"tensor {name!r} has {tensor.data.nbytes} bytes; expected {expected} for {tensor.dtype} {tensor.shape}"
        )
    try:
        return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    except ValueError as error:  # no element, but dimensions that NumPy cannot count
        raise MessageError(f"tensor {name!r} has the shape {tensor.shape}, which is no array: {error}") from None
