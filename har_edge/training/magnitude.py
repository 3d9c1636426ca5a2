"""Magnitudes of vectors: how strong a movement is, whichever way its sensor is strapped on.

A window gets one channel more for each accelerometer and gyroscope with three axes, and its code the robust statistics
of a window (Huber, "Robust Statistics", 1981, chapter 5), which a few odd samples do not move: the median of each
magnitude, the median of each acceleration, which is where gravity points, and the interquartile range of each
magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Recording, Samples
from har_edge.training.scaling import LEAST_SPREAD, Scaling

Array = npt.NDArray[np.float32]

KINDS = ("acc", "gyro")
# Scaled medians keep within so many standard deviations, nearly always; codes are held within 1.
REACH = 4.0
# Quantiles as shares of a window from its largest sample down.
MIDDLE = 0.5
QUARTILES = (0.25, 0.75)
# About the interquartile range of a magnitude in deviations, taken away so that zero is nothing special.
USUAL_RANGE = 1.0


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """By source: the first channel of each vector, and mean and spread of its magnitude in training, float32 [M].

    `upright` are the G channels of accelerations with three axes.
    """

    triads: Mapping[str, tuple[int, ...]]
    upright: Mapping[str, tuple[int, ...]]
    mean: Mapping[str, Array]
    spread: Mapping[str, Array]

    def scaled(self, source: str, windows: Samples) -> Samples:
        """Return the scaled magnitudes [n, L, M] of windows [n, L, C] in physical units."""
        return (magnitudes(windows, self.triads[source]) - self.mean[source]) / self.spread[source]

    def statistics(self, source: str, windows: Samples, scaling: Scaling) -> Array:
        """Return the statistics of windows [n, L, C] as a code holds them, [n, M + G + M] within 1.

        Medians of magnitudes, medians of accelerations, interquartile ranges of magnitudes; none without vectors.
        """
        strength, upright = self.scaled(source, windows), list(self.upright[source])
        gravity = (windows[:, :, upright] - scaling.mean[source][upright]) / scaling.spread[source][upright]
        third, first = (_ranked(strength, part) for part in QUARTILES)
        values = np.concatenate(
            [_ranked(strength, MIDDLE), _ranked(gravity, MIDDLE), third - first - USUAL_RANGE], axis=1
        )
        held: Array = np.clip(values / REACH, -1, 1)
        return held

    def counts(self, source: str) -> tuple[int, int]:
        """Return the number of magnitudes M of a source, and of all its statistics."""
        count = len(self.triads[source])
        return count, 2 * count + len(self.upright[source])

    @staticmethod
    def extend(scaled: Samples, magnitude: Samples) -> Samples:
        """Return scaled windows with their scaled magnitudes as further channels."""
        return np.concatenate([scaled, magnitude], axis=2) if magnitude.shape[2] else scaled


def triads_of(channels: Sequence[str], kinds: Sequence[str] = ()) -> list[int]:
    """Return where vectors start: channels *_x, *_y, *_z in a row; of some kinds alone where they are named."""
    return [
        at
        for at, name in enumerate(channels)
        if name.endswith("_x")
        and list(channels[at + 1 : at + 3]) == [f"{name[:-1]}y", f"{name[:-1]}z"]
        and (not kinds or set(kinds) & set(name.split("_")))
    ]


def magnitudes(windows: Samples, triads: Sequence[int]) -> Samples:
    """Return the length of each vector, float32 [..., M]."""
    found = [np.sqrt(np.square(windows[..., at : at + 3]).sum(-1)) for at in triads]
    return np.stack(found, -1) if found else np.empty((*windows.shape[:-1], 0), np.float32)


def middle(scaled: Samples) -> Array:
    """Return the median over time of scaled magnitudes [n, L, M] as a code holds it, [n, M] within 1."""
    held: Array = np.clip(_ranked(scaled, MIDDLE) / REACH, -1, 1)
    return held


def rank(length: int, part: float) -> int:
    """Return the place of a quantile among samples from the largest down, as `top_k` of TensorFlow sorts them."""
    return int(length * part)


def _ranked(values: Samples, part: float) -> Array:
    length = values.shape[1]
    ascending = length - 1 - rank(length, part)
    found: Array = np.partition(values, ascending, axis=1)[:, ascending].astype(np.float32)
    return found


def measure_magnitudes(recordings: Sequence[Recording], description: StreamDescription, scaling: Scaling) -> Magnitudes:
    """Return the magnitudes of a data set, measured on some recordings."""
    triads = {source.name: tuple(triads_of(source.channels, KINDS)) for source in description.sources}
    upright = {
        source.name: tuple(at + axis for at in triads_of(source.channels, KINDS[:1]) for axis in range(3))
        for source in description.sources
    }
    mean, spread = {}, {}
    for source, starts in triads.items():
        values = magnitudes(np.concatenate([recording.samples[source] for recording in recordings]), starts)
        span = scaling.ranges[source]
        least = 1e-6 if span is None else LEAST_SPREAD * max(abs(span.low), abs(span.high))
        mean[source] = values.mean(0, dtype=np.float64).astype(np.float32)
        spread[source] = np.maximum(values.std(0, dtype=np.float64), least).astype(np.float32)
    return Magnitudes(triads, upright, mean, spread)
