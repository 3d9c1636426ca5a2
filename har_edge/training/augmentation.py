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
POSTURE_DEG = {
    "sitting and relaxing": {"chest": 45.0, "ankle": 45.0, "arm": 70.0},
    "lying down": {"chest": 25.0, "ankle": 25.0, "arm": 25.0},
}
# Who sits leans back or forward, so this channel takes either sign.
LEAN = {"sitting and relaxing": ("chest", "acc_z")}


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a window may be changed.

    `rotation_deg` turns each sensor about any axis, `posture_deg` allows more for an activity and source. `lean` is the
    share of windows whose channel of `LEAN` changes sign, `exchange` that of windows that get a source other than the
    first from another window of the same activity, so that no pair of sensors of one person is learnt by heart. `gain`
    scales accelerations, `noise` is a standard deviation in steps of one unit, `pace` stretches time; all but degrees
    are shares of 1.
    """

    rotation_deg: float = 6.0
    posture_deg: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: dict(POSTURE_DEG))
    lean: float = 0.5
    exchange: float = 0.5
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
        self._limit_deg = {
            source.name: np.array(
                [
                    max(settings.rotation_deg, settings.posture_deg.get(label, {}).get(source.name, 0.0))
                    for label in labels
                ]
            )
            for source in description.sources
        }
        self._lean = {
            source.name: [
                (index, source.channels.index(LEAN[label][1]))
                for index, label in enumerate(labels)
                if label in LEAN and LEAN[label][0] == source.name and LEAN[label][1] in source.channels
            ]
            for source in description.sources
        }

    def change(self, batch: Batch, scales: Mapping[str, Array], random: np.random.Generator) -> Batch:
        """Return a changed copy; `scales` holds the spread of each channel by source, which noise keeps to."""
        count = len(batch)
        stretch = 1 + random.uniform(-self._settings.pace, self._settings.pace, count)
        samples: dict[str, Samples] = {}
        for number, (source, values) in enumerate(batch.samples.items()):
            if number and self._settings.exchange:
                values = values[exchanged(batch.classes, self._settings.exchange, random)]
            values = change_pace(values, stretch)
            for index, channel in self._lean[source]:
                other_way = (batch.classes == index) & (random.random(count) < self._settings.lean)
                values[other_way, :, channel] *= -1
            turn = rotations(self._limit_deg[source][batch.classes], random)
            for triad in self._triads[source]:
                values[:, :, triad] = values[:, :, triad] @ turn
            gain = random.uniform(1 - self._settings.gain, 1 + self._settings.gain, (count, 1, 1))
            values[:, :, self._accelerations[source]] *= gain.astype(np.float32)
            noise = self._settings.noise * np.minimum(scales[source], 1.0)
            values += random.standard_normal(values.shape, np.float32) * noise
            samples[source] = values
        return Batch(samples, batch.classes)


def exchanged(classes: npt.NDArray[np.int64], share: float, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return which window each one takes its samples from: itself, or for a `share` any of the same class."""
    taken = np.arange(len(classes))
    for index in np.unique(classes):
        same = np.flatnonzero(classes == index)
        taken[same] = np.where(random.random(len(same)) < share, random.choice(same, len(same)), same)
    return taken


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
