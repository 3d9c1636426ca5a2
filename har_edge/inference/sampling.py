"""Random inputs for a model, to time it and to compare two ways of running it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from har_edge.inference.interpreter import Array, Port


def sample(ports: Iterable[Port], rng: np.random.Generator, *, batch: int = 1) -> dict[str, Array]:
    """Return random values for each port, by name; a dynamic first dimension gets size `batch`, others get 1.

    Quantised and 8-bit ports get values of their whole range, floats a normal distribution. Other integers get 0 or 1:
    they are often indices or lengths, and 0 and 1 are legal nearly everywhere.
    """
    return {port.name: _values(port, rng, batch) for port in ports}


def _values(port: Port, rng: np.random.Generator, batch: int) -> Array:
    shape = tuple((1 if axis else batch) if n == -1 else n for axis, n in enumerate(port.shape))
    dtype: np.dtype[Any] = port.dtype
    if dtype.kind in "iu":
        full = dtype.itemsize == 1 or port.scale > 0
        low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if full else (0, 1)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
