"""Updates in fewer bytes: float16, int8 in blocks, and the largest values alone with error feedback.

An update is the sum of gradients over samples, or the change of weights. A text asks for a method: `none`, `float16`,
`int8`, `topk:0.01`. All numbers of the formats are little-endian:

    f4    float32 of each value
    f2    float32 scale, a power of two; float16 of each value divided by it
    i1    float32 scale of each block of BLOCK values; int8 of each value divided by its block's scale
    topk  uint32 count of values sent, uint32 length of the gaps; the gaps; the values in the format i1.
          A gap is how many values lie between one that is sent and the next: bytes whose sum it is, all 255 but
          the last, which is less. The bytes of all gaps go through zlib (RFC 1950).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from har_edge.codecs.compressors import Zlib
from har_edge.errors import ConfigError, MessageError, ModelError
from har_edge.learning.updates.vectors import Vector

# Values that share a scale: 1.6 % more bytes than without.
BLOCK = 256
_LARGEST_INT8 = 127
# The exponent of the largest value after scaling to float16, which ends at 65504.
_FLOAT16_EXPONENT = 15
_HEAD = struct.Struct("<II")
# A byte of a gap that says that the gap goes on.
_GOES_ON = 255


@dataclass(frozen=True, slots=True)
class PackedVector:
    """A compressed vector: the format of `data`, and how many values it stands for."""

    kind: str
    size: int
    data: bytes


class VectorCompressor(Protocol):
    """Makes a vector smaller, at the sender; `decode` undoes it anywhere."""

    spec: str

    def encode(self, vector: Vector) -> PackedVector:
        """Compress. Raises ModelError for values that are not finite."""

    def restore(self, packed: PackedVector) -> None:
        """Take an update back that was not counted; the next one carries it, where there is error feedback."""

    @property
    def residual(self) -> Vector | None:
        """A copy of what was not sent yet; None without error feedback."""

    def load_residual(self, residual: Vector | None) -> None:
        """Go on with a residual from before a restart. Raises ModelError for one that does not fit."""


class _Stateless:
    """A format that loses what it rounds away: there is no error feedback, so nothing to keep."""

    def __init__(self, spec: str, kind: str, pack: Callable[[Vector], bytes]) -> None:
        self.spec, self._kind, self._pack = spec, kind, pack

    def encode(self, vector: Vector) -> PackedVector:
        """Compress. Raises ModelError for values that are not finite."""
        _check_finite(self.spec, vector)
        return PackedVector(self._kind, vector.size, self._pack(vector))

    def restore(self, packed: PackedVector) -> None:
        """Do nothing: an update that was not counted is lost, as a dense one is."""

    @property
    def residual(self) -> Vector | None:
        """None: there is no error feedback."""
        return None

    def load_residual(self, residual: Vector | None) -> None:
        """Accept None alone."""
        if residual is not None:
            raise ModelError(f"compression {self.spec} keeps no residual; go on with the compression of before")


class TopK:
    """The largest values as int8, and error feedback: the rest, and what is rounded away, wait for the next update.

    Source: Stich et al. 2018, algorithm 1; Seide et al. 2014 for the error of quantization.
    """

    def __init__(self, spec: str, fraction: float, size: int) -> None:
        """Build for vectors of `size` values, of which `fraction` are sent, at least one."""
        self.spec = spec
        self._count = min(size, max(1, math.ceil(fraction * size)))
        self._residual = np.zeros(size, np.float32)

    def encode(self, vector: Vector) -> PackedVector:
        """Compress what was not sent yet together with `vector`. Raises ModelError for values that are not finite."""
        size = self._residual.size
        if vector.shape != (size,):
            raise ModelError(f"compression {self.spec}: an update {list(vector.shape)}, expected [{size}]")
        total = self._residual + vector
        _check_finite(self.spec, total)
        chosen = np.argpartition(np.abs(total), size - self._count)[size - self._count :]
        chosen.sort()
        values = _pack_int8(total[chosen])
        gaps = _pack_gaps(chosen)
        total[chosen] -= _unpack_int8(memoryview(values), self._count)
        self._residual = total
        return PackedVector("topk", size, _HEAD.pack(self._count, len(gaps)) + gaps + values)

    def restore(self, packed: PackedVector) -> None:
        """Add an update of this sender that was not counted to what was not sent yet."""
        self._residual += decode(packed, self._residual.size)

    @property
    def residual(self) -> Vector | None:
        """A copy of what was not sent yet."""
        copied: Vector = self._residual.copy()
        return copied

    def load_residual(self, residual: Vector | None) -> None:
        """Go on with a residual. Raises ModelError for another size or type, or values that are not finite."""
        size = self._residual.size
        if residual is None or residual.shape != (size,) or residual.dtype != np.float32:
            came = "none" if residual is None else f"{residual.dtype} {list(residual.shape)}"
            raise ModelError(f"compression {self.spec}: a residual of {came}, expected float32 [{size}]")
        _check_finite(self.spec, residual)
        self._residual = residual.copy()


def make_compressor(spec: str, size: int) -> VectorCompressor:
    """Build the compressor of a text for vectors of `size` values. Raises ConfigError that says what is legal.

    >>> compressor = make_compressor("topk:0.5", 4)
    >>> decode(compressor.encode(np.array([1, -4, 3, 0.5], np.float32)), 4).round(1)
    array([ 0., -4.,  3.,  0.], dtype=float32)
    >>> decode(compressor.encode(np.array([1, 0, 0, 0.5], np.float32)), 4).round(1)
    array([2., 0., 0., 1.], dtype=float32)
    """
    method, colon, option = spec.partition(":")
    if method in _STATELESS and not colon:
        kind, pack = _STATELESS[method]
        return _Stateless(spec, kind, pack)
    if method == "topk":
        try:
            fraction = float(option)
        except ValueError:
            fraction = math.nan
        if 0 < fraction <= 1:
            return TopK(spec, fraction, size)
    legal = ", ".join((*_STATELESS, "topk:FRACTION"))
    raise ConfigError(f"compression {spec!r}: expected one of {legal}, with a fraction above 0 and at most 1")


def decode(packed: PackedVector, size: int) -> Vector:
    """Return the vector of `size` values that an update stands for.

    Nothing is allocated by a size that the sender says. Raises MessageError for another size, a format that is not
    known, damaged bytes, and values that are not finite.
    """
    if packed.size != size:
        raise MessageError(f"an update of {packed.size} values, expected {size}; both sides need the same model")
    if packed.kind not in _UNPACK:
        raise MessageError(f"an update in format {packed.kind!r}, expected one of {', '.join(_UNPACK)}")
    vector = _UNPACK[packed.kind](memoryview(packed.data), size)
    finite = np.isfinite(vector)
    if not finite.all():
        raise MessageError(f"an update with {size - int(np.count_nonzero(finite))} values that are not finite")
    return vector


def _check_finite(spec: str, vector: Vector) -> None:
    finite = np.isfinite(vector)
    if not finite.all():
        raise ModelError(
            f"compression {spec}: {vector.size - int(np.count_nonzero(finite))} of {vector.size} values are not "
            "finite; the learning rate may be too high, or a sample damaged"
        )


def _pack_float32(vector: Vector) -> bytes:
    return bytes(vector.astype("<f4", copy=False).data)


def _unpack_float32(data: memoryview, size: int) -> Vector:
    _check_length("f4", data, 4 * size)
    return np.frombuffer(data, "<f4").astype(np.float32)


def _pack_float16(vector: Vector) -> bytes:
    _, exponent = math.frexp(float(np.max(np.abs(vector), initial=0)))
    # The scale is a float32 without subnormals, and so is what is divided by it.
    scale = np.float32(math.ldexp(1, max(exponent - _FLOAT16_EXPONENT, -120)))
    return struct.pack("<f", scale) + bytes((vector / scale).astype("<f2").data)


def _unpack_float16(data: memoryview, size: int) -> Vector:
    _check_length("f2", data, 4 + 2 * size)
    with np.errstate(over="ignore", invalid="ignore"):  # decode refuses what is not finite
        product: Vector = np.frombuffer(data[4:], "<f2").astype(np.float32) * np.frombuffer(data[:4], "<f4")
    return product.astype(np.float32, copy=False)


def _pack_int8(vector: Vector) -> bytes:
    blocks = -(-vector.size // BLOCK)
    padded = np.zeros((blocks, BLOCK), np.float32)
    padded.reshape(-1)[: vector.size] = vector
    scales = np.max(np.abs(padded), axis=1, initial=0) / np.float32(_LARGEST_INT8)
    # A scale that is not zero is a normal number: else the quotient could be more than an int8 holds.
    scales[scales < np.finfo(np.float32).tiny] = 0
    quotient = np.divide(padded, scales[:, None], out=np.zeros_like(padded), where=scales[:, None] > 0)
    codes = np.rint(quotient).clip(-_LARGEST_INT8, _LARGEST_INT8).astype(np.int8)
    return bytes(scales.astype("<f4").data) + bytes(codes.reshape(-1)[: vector.size].data)


def _unpack_int8(data: memoryview, size: int) -> Vector:
    head = 4 * -(-size // BLOCK)
    _check_length("i1", data, head + size)
    scales = np.frombuffer(data[:head], "<f4").astype(np.float32)
    vector = np.frombuffer(data[head:], np.int8).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # decode refuses what is not finite
        vector *= np.repeat(scales, BLOCK)[:size]
    return vector


def _pack_gaps(places: NDArray[np.int64]) -> bytes:
    """Return the gaps between rising places, compressed."""
    gaps = np.diff(places, prepend=-1) - 1
    more, last = np.divmod(gaps, _GOES_ON)
    ends = np.cumsum(more + 1)
    text = np.full(ends[-1], _GOES_ON, np.uint8)
    text[ends - 1] = last
    # Gaps follow no pattern, but small ones are frequent: Huffman codes alone are as small, and quicker.
    stream = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return stream.compress(text.tobytes()) + stream.flush()


def _unpack_gaps(data: bytes, count: int, size: int) -> NDArray[np.int64]:
    """Return `count` rising places below `size`. Raises MessageError for other bytes."""
    try:
        text = np.frombuffer(Zlib(6).expand(data, count + size // _GOES_ON), np.uint8)
    except ValueError as error:
        raise MessageError(f"an update in format topk: its gaps cannot be read ({error})") from None
    ends = np.flatnonzero(text != _GOES_ON)
    if ends.size != count or (text.size and ends[-1] != text.size - 1):
        raise MessageError(f"an update in format topk: {ends.size} gaps, expected {count}, each with its last byte")
    places: NDArray[np.int64] = np.cumsum(text, dtype=np.int64)[ends] + np.arange(count)
    if count and places[-1] >= size:
        raise MessageError(f"an update in format topk: a value at {places[-1]}, expected below {size}")
    return places


def _unpack_topk(data: memoryview, size: int) -> Vector:
    if len(data) < _HEAD.size:
        raise MessageError(f"an update in format topk of {len(data)} bytes, expected at least {_HEAD.size}")
    count, length = _HEAD.unpack(data[: _HEAD.size])
    start = _HEAD.size + length
    if not 1 <= count <= size or start > len(data):
        raise MessageError(
            f"an update in format topk: {count} values and {length} bytes of gaps in {len(data)} bytes, "
            f"expected 1 to {size} values and all of their bytes"
        )
    values = _unpack_int8(data[start:], count)
    vector = np.zeros(size, np.float32)
    vector[_unpack_gaps(bytes(data[_HEAD.size : start]), count, size)] = values
    return vector


def _check_length(kind: str, data: memoryview, expected: int) -> None:
    if len(data) != expected:
        raise MessageError(f"an update in format {kind}: {len(data)} bytes, expected {expected}")


_STATELESS = {"none": ("f4", _pack_float32), "float16": ("f2", _pack_float16), "int8": ("i1", _pack_int8)}
_UNPACK: dict[str, Callable[[memoryview, int], Vector]] = {
    "f4": _unpack_float32,
    "f2": _unpack_float16,
    "i1": _unpack_int8,
    "topk": _unpack_topk,
}
