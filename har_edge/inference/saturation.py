"""Count the values beyond the range of a quantised input, where they saturate, and warn once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from har_edge.codecs.chain import Chain
from har_edge.codecs.learned import LearnedEncoder
from har_edge.codecs.quantize import AffineQuantizer
from har_edge.tflite.manifest import QUANTISED

if TYPE_CHECKING:
    from har_edge.codecs.reducer import Reducer

_log = logging.getLogger(__name__)
# Some models clip on purpose: in the shipped int8 model, 8 % of the values of ankle and arm saturate, mostly those of
# gyroscopes. So a few values beyond the range are usual. Nearly all pixels from 0 to 255 lie beyond the range -1 to 1.
TOLD_FROM = 0.25
# A node checks so many first windows all, and then one window of so many.
FIRST = 64
NODE_EVERY = 32


@dataclass(frozen=True, slots=True)
class QuantizedRange:
    """The real values that an integer type can represent by a scale and a zero point, from `low` to `high`."""

    dtype: str
    low: float
    high: float

    @classmethod
    def of(cls, dtype: str, scale: float, zero: int) -> QuantizedRange:
        """Return the range of a quantised tensor (real = scale * (q - zero))."""
        limits = np.iinfo(dtype)
        return cls(dtype, scale * (limits.min - zero), scale * (limits.max - zero))

    @property
    def step(self) -> float:
        """The distance between two values."""
        limits = np.iinfo(self.dtype)
        return (self.high - self.low) / (int(limits.max) - int(limits.min))


def range_of(dtype: str, scale: float, zero: int) -> QuantizedRange | None:
    """Return the range of a model's input, None where windows do not enter it by a scale."""
    return QuantizedRange.of(dtype, scale, zero) if dtype in QUANTISED and scale > 0 else None


def range_taken(reducer: Reducer) -> QuantizedRange | None:
    """Return the range in which a reducer takes windows, None where it does not quantise them by a fixed range.

    Only the first method of a chain counts, since the others do not take windows.
    """
    if isinstance(reducer, Chain):
        return range_taken(reducer.first)
    quantizer = reducer.enters if isinstance(reducer, LearnedEncoder) else reducer
    if isinstance(quantizer, AffineQuantizer):
        return QuantizedRange.of(quantizer.code_dtype, quantizer.code_scale, quantizer.code_zero)
    return None


@dataclass(slots=True)
class Saturation:
    """Counts the values of one source, and those beyond `range`, the range of `taker`.

    After the first 64 windows, it checks one window of `every`, since a check takes as long as the quantisation.
    """

    source: str
    taker: str
    range: QuantizedRange
    every: int = 1
    values: int = 0
    beyond: int = 0
    least: float = field(default=float("inf"))
    largest: float = field(default=float("-inf"))
    _told: bool = False
    _seen: int = 0

    @property
    def share(self) -> float:
        """Return the fraction of the values that saturate, 0 to 1."""
        return self.beyond / self.values if self.values else 0.0

    def note(self, values: npt.NDArray[Any]) -> None:
        """Count the real values of a window on their way into the input; log one warning when too many saturate.

        A value no more than half a step beyond the range rounds to its last value and does not count.
        """
        self._seen += 1
        if self._seen > FIRST and self._seen % self.every:
            return
        half, limits = self.range.step / 2, self.range
        outside = (values < limits.low - half) | (values > limits.high + half)
        self.values += values.size
        self.beyond += int(np.count_nonzero(outside))
        self.least, self.largest = min(self.least, float(values.min())), max(self.largest, float(values.max()))
        if not self._told and self.share >= TOLD_FROM:
            self._told = True
            _log.warning("%s", self)

    def __str__(self) -> str:
        limits = self.range
        return (
            f"{self.share:.0%} of the values of source {self.source!r} saturate: {self.least:.4g} to "
            f"{self.largest:.4g} came, but {self.taker} takes {limits.low:.4g} to {limits.high:.4g} ({limits.dtype}); "
            "answers are likely to be wrong; scale the recordings, or the device's values, to those that the model was "
            "trained on (docs/how-to/own-model.md#values)"
        )


def totals(saturations: Iterable[Saturation]) -> tuple[int, int]:
    """Return the number of values that were quantised with a fixed range, and the number of those that saturated."""
    counted = list(saturations)
    return sum(one.values for one in counted), sum(one.beyond for one in counted)
