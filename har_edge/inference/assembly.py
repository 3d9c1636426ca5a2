"""Put a region of a tensor together from pieces of it: side by side along an axis, or added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import ModelError
from har_edge.tflite.manifest import TensorRegion, TensorSpec, parity_of

Array = npt.NDArray[Any]
MESSAGE = -1
# The step of a shard that makes a piece, or MESSAGE, and the name of the piece there.
PieceKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Part:
    """Elements of a piece along the axis of its assembly."""

    key: PieceKey
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Assembly:
    """The pieces that give a region of a tensor.

    `summands` are added in their order, so that floats give the same bits each time. The parts of each stand side by
    side along `axis`; None: it is one whole piece. `region` is cut out of that, None: all of it.
    """

    summands: tuple[tuple[_Part, ...], ...]
    axis: int | None
    region: tuple[int, int, int] | None

    @property
    def keys(self) -> frozenset[PieceKey]:
        """The pieces that must be there."""
        return frozenset(part.key for parts in self.summands for part in parts)

    def make(self, there: Mapping[PieceKey, Array]) -> Array:
        """Return the region; it may be a view of a piece."""
        total = self._join(self.summands[0], there)
        for parts in self.summands[1:]:
            total = total + self._join(parts, there)
        return total if self.region is None else _cut(total, *self.region)

    def _join(self, parts: Sequence[_Part], there: Mapping[PieceKey, Array]) -> Array:
        if self.axis is None:
            return there[parts[0].key]
        arrays = [_cut(there[part.key], self.axis, part.start, part.stop) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, self.axis)


def find_assembly(wanted: TensorSpec, there: Sequence[tuple[PieceKey, TensorSpec]]) -> Assembly:
    """Return how these pieces give a tensor or a region of it.

    The same pieces are always chosen: those that steps of this shard make where possible, then those that reach
    farthest. A parity is only there for one that is wanted itself. Raises ModelError where they do not cover it (see
    tflite/manifest.py, `is_covered`).
    """
    pieces = [(key, spec) for key, spec in there if spec.of == wanted.of and parity_of(spec) == parity_of(wanted)]
    region = wanted.region
    whole = next((key for key, spec in pieces if spec.region is None or spec.region.parity), None)
    if whole is not None and region is not None and region.parity:
        return Assembly(((_Part(whole, 0, 0),),), None, None)
    if whole is not None:
        cut = None if region is None else (region.axis, region.start, region.stop)
        return Assembly(((_Part(whole, 0, 0),),), None, cut)
    count = region.summands if region else 0
    for axis in sorted(range(len(wanted.shape)), key=lambda axis: region is None or axis != region.axis):
        inside = region is not None and region.axis == axis
        start, stop = (region.start, region.stop) if region is not None and inside else (0, wanted.shape[axis])
        along = [(key, spec.region) for key, spec in pieces if spec.region is not None and spec.region.axis == axis]
        chains = [
            _cover([one for one in along if (one[1].summand, one[1].summands) == (summand, count)], start, stop)
            for summand in range(max(1, count))
        ]
        if all(chains):
            cut = None if region is None or inside else (region.axis, region.start, region.stop)
            return Assembly(tuple(chains), axis, cut)
    raise ModelError(
        f"a shard takes {wanted.name[:64]!r}, but nothing that comes or that it made covers it; cut the model again"
    )


def _cover(pieces: Iterable[tuple[PieceKey, TensorRegion]], start: int, stop: int) -> tuple[_Part, ...]:
    """Return parts that fill [start, stop) without a gap, none where they do not."""
    known, parts, at = list(pieces), list[_Part](), start
    while at < stop:
        fits = [(key, one) for key, one in known if one.start <= at < one.stop]
        if not fits:
            return ()
        key, best = max(fits, key=lambda one: (one[0][0] != MESSAGE, one[1].stop))
        end = min(stop, best.stop)
        parts.append(_Part(key, at - best.start, end - best.start))
        at = end
    return tuple(parts)


def _cut(array: Array, axis: int, start: int, stop: int) -> Array:
    if start == 0 and stop == array.shape[axis]:
        return array
    return array[(slice(None),) * axis + (slice(start, stop),)]
