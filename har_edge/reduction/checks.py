"""What every reducer checks about what it is given."""

from __future__ import annotations

import numpy as np

from har_edge.errors import DataError, MessageError
from har_edge.reduction.reducer import Code
from har_edge.streams.recording import Samples


def check_window(spec: str, window: Samples, shape: tuple[int, int]) -> None:
    """Refuse a window of another shape or dtype than the reducer was built for, with DataError."""
    if window.shape != shape or window.dtype != np.float32:
        raise DataError(
            f"reducer {spec}: window is {window.dtype} {list(window.shape)}, expected float32 {list(shape)}"
        )


def check_code(spec: str, code: Code, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a code of another shape or dtype than the reducer makes, with MessageError."""
    if code.shape != shape or code.dtype.name != dtype:
        raise MessageError(f"reducer {spec}: code is {code.dtype} {list(code.shape)}, expected {dtype} {list(shape)}")
