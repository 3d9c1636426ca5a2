"""Ranges of elements along one axis of a tensor, and the parts of weights that belong to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError


@dataclass(frozen=True, slots=True)
class AxisRange:
    """Elements [start, stop) along an axis of a tensor."""

    axis: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def on(self, axis: int) -> AxisRange:
        """Return the same elements along another axis."""
        return AxisRange(axis, self.start, self.stop)

    def index(self) -> tuple[slice, ...]:
        """Return the index of the elements in an array."""
        return (*(slice(None),) * self.axis, slice(self.start, self.stop))

    def resized(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a tensor that has only these elements."""
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])


def reshaped(taken: Sequence[int], given: Sequence[int], wanted: AxisRange) -> AxisRange:
    """Return the range of a tensor of shape `taken` that holds a range of it in the shape `given`.

    Raises CutError where these elements are no range along one axis.
    """
    outer, inner = math.prod(given[: wanted.axis]), math.prod(given[wanted.axis + 1 :])
    block = given[wanted.axis] * inner
    for axis, size in enumerate(taken):
        if size < 2 or math.prod(taken[:axis]) != outer or math.prod(taken[axis:]) != block:
            continue
        unit = math.prod(taken[axis + 1 :])
        if wanted.start * inner % unit or wanted.stop * inner % unit:
            step = math.lcm(unit, inner) // inner
            raise CutError(
                f"makes {list(given)} of {list(taken)}, so that shares have to be multiples of {step}, but "
                f"[{wanted.start}, {wanted.stop}) came"
            )
        return AxisRange(axis, wanted.start * inner // unit, wanted.stop * inner // unit)
    raise CutError(f"makes {list(given)} of {list(taken)}, where a share of axis {wanted.axis} lies scattered")


def cut_scales(quantization: Any, wanted: AxisRange) -> Any:
    """Return the quantisation of a part of a tensor: scales and zero points per channel are cut with it."""
    if quantization is None or quantization.scale is None or len(quantization.scale) < 2:
        return quantization
    if quantization.quantizedDimension != wanted.axis:
        return quantization
    result = copy.copy(quantization)
    full = len(quantization.scale)
    for name in ("scale", "zeroPoint", "min", "max"):
        values = getattr(quantization, name)
        if values is not None and len(values) == full:
            setattr(result, name, np.asarray(values)[wanted.start : wanted.stop])
    return result


def cut_data(data: NDArray[Any], wanted: AxisRange) -> NDArray[Any]:
    """Return a part of a constant; along the first axis, it is a view."""
    return data[wanted.index()]
