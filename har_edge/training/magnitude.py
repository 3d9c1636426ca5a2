"""Magnitudes of vectors: how strong a movement is, whichever way its sensor is strapped on.

A window gets one channel more for each accelerometer and gyroscope with three axes, and its code the median of each
over time, which a few odd samples do not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.streams.description import StreamDescription
from har_edge.streams.recording import Recording, Samples
from har_edge.training.scaling import LEAST_SPREAD, Scaling

Array = npt.NDArray[np.float32]

KINDS = ("acc", "gyro")
# Scaled medians keep within so many standard deviations, nearly always; codes are held within 1.
REACH = 4.0


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """By source: the first channel of each vector, and mean and spread of its magnitude in training, float32 [M]."""

    triads: Mapping[str, tuple[int, ...]]
    mean: Mapping[str, Array]
    spread: Mapping[str, Array]

    def scaled(self, source: str, windows: Samples) -> Samples:
        """Return the scaled magnitudes [n, L, M] of windows [n, L, C] in physical units."""
        return (magnitudes(windows, self.triads[source]) - self.mean[source]) / self.spread[source]

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
    """Return the median over time of scaled magnitudes [n, L, M] as a code holds it, [n, M] within 1.

    Of an even number of samples it is the lower one of the two in the middle, as the graph takes it.
    """
    length = scaled.shape[1]
    rank = length - 1 - length // 2
    value: Array = np.clip(np.partition(scaled, rank, axis=1)[:, rank] / REACH, -1, 1)
    return value.astype(np.float32)


def measure_magnitudes(recordings: Sequence[Recording], description: StreamDescription, scaling: Scaling) -> Magnitudes:
    """Return the magnitudes of a data set, measured on some recordings."""
    triads = {source.name: tuple(triads_of(source.channels, KINDS)) for source in description.sources}
    mean, spread = {}, {}
    for source, starts in triads.items():
        values = magnitudes(np.concatenate([recording.samples[source] for recording in recordings]), starts)
        span = scaling.ranges[source]
        least = 1e-6 if span is None else LEAST_SPREAD * max(abs(span.low), abs(span.high))
        mean[source] = values.mean(0, dtype=np.float64).astype(np.float32)
        spread[source] = np.maximum(values.std(0, dtype=np.float64), least).astype(np.float32)
    return Magnitudes(triads, mean, spread)
