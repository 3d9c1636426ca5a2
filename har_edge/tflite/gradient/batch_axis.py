"""Follow the dimension that holds the samples of a batch through an operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from har_edge.tflite.model import Model, Operator
from har_edge.tflite.split.writer import constant_data, raw_inputs


@dataclass(frozen=True, slots=True)
class _Place:
    """The samples along dimension `axis` of input `position` of an operator."""

    model: Model
    operator: Operator
    position: int
    axis: int

    @property
    def rank(self) -> int:
        """Number of dimensions of that input."""
        return len(self.model.main.tensors[raw_inputs(self.operator)[self.position]].shape)

    @property
    def options(self) -> Any:
        """The operator's options, an object of the schema."""
        return self.operator.raw.builtinOptions

    def numbers(self, position: int) -> list[int]:
        """Return a constant input, such as axes."""
        tensor = self.model.main.tensors[raw_inputs(self.operator)[position]]
        return [int(n) for n in constant_data(self.model, tensor).reshape(-1)]


# The dimension that the samples go to; None where the operator mixes them.
_Follow: TypeAlias = Callable[[_Place], "int | None"]


def follow_axis(model: Model, operator: Operator, position: int, axis: int) -> int | None:
    """Return the dimension of the outputs that holds the samples, which input `position` holds along `axis`.

    Returns None where the operator mixes the samples, or puts them where no other rule looks for them. Raises CutError
    where axes are computed.
    """
    follow = _FOLLOW.get(operator.name)
    place = _Place(model, operator, position, axis)
    return axis if follow is None else follow(place)


def _apart_from(axes: Callable[[_Place], Iterable[int]]) -> _Follow:
    """Return what follows an operator that mixes entries along these axes, and moves none."""

    def follow(place: _Place) -> int | None:
        return None if place.axis in {axis % place.rank for axis in axes(place)} else place.axis

    return follow


def _without(axes: Collection[int], axis: int) -> int | None:
    """Return where an axis is once others are gone."""
    return None if axis in axes else axis - sum(other < axis for other in axes)


def _reduced(place: _Place) -> int | None:
    axes = {axis % place.rank for axis in place.numbers(1)}
    kept = _without(axes, place.axis)
    return place.axis if kept is not None and getattr(place.options, "keepDims", False) else kept


def _squeezed(place: _Place) -> int | None:
    """Follow named dimensions alone: without names all of 1 go, and so does the batch when it is 1."""
    named = [] if place.options.squeezeDims is None else [int(axis) % place.rank for axis in place.options.squeezeDims]
    return _without(set(named), place.axis) if named else None


def _expanded(place: _Place) -> int | None:
    return place.axis + (place.numbers(1)[0] % (place.rank + 1) <= place.axis)


def _packed(place: _Place) -> int | None:
    return place.axis + (int(place.options.axis) % (place.rank + 1) <= place.axis)


def _unpacked(place: _Place) -> int | None:
    return _without({int(place.options.axis) % place.rank}, place.axis)


def _gathered(place: _Place) -> int | None:
    """The indices take the place of the axis, in as many dimensions as they have."""
    if place.position or place.options.batchDims:
        return None
    axis = int(place.options.axis) % place.rank
    indices = place.model.main.tensors[raw_inputs(place.operator)[1]]
    if place.axis == axis:
        return None
    return place.axis + (len(indices.shape) - 1 if axis < place.axis else 0)


def _transposed(place: _Place) -> int | None:
    return [axis % place.rank for axis in place.numbers(1)].index(place.axis)


def _sliced(place: _Place) -> int | None:
    """Count the dimensions that entries in front of the samples' own one add or take away."""
    options, axis, added = place.options, 0, 0
    if options.ellipsisMask:
        return place.axis if not options.newAxisMask and not options.shrinkAxisMask else None
    for entry in range(len(place.numbers(1))):
        if options.newAxisMask >> entry & 1:
            added += axis <= place.axis
        else:
            if options.shrinkAxisMask >> entry & 1:
                if axis == place.axis:
                    return None
                added -= axis < place.axis
            axis += 1
    return place.axis + added


def _multiplied(place: _Place) -> int | None:
    """The right operand keeps samples in its batch dimensions only, the left one in its rows too."""
    summed = place.rank - (2 if place.options.adjX else 1)
    if place.position:
        return place.axis if place.axis < place.rank - 2 else None
    if place.axis == summed:
        return None
    return place.axis if place.axis < place.rank - 2 else place.rank - 2


def _padded(place: _Place) -> Iterable[int]:
    pairs = np.array(place.numbers(1)).reshape(-1, 2)
    return [axis for axis, (before, after) in enumerate(pairs) if before or after]


def _repeated(place: _Place) -> Iterable[int]:
    return [axis for axis, times in enumerate(place.numbers(1)) if times != 1]


_last = _apart_from(lambda place: [-1])
_FOLLOW: dict[str, _Follow] = {
    **dict.fromkeys(("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "ARG_MAX", "ARG_MIN"), _reduced),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION", "TOPK_V2"), _last),
    **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), _apart_from(_padded)),
    **dict.fromkeys(("CUMSUM", "REVERSE_V2"), _apart_from(lambda place: place.numbers(1))),
    "SPLIT": _apart_from(lambda place: place.numbers(0)),
    "SPLIT_V": _apart_from(lambda place: place.numbers(2)),
    "CONCATENATION": _apart_from(lambda place: [int(place.options.axis)]),
    "TILE": _apart_from(_repeated),
    "SQUEEZE": _squeezed,
    "EXPAND_DIMS": _expanded,
    "PACK": _packed,
    "UNPACK": _unpacked,
    "GATHER": _gathered,
    "TRANSPOSE": _transposed,
    "STRIDED_SLICE": _sliced,
    "BATCH_MATMUL": _multiplied,
}
