"""The protocol that every reduction method keeps: window -> code -> window, or code -> features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from har_edge.data.recording import Samples

Code = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CodeLayout:
    """Where the values of a fixed code stand: after `head` bytes, an array of this dtype and shape."""

    head: int
    dtype: str
    shape: tuple[int, ...]


class Reducer(Protocol):
    """Turns the window of one source into fewer bytes, and back as well as it can.

    A reducer is built for one source (window length L, channels C) from its specification by `make_reducer`; it holds
    no state between windows, so a window may be encoded twice, or out of order, with the same result. Where it stands
    behind another one in a chain, its window is that one's code.
    """

    @property
    def spec(self) -> str:
        """Canonical text that makes this reducer again, such as `paa:5+q8`."""

    @property
    def code_shape(self) -> tuple[int | None, ...]:
        """Shape of a code; (None,) where its length varies by window, and then its dtype is uint8."""

    @property
    def code_dtype(self) -> str:
        """NumPy name of the code's dtype, such as `int8`."""

    @property
    def most_bytes(self) -> int:
        """Bytes of a code; the most that one can have where it varies."""

    @property
    def code_scale(self) -> float:
        """What one level of an integer code is worth: feature = code_scale * (code - code_zero); 0 where no one is."""

    @property
    def code_zero(self) -> int:
        """The level that stands for zero; 0 where there is no one scale."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of `features(code)`: two dimensions are [time, channels], one is a vector without time."""

    @property
    def operations(self) -> int:
        """Arithmetic operations that encode one window; a multiply-accumulate counts 2."""

    @property
    def restores(self) -> bool:
        """False where `decode` is impossible, as for window statistics."""

    @property
    def is_coding(self) -> bool:
        """True where it only writes the value before it in fewer bits: quantisers and entropy coders."""

    def encode(self, window: Samples) -> Code:
        """Reduce one window, float32 [L, C], to its code; DataError for another shape or dtype, NaN or infinity."""

    def features(self, code: Code) -> Samples:
        """Return what a classifier on codes sees: float32 [feature_shape]; MessageError as for `decode`."""

    def decode(self, code: Code) -> Samples:
        """Restore float32 [L, C]; MessageError for a wrong shape, dtype or content, ConfigError if it cannot."""
