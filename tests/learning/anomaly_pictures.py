"""Small pictures whose normal look is known, for the tests of anomalies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stripes(count: int, side: int = 16, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Return pictures with vertical stripes and a little noise, uint8 [count, side, side, channels]."""
    generator = np.random.default_rng(seed)
    bright = 120 + 80 * np.sin(np.arange(side) * np.pi / 4)
    values = np.broadcast_to(bright[None, None, :, None], (count, side, side, channels))
    return np.clip(values + generator.normal(0, 6, values.shape), 0, 255).astype(np.uint8)


def with_spot(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return copies with a black square in the upper left quarter."""
    changed = pictures.copy()
    changed[:, 2:6, 3:7] = 0
    return changed
