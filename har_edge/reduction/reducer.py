"""The protocol that every reduction method keeps: window -> code -> window."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from har_edge.streams.recording import Samples

Code = npt.NDArray[Any]


class Reducer(Protocol):
    """Turns the window of one source into fewer bytes, and back as well as it can.

    A reducer is built for one source (window length L, channels C) from its specification by `make_reducer`; it holds
    no state between windows, so a window may be encoded twice, or out of order, with the same result.
    """

    @property
    def spec(self) -> str:
        """Canonical text that makes this reducer again, such as `paa:5+q8`."""

    @property
    def code_shape(self) -> tuple[int | None, ...]:
        """Shape of a code; None where it varies by window."""

    @property
    def code_dtype(self) -> str:
        """NumPy name of the code's dtype, such as `int8`."""

    def encode(self, window: Samples) -> Code:
        """Reduce one window, float32 [L, C], to its code."""

    def decode(self, code: Code) -> Samples:
        """Restore float32 [L, C] from a code; raises MessageError for a code of the wrong shape, dtype or content."""
