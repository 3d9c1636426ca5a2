"""Checks that every reducer makes on its input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError, DataError, MessageError


def check_window(spec: str, window: Code, shape: tuple[int, ...], dtype: str = "float32") -> None:
    """Raise DataError for a window of another shape or dtype than the reducer's, or with NaN or infinity."""
    if window.shape != shape or window.dtype != dtype:
        raise DataError(
            f"reducer {spec}: window is {window.dtype} {list(window.shape)}, expected {dtype} {list(shape)}"
        )
    if window.dtype.kind == "f" and not np.isfinite(window).all():
        raise DataError(f"reducer {spec}: window holds NaN or infinity, expected finite values")


def check_code(spec: str, code: Code, shape: tuple[int | None, ...], dtype: str) -> None:
    """Raise MessageError for a code of another shape or dtype than the reducer makes, or with NaN or infinity."""
    fits = code.shape == shape or (  # the most frequent case, quickly
        code.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, code.shape, strict=True))
    )
    if not fits or code.dtype != dtype:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise MessageError(f"reducer {spec}: code is {code.dtype} {list(code.shape)}, expected {dtype} [{expected}]")
    if code.dtype.kind == "f" and not np.isfinite(code).all():
        raise MessageError(f"reducer {spec}: code holds NaN or infinity, expected finite values")


def refuse_decoding(spec: str, remedy: str) -> ConfigError:
    """Return the error of a reducer whose codes cannot be restored to windows."""
    return ConfigError(f"reducer {spec}: its codes cannot be made into a window again; {remedy}")


def to_float32(values: npt.NDArray[np.float64]) -> Samples:
    """Return float32; a value beyond its range becomes the largest or least finite one."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest).astype(np.float32)
