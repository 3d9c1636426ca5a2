"""The protocol of every reduction method: window -> code -> window, or code -> features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from har_edge.data.recording import Samples

Code = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CodeLayout:
    """The position of the values in a fixed code: after `head` bytes, an array of this dtype and shape."""

    head: int
    dtype: str
    shape: tuple[int, ...]


class Reducer(Protocol):
    """Reduces the window of one source to fewer bytes, and restores it as well as the method can.

    `make_reducer` builds a reducer for one source (window length L, channels C) from its specification. A reducer keeps
    no state between windows, so a window may be encoded twice, or out of order, with the same result. Behind another
    reducer in a chain, its window is the code of that one.
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
        """Bytes of a code, or the largest number where it varies."""

    @property
    def code_scale(self) -> float:
        """Value of one level of an integer code: feature = code_scale * (code - code_zero); 0 without one scale."""

    @property
    def code_zero(self) -> int:
        """The level that stands for zero; 0 without a single scale."""

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
        """True for a method that only writes the value before it in fewer bits: quantisers and entropy coders."""

    def encode(self, window: Samples) -> Code:
        """Reduce one window, float32 [L, C]. Raises DataError for another shape or dtype, NaN or infinity."""

    def features(self, code: Code) -> Samples:
        """Return the input of a classifier, float32 [feature_shape]. Raises MessageError as `decode` does."""

    def decode(self, code: Code) -> Samples:
        """Restore float32 [L, C]. Raises MessageError for a malformed code, ConfigError if the method cannot."""
