"""What every reducer checks about what it is given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError, DataError, MessageError


def check_window(spec: str, window: Code, shape: tuple[int, ...], dtype: str = "float32") -> None:
    """Refuse a window of another shape or dtype than the reducer was built for, or not finite, with DataError."""
    if window.shape != shape or window.dtype != dtype:
        raise DataError(
            f"reducer {spec}: window is {window.dtype} {list(window.shape)}, expected {dtype} {list(shape)}"
        )
    if window.dtype.kind == "f" and not np.isfinite(window).all():
        raise DataError(f"reducer {spec}: window holds NaN or infinity, expected finite values")


def check_code(spec: str, code: Code, shape: tuple[int | None, ...], dtype: str) -> None:
    """Refuse a code of another shape or dtype than the reducer makes, or not finite, with MessageError."""
    fits = code.shape == shape or (  # the most frequent case, quickly
        code.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, code.shape, strict=True))
    )
    if not fits or code.dtype != dtype:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise MessageError(f"reducer {spec}: code is {code.dtype} {list(code.shape)}, expected {dtype} [{expected}]")
    if code.dtype.kind == "f" and not np.isfinite(code).all():
        raise MessageError(f"reducer {spec}: code holds NaN or infinity, expected finite values")


def refuse_decoding(spec: str, remedy: str) -> ConfigError:
    """Return the error of a reducer whose codes stand for no window."""
    return ConfigError(f"reducer {spec}: its codes cannot be made into a window again; {remedy}")


def to_float32(values: npt.NDArray[np.float64]) -> Samples:
    """Return float32; what is beyond its range is the largest or least that is finite."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest).astype(np.float32)
