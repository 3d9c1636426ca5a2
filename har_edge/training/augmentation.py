"""Augmentation: what differs between people, sensors and the way they are strapped on.

Rotation, gain, noise and change of pace are those of Um et al., "Data augmentation of wearable sensor data for
Parkinson's disease monitoring using convolutional neural networks", ICMI 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from har_edge.streams.description import StreamDescription
from har_edge.streams.recording import Samples
from har_edge.training.dataset import Batch

Array = npt.NDArray[np.float32]

# People stand upright in one way, but sit and lie in many, and each recording shows one of them: without this, a
# network learns the chairs of its training subjects. Chosen by leave-one-subject-out on subjects 1 to 6.
POSTURE_DEG = {"sitting and relaxing": 30.0, "lying down": 20.0}


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a window may be changed.

    `rotation_deg` turns each sensor about any axis, `source_deg` and `posture_deg` allow more for a source or for an
    activity (the largest counts); `gain` scales accelerations, `noise` is a standard deviation in steps of one unit,
    `pace` stretches time; the last three are shares of 1.
    """

    rotation_deg: float = 6.0
    source_deg: Mapping[str, float] = field(default_factory=dict)
    posture_deg: Mapping[str, float] = field(default_factory=lambda: dict(POSTURE_DEG))
    gain: float = 0.1
    noise: float = 0.2
    pace: float = 0.1


class Augmenter:
    """Changes batches of one data set at random; channels named *_x, *_y, *_z are turned as one vector."""

    def __init__(self, description: StreamDescription, labels: Sequence[str], settings: Augmentation) -> None:
        self._settings = settings
        self._triads = {
            source.name: [
                [at, at + 1, at + 2]
                for at, channel in enumerate(source.channels)
                if channel.endswith("_x")
                and source.channels[at + 1 : at + 3] == (f"{channel[:-1]}y", f"{channel[:-1]}z")
            ]
            for source in description.sources
        }
        self._accelerations = {
            source.name: [at for at, channel in enumerate(source.channels) if channel.startswith("acc")]
            for source in description.sources
        }
        self._posture_deg = np.array([settings.posture_deg.get(label, 0.0) for label in labels])

    def change(self, batch: Batch, scales: Mapping[str, Array], random: np.random.Generator) -> Batch:
        """Return a changed copy; `scales` holds the spread of each channel by source, which noise keeps to."""
        count = len(batch)
        stretch = 1 + random.uniform(-self._settings.pace, self._settings.pace, count)
        samples: dict[str, Samples] = {}
        for source, values in batch.samples.items():
            values = change_pace(values, stretch)
            limit = max(self._settings.rotation_deg, self._settings.source_deg.get(source, 0.0))
            turn = rotations(np.maximum(limit, self._posture_deg[batch.classes]), random)
            for triad in self._triads[source]:
                values[:, :, triad] = values[:, :, triad] @ turn
            gain = random.uniform(1 - self._settings.gain, 1 + self._settings.gain, (count, 1, 1))
            values[:, :, self._accelerations[source]] *= gain.astype(np.float32)
            noise = self._settings.noise * np.minimum(scales[source], 1.0)
            values += random.standard_normal(values.shape, np.float32) * noise
            samples[source] = values
        return Batch(samples, batch.classes)


def change_pace(values: Samples, stretch: npt.NDArray[np.float64]) -> Samples:
    """Return windows [n, L, C] slowed (< 1) or quickened (> 1) about their middle, by linear interpolation.

    Where a quickened window ends early, time runs back from its edge.
    """
    last = values.shape[1] - 1
    at = np.abs((np.arange(last + 1) - last / 2)[None] * stretch[:, None] + last / 2)
    at = np.where(at > last, 2 * last - at, at)
    before = np.minimum(at.astype(np.int64), last - 1)
    share = (at - before)[..., None].astype(np.float32)
    row = np.arange(len(values))[:, None]
    changed: Samples = values[row, before] * (1 - share) + values[row, before + 1] * share
    return changed


def rotations(limit_deg: npt.NDArray[np.float64], random: np.random.Generator) -> Array:
    """Return a rotation matrix [n, 3, 3] about a random axis for each limit, by Rodrigues' formula."""
    axis = random.standard_normal((len(limit_deg), 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.deg2rad(limit_deg * random.uniform(-1, 1, len(limit_deg)))[:, None, None]
    cross = np.zeros((len(limit_deg), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = axis
    cross[:, [1, 2, 0], [2, 0, 1]] = -axis
    turned: Array = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross).astype(np.float32)
    return turned
