"""Put a tensor together from all its shares, or from the parity and all shares but one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from har_edge.errors import MessageError
from har_edge.inference.assembly import Array, Assembly, PieceKey, find_assembly
from har_edge.tflite.decoding import decode_share
from har_edge.tflite.manifest import TensorRegion, TensorSpec, parity_of

_NONE: frozenset[PieceKey] = frozenset()


@dataclass(frozen=True, slots=True)
class CodedAssembly:
    """The pieces that give a tensor: all `shares`, or all but one and the `parity`.

    Shares that are there are used as they are, so that the result has the same bits whichever came for integers.
    """

    whole: Assembly
    shares: tuple[Assembly, ...]
    bounds: tuple[int, ...]
    axis: int
    parity: PieceKey

    @property
    def keys(self) -> frozenset[PieceKey]:
        """All pieces that may be used."""
        return self.whole.keys | {self.parity}

    def missing(self, there: Set[PieceKey], without: frozenset[PieceKey] = _NONE) -> list[int]:
        """Return the shares of which a piece is not there, or is `without`."""
        return [k for k, one in enumerate(self.shares) if not one.keys <= there or not one.keys.isdisjoint(without)]

    def is_ready(self, there: Set[PieceKey], without: frozenset[PieceKey] = _NONE) -> bool:
        """Return whether the tensor can be put together from these pieces."""
        lost = self.missing(there, without)
        return not lost or (len(lost) == 1 and self.parity in there and self.parity not in without)

    def make(self, there: Mapping[PieceKey, Array]) -> Array:
        """Return the tensor."""
        lost = self.missing(there.keys())
        if not lost:
            return self.whole.make(there)
        if len(lost) > 1 or self.parity not in there:
            raise MessageError(f"{len(lost)} shares of a tensor are missing; expected at most one, and the parity")
        found = {k: one.make(there) for k, one in enumerate(self.shares) if k not in lost}
        sizes = [stop - start for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]
        found[lost[0]] = decode_share(sizes, lost[0], there[self.parity], found, self.axis)
        return np.concatenate([found[k] for k in range(len(sizes))], self.axis)


def find_input(wanted: TensorSpec, there: Sequence[tuple[PieceKey, TensorSpec]]) -> Assembly | CodedAssembly:
    """Return how these pieces give the input of a step; raises ModelError where they do not cover it."""
    whole = find_assembly(wanted, there)
    parity = next(((key, one) for key, one in there if one.of == wanted.of and parity_of(one)), None)
    if parity is None or wanted.region is not None:
        return whole
    key, spec = parity
    assert spec.region is not None
    axis = spec.region.axis
    parts = [TensorRegion(wanted.of, axis, *share) for share in spec.region.shares]
    shares = tuple(find_assembly(_part(wanted, part), there) for part in parts)
    return CodedAssembly(whole, shares, spec.region.parity, axis, key)


def _part(wanted: TensorSpec, region: TensorRegion) -> TensorSpec:
    shape = (*wanted.shape[: region.axis], region.stop - region.start, *wanted.shape[region.axis + 1 :])
    return TensorSpec(wanted.name, shape, wanted.dtype, batched=wanted.batched, region=region)
