"""Scaling to comparable channels, from training recordings only; it ends up inside the first convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.streams.recording import Recording, Samples

Array = npt.NDArray[np.float32]

# Full scale of an input. An int8 input has one step size for all channels of a source, so the range has to be that of
# the accelerometer (22 m/s2: steps of 0.17), not of the magnetometer (600 units: steps of 5); what is beyond saturates.
FULL_SCALE = 22.0
# No channel is blown up beyond a tenth of full scale: rounding to int8 would be blown up with it, and so would the
# noise of channels that hold next to nothing (ECG and ankle gyroscope, truncated to integers in the recordings).
LEAST_SPREAD = FULL_SCALE / 10


@dataclass(frozen=True, slots=True)
class Scaling:
    """What makes channels comparable: clip at `full_scale`, take `mean` away, divide by `spread` (by source, [C])."""

    mean: Mapping[str, Array]
    spread: Mapping[str, Array]
    full_scale: float = FULL_SCALE

    def apply(self, samples: Mapping[str, Samples]) -> dict[str, Samples]:
        """Return scaled samples [..., C] by source."""
        return {
            source: (self.clip(values) - self.mean[source]) / self.spread[source] for source, values in samples.items()
        }

    def clip(self, values: Samples) -> Samples:
        """Return samples held within full scale, as an int8 input holds them."""
        clipped: Samples = np.clip(values, -self.full_scale, self.full_scale)
        return clipped


def measure_scaling(recordings: Sequence[Recording]) -> Scaling:
    """Return the scaling of some recordings; nearly constant channels count as having LEAST_SPREAD."""
    mean: dict[str, Array] = {}
    spread: dict[str, Array] = {}
    for source in recordings[0].samples:
        values = np.concatenate([recording.samples[source] for recording in recordings])
        values = np.clip(values, -FULL_SCALE, FULL_SCALE).astype(np.float64)
        mean[source] = values.mean(0).astype(np.float32)
        spread[source] = np.maximum(values.std(0), LEAST_SPREAD).astype(np.float32)
    return Scaling(mean, spread)
