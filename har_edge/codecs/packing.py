"""Several codes of one reducer in the one array that a message carries, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from har_edge.codecs.checks import check_code
from har_edge.codecs.reducer import Code, Reducer
from har_edge.errors import MessageError

_LENGTH = np.dtype("<u4")


def pack(reducer: Reducer, codes: Sequence[Code]) -> Code:
    """Put codes into one array: stacked where all have one shape, else bytes, uint8 [n].

    The bytes are the length of each code in bytes (uint32, little-endian), one after the other, then the codes.
    """
    if None not in reducer.code_shape:
        return np.stack(codes)
    lengths = np.array([len(code) for code in codes], _LENGTH)
    return np.concatenate([lengths.view(np.uint8), *codes])


def unpack(reducer: Reducer, array: Code, count: int) -> list[Code]:
    """Return the `count` codes in an array as views of it. Raises MessageError when it does not hold exactly these.

    The function allocates nothing by the sizes in the array: it refuses the array unless each code has the size it
    says.
    """
    if None not in reducer.code_shape:
        check_code(reducer.spec, array, (count, *reducer.code_shape), reducer.code_dtype)
        return list(array)
    check_code(reducer.spec, array, (None,), "uint8")
    head = count * _LENGTH.itemsize
    if len(array) < head:
        raise MessageError(f"reducer {reducer.spec}: {len(array)} bytes, expected {count} codes with their lengths")
    ends = head + np.cumsum(np.ascontiguousarray(array[:head]).view(_LENGTH), dtype=np.int64)
    end = int(ends[-1]) if count else head
    if end != len(array):
        raise MessageError(
            f"reducer {reducer.spec}: {count} codes end at byte {end}, expected at {len(array)}, the end"
        )
    return np.split(array[head:], ends[:-1] - head) if count else []
