"""Who has which regions of tensors, and what travels between shards: each takes only what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from har_edge.tflite.manifest import TensorRegion, TensorSpec


@dataclass(frozen=True, slots=True)
class Transfer:
    """A region that leaves a program, and the programs that take it."""

    spec: TensorSpec
    takers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A region that a program has, made in the block of number `order`."""

    program: int
    spec: TensorSpec
    order: int


@dataclass(frozen=True, slots=True)
class _Request:
    """A region that one program takes from another one; `follows`: for the block after the one that makes it."""

    maker: int
    taker: int
    spec: TensorSpec
    order: int
    follows: bool


class Transfers:
    """Collects what each program makes and takes, in the order in which the blocks run.

    A program takes a region from its own pieces first, then from the program whose piece reaches furthest, the first
    one of equals. So the same plan has the same transfers each time.
    """

    def __init__(self, programs: int, sources: Mapping[str, TensorSpec]) -> None:
        self._sources = sources
        self._made: dict[str, list[_Piece]] = {}
        self._parities: dict[str, _Piece] = {}
        self._got: list[dict[str, list[TensorSpec]]] = [{} for _ in range(programs)]
        self._requests: list[_Request] = []
        self._parts: dict[tuple[int, TensorSpec], tuple[int, ...]] | None = None
        self._source_needs: list[dict[str, TensorSpec]] = [{} for _ in range(programs)]

    def make(self, program: int, spec: TensorSpec, order: int) -> None:
        """Note that a program makes a region in the block of this number."""
        piece = _Piece(program, spec, order)
        if spec.region is not None and spec.region.parity:
            self._parities[spec.of] = piece
        else:
            self._made.setdefault(spec.of, []).append(piece)

    def take(self, program: int, spec: TensorSpec, order: int) -> bool:
        """Note that a program needs a region; return False where nobody makes it."""
        if spec.of in self._sources:
            known = self._source_needs[program].get(spec.of)
            self._source_needs[program][spec.of] = _hull(known or spec, spec) or self._sources[spec.of]
            return True
        pieces = self._made.get(spec.of, [])
        counts = sorted({piece.spec.region.summands if piece.spec.region else 0 for piece in pieces})
        for count in counts:
            requests = self._requests_for(program, spec, order, count)
            if requests is not None:
                requests += self._parity_for(program, spec, order)
                self._requests += requests
                self._parts = None
                for one in requests:
                    if not one.spec.region or not one.spec.region.parity:
                        self._got[program].setdefault(spec.of, []).append(one.spec)
                return True
        return False

    def summed(self, spec: TensorSpec) -> TensorSpec:
        """Return the input of a step as the sum of arrays, where its tensor is there in this way only."""
        counts = {one.spec.region.summands if one.spec.region else 0 for one in self._made.get(spec.of, [])}
        if 0 in counts or not counts:
            return spec
        axis = next(one.spec.region.axis for one in self._made[spec.of] if one.spec.region)
        region = spec.region or TensorRegion(spec.of, axis, 0, spec.shape[axis])
        return msgspec.structs.replace(spec, region=msgspec.structs.replace(region, summands=min(counts)))

    def urgent(self, program: int, order: int) -> list[TensorRegion]:
        """Return the regions made in a block that others take for the block after it."""
        return [
            one.spec.region
            for one in self._requests
            if one.maker == program and one.order == order and one.follows and one.spec.region is not None
        ]

    def sent(self, program: int) -> list[Transfer]:
        """Return what leaves a program: regions that do not overlap, each with those who take it."""
        return [Transfer(spec, takers) for (maker, spec), takers in self._atoms().items() if maker == program]

    def taken(self, program: int) -> list[TensorSpec]:
        """Return what enters a program from sources and from other programs."""
        found = {spec.name: spec for spec in self._source_needs[program].values()}
        for (_, spec), takers in self._atoms().items():
            if program in takers:
                found[spec.name] = spec
        return list(found.values())

    def _atoms(self) -> dict[tuple[int, TensorSpec], tuple[int, ...]]:
        if self._parts is None:
            self._parts = _atoms(self._requests)
        return self._parts

    def _requests_for(self, program: int, spec: TensorSpec, order: int, count: int) -> list[_Request] | None:
        """Return what a program takes from others for a region as the sum of `count` arrays (0: as it is)."""
        pieces = [
            piece
            for piece in self._made.get(spec.of, [])
            if (piece.spec.region.summands if piece.spec.region else 0) == count
        ]
        axes = list(range(len(spec.shape)))
        if spec.region is not None:  # pieces along the region's own axis need not be taken whole
            axes.sort(key=lambda axis: spec.region is not None and axis != spec.region.axis)
        for axis in axes:
            found, covered = list[_Request](), True
            for number in range(max(1, count)):
                requests = self._along(program, spec, order, axis, pieces, number, count)
                covered = covered and requests is not None
                found += requests or []
            if covered:
                return found
        return None

    def _parity_for(self, program: int, spec: TensorSpec, order: int) -> list[_Request]:
        """Return the parity of a tensor that a program takes beside it, in case that a share of it is late."""
        piece = self._parities.get(spec.of)
        if piece is None or piece.program == program:
            return []
        return [_Request(piece.program, program, whole_name(piece.spec), piece.order, order - piece.order <= 1)]

    def _along(
        self, program: int, spec: TensorSpec, order: int, axis: int, pieces: Sequence[_Piece], number: int, count: int
    ) -> list[_Request] | None:
        size = spec.shape[axis]
        start, stop = 0, size
        if spec.region is not None and spec.region.axis == axis:
            start, stop = spec.region.start, spec.region.stop
        if stop < start:  # a dimension of any size
            return None
        full = size if spec.region is None or spec.region.axis != axis else max(stop, _extent(pieces, axis))
        spans = [(*_span(one.spec, axis, full), one) for one in pieces if _fits(one.spec, axis, number)]
        own = [_span(got, axis, full) for got in self._got[program].get(spec.of, []) if _fits(got, axis, number, count)]
        own += [(low, high) for low, high, one in spans if one.program == program]
        found = list[_Request]()
        for low, high in _missing(start, stop, own):
            while low < high:
                reach = [(end, -one.program, one) for begin, end, one in spans if begin <= low < end]
                if not reach:
                    return None
                end, _, one = max(reach, key=lambda each: each[:2])
                end = min(end, high)
                found.append(self._request(program, one, axis, low, end, spec, order))
                low = end
        return found

    def _request(
        self, program: int, one: _Piece, axis: int, start: int, stop: int, wanted: TensorSpec, order: int
    ) -> _Request:
        region = one.spec.region
        follows = order - one.order <= 1
        if region is None and wanted.region is None:
            return _Request(one.program, program, whole_name(wanted), one.order, follows)
        cut = TensorRegion(one.spec.of, axis, start, stop)
        if region is not None:
            cut = msgspec.structs.replace(cut, summand=region.summand, summands=region.summands)
        shape = list(one.spec.shape)
        shape[axis] = stop - start
        spec = TensorSpec(region_name(cut), tuple(shape), one.spec.dtype, batched=one.spec.batched, region=cut)
        return _Request(one.program, program, spec, one.order, follows)


