"""How a tensor travels between slices: as it is, in fewer bits, or compressed; the text of it in manifests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from har_edge.errors import ConfigError

# Types whose values may travel in fewer bits; in their own type they are in the memory of every slice.
ROUNDED = ("float32", "float64")
ZSTD = "zstd"
QUANTISED_LOW, QUANTISED_HIGH = -128, 127
LEAST_SCALE, MOST_SCALE = 1e-30, 1e30  # so that float32 has it, and what it is divided by, to full precision


class Rounding(Enum):
    """The type that the values are rounded to on the way: their own, float16, or int8 by a scale and a zero point."""

    NONE = ""
    FLOAT16 = "f2"
    INT8 = "q8"


@dataclass(frozen=True, slots=True)
class TensorPacking:
    """How a tensor travels: rounded or not, then compressed without loss (`zstd`) or not.

    For INT8, real = scale * (q - zero). A packing that is to be calibrated has the scale 0.
    """

    rounding: Rounding = Rounding.NONE
    scale: float = 0.0
    zero: int = 0
    zstd: bool = False

    @property
    def text(self) -> str:
        """The packing as manifests have it, such as `f2`, `q8:0.0123:-4+zstd`; empty for a tensor as it is."""
        scale = repr(self.scale).replace("e+", "e")  # a plus separates parts
        parts = [f"q8:{scale}:{self.zero}" if self.rounding is Rounding.INT8 else self.rounding.value]
        return "+".join([part for part in (*parts, ZSTD if self.zstd else "") if part])

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what nodes must know for it: f2, q8, zstd."""
        return tuple(part for part in (self.rounding.value, ZSTD if self.zstd else "") if part)

    @property
    def is_calibrated(self) -> bool:
        """Whether it has all figures that it needs."""
        return self.rounding is not Rounding.INT8 or self.scale > 0

    def calibrated(self, low: float, high: float) -> TensorPacking:
        """Return the packing with the scale and zero point that hold all values from `low` to `high`, and 0 exactly.

        Raises ConfigError for values that are no numbers, or too large for any scale.
        """
        if self.rounding is not Rounding.INT8:
            return self
        if not (math.isfinite(low) and math.isfinite(high)) or high - low > MOST_SCALE:
            raise ConfigError(f"values from {low} to {high} came; expected smaller numbers to calibrate q8 with")
        low, high = min(low, 0.0), max(high, 0.0)
        steps = QUANTISED_HIGH - QUANTISED_LOW - 1  # the zero point is rounded, so one step more may be needed
        scale = max(LEAST_SCALE, (high - low) / steps) if high > low else 1.0 / steps
        zero = max(QUANTISED_LOW, min(QUANTISED_HIGH, round(QUANTISED_LOW - low / scale)))
        return replace(self, scale=scale, zero=zero)


def parse_packing(text: str, *, calibrated: bool = True) -> TensorPacking:
    """Return the packing that a text names; `calibrated` asks for the figures of q8, and else for none.

    Raises ConfigError for a text that names none.
    """
    found = TensorPacking()
    for number, part in enumerate(text.split("+")):
        name, *figures = part.split(":")
        if name == ZSTD and not figures and not found.zstd:
            found = replace(found, zstd=True)
        elif name == Rounding.FLOAT16.value and not figures and number == 0:
            found = replace(found, rounding=Rounding.FLOAT16)
        elif name == Rounding.INT8.value and number == 0 and (len(figures) == 2) is calibrated:
            found = _with_figures(text, figures) if figures else replace(found, rounding=Rounding.INT8)
        else:
            raise _unknown(text, calibrated=calibrated)
    return found


def _with_figures(text: str, figures: list[str]) -> TensorPacking:
    try:
        scale, zero = float(figures[0]), int(figures[1])
    except ValueError:
        raise _unknown(text, calibrated=True) from None
    if not LEAST_SCALE <= scale <= MOST_SCALE or not QUANTISED_LOW <= zero <= QUANTISED_HIGH:
        raise _unknown(text, calibrated=True)
    return TensorPacking(Rounding.INT8, scale, zero)


def _unknown(text: str, *, calibrated: bool) -> ConfigError:
    q8 = "q8:SCALE:ZERO (a number from 1e-30 to 1e30, and a whole one from -128 to 127)" if calibrated else "q8"
    return ConfigError(f"packing {text[:64]!r} came; expected f2, {q8}, zstd, f2+zstd or {q8.split()[0]}+zstd")


def find_packing_flaw(text: str, dtype: str) -> str:
    """Return why a tensor of this type cannot travel so, an empty text where it can."""
    try:
        packing = parse_packing(text)
    except ConfigError as error:
        return str(error)
    if packing.rounding is not Rounding.NONE and dtype not in ROUNDED:
        return f"packing {text!r} came for a tensor of {dtype}; expected zstd, since only {', '.join(ROUNDED)} round"
    return ""
