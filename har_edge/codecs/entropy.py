"""Entropy coding: the same values in fewer bytes, by a general compressor."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from har_edge.codecs.checks import check_code, check_window
from har_edge.codecs.reducer import Code, CodeLayout
from har_edge.data.recording import Samples
from har_edge.errors import DataError, MessageError


class Compressor(Protocol):
    """A general compressor; a specification asks for it by its name."""

    @property
    def spec(self) -> str:
        """Canonical text, such as `zlib:6`."""

    @property
    def operations_a_byte(self) -> int:
        """Approximate operations to compress one byte: nanoseconds on mHealth codes (docs/reference/reducers.md), 1
        each.
        """

    def compress(self, text: bytes) -> bytes:
        """Compress."""

    def expand(self, text: bytes, most: int) -> bytes:
        """Undo `compress`. Raises ValueError for bytes that it did not write, before it allocates more than about
        `most` bytes.
        """


class EntropyCoder:
    """Compresses the code of the method before it, or the window itself; decoding gives the same bits.

    Fixed codes are put in an order that compresses better before they are compressed, byte for byte:
    1. their head as it is: the ranges that `q8` and `q16` write; other codes have none;
    2. the values. Integers [time, channels] become differences, each from the value before it in time (the first from
       0), modulo 2^bits, and zigzag: 0, -1, 1, -2 ... as 0, 1, 2, 3 ... Other values stay. Then channel by channel,
       little-endian: first the lowest byte of every value, then the next byte of every value, and so on.
    Codes that vary in length are compressed as they are.
    """

    code_shape: tuple[None] = (None,)
    code_dtype = "uint8"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, True

    def __init__(self, compressor: Compressor, layout: CodeLayout | None, most: int) -> None:
        """Build for fixed codes of this layout, or without one for uint8 [bytes], of at most `most` bytes."""
        self.spec = compressor.spec
        self._compressor = compressor
        self._layout = layout
        self._most = most
        self._dtype = layout.dtype if layout and not layout.head else "uint8"
        self.feature_shape = layout.shape if layout and not layout.head else (most,)
        self.most_bytes = most + most // 64 + 64  # more than either compressor adds to what it cannot compress
        # A code that varies is about a tenth of the longest.
        self.operations = compressor.operations_a_byte * (most if layout else most // 10)

    def encode(self, window: Code) -> Code:
        """Return the code, uint8 [bytes]; DataError for another shape or dtype, NaN or infinity."""
        if self._layout is None:
            if window.ndim != 1 or window.dtype != np.uint8 or len(window) > self._most:
                raise DataError(
                    f"reducer {self.spec}: code is {window.dtype} {list(window.shape)}, expected uint8, at most "
                    f"{self._most} bytes"
                )
            text = window.tobytes()
        else:
            check_window(self.spec, window, self.feature_shape, self._dtype)
            text = _arrange(window, self._layout)
        return np.frombuffer(self._compressor.compress(text), np.uint8)

    def features(self, code: Code) -> Samples:
        """Return the values themselves, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Code:
        """Return the values that were encoded. Raises MessageError for bytes that are no code."""
        check_code(self.spec, code, (None,), "uint8")
        try:
            text = self._compressor.expand(code.tobytes(), self._most)
        except ValueError as error:
            raise MessageError(f"reducer {self.spec}: code of {len(code)} bytes cannot be expanded: {error}") from None
        if self._layout is None:
            return np.frombuffer(text, np.uint8)
        if len(text) != self._most:
            raise MessageError(f"reducer {self.spec}: code expands to {len(text)} bytes, expected {self._most}")
        values = _rearrange(text, self._layout)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise MessageError(f"reducer {self.spec}: code holds NaN or infinity, expected finite values")
        return values


def _differs(layout: CodeLayout) -> bool:
    return len(layout.shape) == 2 and np.dtype(layout.dtype).kind in "iu"


def _arrange(code: Code, layout: CodeLayout) -> bytes:
    flat = np.ascontiguousarray(code).reshape(-1).view(np.uint8)
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    values = flat[layout.head :].view(dtype).reshape(layout.shape)
    if _differs(layout):
        change = np.diff(values, axis=0, prepend=dtype.type(0)).view(f"<i{dtype.itemsize}")
        values = (change << 1) ^ (change >> (8 * dtype.itemsize - 1))
    planes: Code = np.ascontiguousarray(values.T).reshape(-1, 1).view(np.uint8).T
    return bytes(flat[: layout.head]) + planes.tobytes()


def _rearrange(text: bytes, layout: CodeLayout) -> Code:
    """Undo `_arrange`."""
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    planes = np.frombuffer(text, np.uint8, offset=layout.head).reshape(dtype.itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(dtype).reshape(layout.shape[::-1]).T
    if _differs(layout):
        zigzag = np.ascontiguousarray(values).view(f"<u{dtype.itemsize}")
        change = (zigzag >> 1) ^ -(zigzag & 1)
        values = np.cumsum(change, axis=0, dtype=change.dtype).view(dtype)
    code: Code = np.ascontiguousarray(values)
    if not layout.head:
        return code
    return np.concatenate([np.frombuffer(text, np.uint8, layout.head), code.reshape(-1).view(np.uint8)])