def region_name(region: TensorRegion) -> str:
    """Return the name under which a region travels."""
    if region.parity:
        return f"{region.of}/parity"
    part = f"+{region.summand}/{region.summands}" if region.summands else ""
    return f"{region.of}[{region.axis}:{region.start}:{region.stop}{part}]"


def whole_name(spec: TensorSpec) -> TensorSpec:
    """Return a region as it travels, under a name of its own."""
    return msgspec.structs.replace(spec, name=region_name(spec.region) if spec.region else spec.of)


def _hull(known: TensorSpec, spec: TensorSpec) -> TensorSpec | None:
    """Return the smallest region that has both; None for all of the tensor."""
    if known.region is None or spec.region is None or known.region.axis != spec.region.axis:
        return None
    region = msgspec.structs.replace(
        spec.region, start=min(known.region.start, spec.region.start), stop=max(known.region.stop, spec.region.stop)
    )
    return _resized(spec, region)


def _resized(spec: TensorSpec, region: TensorRegion) -> TensorSpec:
    """Return another region of the same tensor."""
    shape = (*spec.shape[: region.axis], region.stop - region.start, *spec.shape[region.axis + 1 :])
    return msgspec.structs.replace(spec, name=region_name(region), shape=shape, region=region)


def _fits(spec: TensorSpec, axis: int, number: int, count: int | None = None) -> bool:
    """Return whether a piece lies along an axis and is the summand of this number."""
    if spec.region is None:
        return not count
    return (
        spec.region.axis == axis and spec.region.summand == number and (count is None or spec.region.summands == count)
    )


def _span(spec: TensorSpec, axis: int, full: int) -> tuple[int, int]:
    return (0, full) if spec.region is None else (spec.region.start, spec.region.stop)


def _extent(pieces: Sequence[_Piece], axis: int) -> int:
    """Return where the pieces end along an axis."""
    return max((one.spec.region.stop if one.spec.region else one.spec.shape[axis] for one in pieces), default=0)


def _missing(start: int, stop: int, there: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of [start, stop) that no range covers."""
    found = []
    for low, high in sorted(there):
        if low > start:
            found.append((start, min(low, stop)))
        start = max(start, high)
        if start >= stop:
            break
    if start < stop:
        found.append((start, stop))
    return [(low, high) for low, high in found if low < high]


def _atoms(requests: Sequence[_Request]) -> dict[tuple[int, TensorSpec], tuple[int, ...]]:
    """Return the requests cut where one of them begins or ends, with all who take each part."""
    found = dict[tuple[int, TensorSpec], tuple[int, ...]]()
    groups = dict[tuple[int, str, int, int, int, bool], list[_Request]]()
    for one in requests:
        region = one.spec.region
        place = (-1, 0, 0) if region is None else (region.axis, region.summand, region.summands)
        groups.setdefault((one.maker, one.spec.of, *place, bool(region and region.parity)), []).append(one)
    for (maker, *_, parity), group in groups.items():
        if parity or group[0].spec.region is None:
            found[maker, group[0].spec] = tuple(sorted({one.taker for one in group}))
            continue
        regions = [one.spec.region for one in group if one.spec.region]
        edges = sorted({edge for region in regions for edge in (region.start, region.stop)})
        for start, stop in pairwise(edges):
            over = [(one, at) for one in group if (at := one.spec.region) and at.start <= start and at.stop >= stop]
            if over:
                one, region = over[0]
                spec = _resized(one.spec, msgspec.structs.replace(region, start=start, stop=stop))
                found[maker, spec] = tuple(sorted({one.taker for one, _ in over}))
    return found
