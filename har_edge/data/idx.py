"""Arrays in idx files, the format of MNIST (LeCun, Cortes, Burges), plain or compressed with gzip.

The header is two zero bytes, one byte for the type, one for the number of dimensions, and a big-endian uint32 for each
dimension; the values follow row by row, big-endian. Nothing is allocated before the header is checked.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError
from har_edge.files import open_regular
from har_edge.units import plural

MAX_DIMENSIONS = 4
MAX_BYTES = 1 << 30
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: Path, limit: int = MAX_BYTES) -> npt.NDArray[Any]:
    """Return the array in an idx file, in the machine's byte order.

    Raises DataError for a file that cannot be read, is no idx file, holds more than `limit` bytes of values, or ends
    before or after the values that its header announces.
    """
    try:
        with _open(path) as file:
            return _read(file, path, limit)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}; fetch or copy the file anew") from error


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with open_regular(path, MAX_BYTES) as plain:
        packed = plain.read(2) == _GZIP
        plain.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=plain) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield plain


def _read(file: IO[bytes], path: Path, limit: int) -> npt.NDArray[Any]:
    head = file.read(4)
    zeros, kind, dimensions = struct.unpack(">HBB", head.ljust(4, b"\xff"))
    if zeros or kind not in _TYPES or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DataError(
            f"{path} is no idx file: it begins with {head.hex(' ') or 'nothing'}; expected 00 00, a type, and 1 to "
            f"{MAX_DIMENSIONS} dimensions"
        )
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path} ends in its header; fetch or copy the file anew")
    shape, dtype = struct.unpack(f">{dimensions}I", sizes), np.dtype(_TYPES[kind])
    expected = math.prod(shape) * dtype.itemsize
    if expected > limit:
        raise DataError(f"{path} announces {plural(expected, 'byte')} of values; expected at most {limit}")
    content = file.read(expected)
    if len(content) < expected or file.read(1):
        came = f"{plural(len(content), 'byte')}" if len(content) < expected else "more"
        raise DataError(
            f"{path} announces {list(shape)} values, {plural(expected, 'byte')}, and holds {came}; fetch or copy the "
            "file anew"
        )
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:  # no values, in a shape that NumPy has not
        raise DataError(f"{path} announces {list(shape)} values, which no array has; fetch the file anew") from error
    return array.astype(dtype.newbyteorder("="), copy=False)
