"""Real values as integers modulo 2**32, so that sums of them, masked or not, are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import ConfigError, ModelError
from har_edge.learning.updates.vectors import Vector

Words = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Values of at most `limit`, in steps so small as the sum over `devices` leaves room for.

    >>> point = FixedPoint(limit=1.0, devices=3)
    >>> total = point.encode(np.array([1, -0.25], np.float32)) + point.encode(np.array([1, -0.5], np.float32))
    >>> point.decode(total)
    array([ 2.  , -0.75], dtype=float32)
    """

    limit: float
    devices: int

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf or not 1 <= self.devices < 1 << 16:
            raise ConfigError(f"limit {self.limit} of {self.devices} devices, expected a limit above 0, 1 to 65535")

    @property
    def steps(self) -> float:
        """Steps for one."""
        # Each device rounds by half a step, and the sum stays below 2**31.
        return ((1 << 31) - 1 - self.devices) / (self.limit * self.devices)

    def encode(self, values: Vector) -> Words:
        """Return the nearest steps. Raises ModelError for a value beyond the limit: as an integer it would wrap."""
        largest = float(np.max(np.abs(values), initial=0))
        if not largest <= self.limit:
            raise ModelError(
                f"a value is beyond the limit of masked sums, {self.limit:g}; clip the updates with --clip, or lower "
                "the rate"
            )
        return np.rint(values.astype(np.float64) * self.steps).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> Vector:
        """Return the values that a sum of encoded vectors stands for."""
        return (total.view(np.int32) / self.steps).astype(np.float32)
