"""A MessagePack reader of 40 lines, written from the specification: what `any MessagePack library` would see."""

from __future__ import annotations

import struct
from typing import Any

_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}


def read(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Return the value at a position, and the position after it."""
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind >= 0xE0:
        return kind - 256, at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if kind in _NUMBERS:
        size = struct.calcsize(_NUMBERS[kind])
        return struct.unpack(_NUMBERS[kind], data[at : at + size])[0], at + size
    if 0x90 <= kind <= 0x9F:
        return _array(data, at, kind - 0x90)
    if 0x80 <= kind <= 0x8F:
        flat, at = _array(data, at, 2 * (kind - 0x80))
        return dict(zip(flat[::2], flat[1::2], strict=True)), at
    if 0xA0 <= kind <= 0xBF:
        length = kind - 0xA0
    else:
        width = struct.calcsize(_SIZES[kind])
        (length,) = struct.unpack(_SIZES[kind], data[at : at + width])
        at += width
        if kind in (0xDC, 0xDD):
            return _array(data, at, length)
    piece = data[at : at + length]
    return (piece if kind in (0xC4, 0xC5, 0xC6) else piece.decode()), at + length


def _array(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(count):
        value, at = read(data, at)
        values.append(value)
    return values, at
