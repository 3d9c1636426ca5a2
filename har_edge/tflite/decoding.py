"""Decode a missing share of a tensor out of the parity and all other shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError

Array: TypeAlias = NDArray[Any]


def decode_share(sizes: Sequence[int], missing: int, parity: Array, others: Mapping[int, Array], axis: int) -> Array:
    """Return a missing share: the parity without the other shares, which are subtracted in their order.

    `sizes` are those of all shares along `axis`. Integers wrap around at 32 bits, in the parity as here, so that the
    result is exact. Raises CutError unless all shares but the missing one came, each of its size.
    """
    expected = [number for number in range(len(sizes)) if number != missing]
    found = {number: array.shape[axis] for number, array in others.items()}
    if not 0 <= missing < len(sizes) or found != {number: sizes[number] for number in expected}:
        raise CutError(f"shares of sizes {found} came to decode share {missing}; expected all others of {list(sizes)}")
    result = np.array(parity[_first(sizes[missing], axis)])
    for number in expected:
        part = others[number][_first(sizes[missing], axis)]
        result[_first(part.shape[axis], axis)] -= part
    return result


def _first(count: int, axis: int) -> tuple[slice, ...]:
    """Return the index of the first elements along an axis."""
    return (*(slice(None),) * axis, slice(0, count))
