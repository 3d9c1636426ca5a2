"""Augmentation: what differs between people, sensors and the way they are strapped on.

Rotation, gain, noise and change of pace are those of Um et al., "Data augmentation of wearable sensor data for
Parkinson's disease monitoring using convolutional neural networks", ICMI 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from har_edge.data.description import StreamDescription
from har_edge.data.recording import Samples
from har_edge.training.dataset import Batch, Draw, Indices
from har_edge.training.magnitude import triads_of
from har_edge.training.scaling import Scaling

Array = npt.NDArray[np.float32]

# People stand upright in one way, but sit and lie in many, and each recording shows one of them: without this, a
# network learns the chairs of its training subjects. Chosen by leave-one-subject-out on all eight subjects of mHealth.
POSTURE_DEG = {
    "sitting and relaxing": {"chest": 20.0, "ankle": 45.0, "arm": 70.0},
    "lying down": {"chest": 25.0, "ankle": 50.0, "arm": 120.0},
}
# Who sits leans back or forward, so this channel takes either sign.
LEAN = {"sitting and relaxing": ("chest", "acc_z")}
# How far the strength of a movement may differ, as a logarithm: people swing their arms as they like, but how hard they
# tread is what tells running from jogging.
SWING = {"chest": 0.15, "ankle": 0.03, "arm": 0.4}
NOISE_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a window may be changed.

    `rotation_deg` turns each sensor about any axis, `posture_deg` allows more for an activity and source. `lean` is the
    share of windows whose channel of `LEAN` changes sign, `exchange` that of windows that get a source other than the
    first from another window of the same activity, so that no pair of sensors of one person is learnt by heart. `swing`
    is how far what is not constant of accelerations, which is movement and not gravity, may be stronger or weaker: the
    logarithm of a factor, by source, and `other_swing` where a source is not named; `turning` is the same for
    gyroscopes of sources that are named. `noise` is a standard deviation, in steps of the grain of a channel, `pace`
    stretches time, `absent` is the share of windows that a source is missing from; both are shares of 1.

    Nobody knows how a source that is in no table is stuck on, or what its surroundings are: it is turned by
    `other_rotation_deg`, and channels that are no vectors are shifted by a constant for each window, normal with a
    standard deviation of `offset` spreads. Without, a network knows the machines of its training by these alone.
    """

    rotation_deg: float = 6.0
    posture_deg: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: dict(POSTURE_DEG))
    lean: float = 0.5
    exchange: float = 0.5
    swing: Mapping[str, float] = field(default_factory=lambda: dict(SWING))
    other_swing: float = 0.15
    turning: float = 0.4
    noise: float = 0.2
    pace: float = 0.1
    absent: float = 0.0
    other_rotation_deg: float = 60.0
    offset: float = 1.0


class Augmenter:
    """Changes windows of one data set at random; channels named *_x, *_y, *_z are turned as one vector.

    Channels of one place of the body are turned and exchanged as one, whatever sources they are grouped in.
    """

    def __init__(self, description: StreamDescription, labels: Sequence[str], settings: Augmentation) -> None:
        self._settings = settings
        self._widths = {source.name: len(source.channels) for source in description.sources}
        self._places = [_Place(name, parts, labels, settings) for name, parts in _places(description).items()]
        # Normal deviates take longer than all the rest, so windows take theirs from random places in one store.
        self._noise = np.random.default_rng(0).standard_normal(NOISE_VALUES, np.float32)

    def change(self, draw: Draw, scaling: Scaling, random: np.random.Generator) -> Batch:
        """Return changed copies; noise keeps to the grain of each channel."""
        count, settings = len(draw), self._settings
        stretch = 1 + random.uniform(-settings.pace, settings.pace, count)
        before, share = _pace(draw.length, stretch)
        samples: dict[str, Samples] = {}
        for number, place in enumerate(self._places):
            starts = draw.starts
            if number and settings.exchange:
                starts = starts[exchanged(draw.classes, settings.exchange, random)]
            turn = rotations(place.limit_deg[draw.classes], random)
            moved, turned = np.exp(random.uniform(-1, 1, (2, count, 1)) * [[[place.swing]], [[place.turning]]])
            for part in place.parts:
                values = _between(draw.samples[part.source], starts[:, None] + before, share)
                whole = len(part.channels) == self._widths[part.source]
                values = values if whole else values[:, :, part.channels]
                gain = np.ones((count, len(part.channels)), np.float32)
                gain[:, part.accelerations], gain[:, part.gyroscopes] = moved, turned
                mixture = self._mixture(part, draw.classes, turn, random)
                gravity = (values.mean(1, keepdims=True) @ mixture)[:, 0, part.accelerations]
                values = values @ (mixture * gain[:, None])
                values[:, :, part.accelerations] += (gravity * (1 - gain[:, part.accelerations]))[:, None]
                if settings.noise:
                    deviation = settings.noise * scaling.grain[part.source][part.channels]
                    values += self._deviates(values.shape, random) * deviation
                if not place.known and settings.offset:
                    shift = settings.offset * scaling.spread[part.source][part.channels] * part.scalar
                    values += shift * random.standard_normal((count, 1, len(part.channels)), np.float32)
                if whole:
                    samples[part.source] = values
                else:
                    shape = (count, draw.length, self._widths[part.source])
                    samples.setdefault(part.source, np.empty(shape, np.float32))[:, :, part.channels] = values
        return Batch({source: samples[source] for source in self._widths}, draw.classes)

    def _mixture(self, part: _Part, classes: Indices, turn: Array, random: np.random.Generator) -> Array:
        """Return the matrix [n, C, C] that each window is multiplied by: lean and rotation."""
        width = len(part.channels)
        mixture = np.zeros((len(classes), width, width), np.float32)
        mixture[:, range(width), range(width)] = 1
        for first in part.triads:
            mixture[:, first : first + 3, first : first + 3] = turn
        for index, channel in part.lean:
            other_way = (classes == index) & (random.random(len(classes)) < self._settings.lean)
            mixture[other_way, channel] *= -1
        return mixture

    def _deviates(self, shape: tuple[int, ...], random: np.random.Generator) -> Array:
        size = int(np.prod(shape[1:]))
        if size > NOISE_VALUES // 2:
            return random.standard_normal(shape, np.float32)
        store = np.lib.stride_tricks.sliding_window_view(self._noise, size)
        return store[random.integers(len(store), size=shape[0])].reshape(shape)


class _Part:
    """The channels of one place in one source: where vectors start, what is an acceleration, who leans."""

    def __init__(self, source: str, channels: list[int], names: list[str], leans: Sequence[tuple[int, str]]) -> None:
        self.source = source
        self.channels = channels
        self.triads = triads_of(names)
        self.accelerations = [at for at, name in enumerate(names) if name.startswith("acc")]
        self.gyroscopes = [at for at, name in enumerate(names) if name.startswith("gyro")]
        vectors = {at + axis for at in self.triads for axis in range(3)}
        self.scalar = np.array([at not in vectors for at in range(len(names))], np.float32)
        self.lean = [(index, names.index(channel)) for index, channel in leans if channel in names]


class _Place:
    """A place of the body: its parts, and how far it may be turned for each class."""

    def __init__(self, name: str, parts: _Parts, labels: Sequence[str], settings: Augmentation) -> None:
        leans = [(index, LEAN[label][1]) for index, label in enumerate(labels) if LEAN.get(label, ("",))[0] == name]
        self.parts = [
            _Part(source, [at for at, _ in channels], [channel for _, channel in channels], leans)
            for source, channels in parts.items()
        ]
        postures = [settings.posture_deg.get(label, {}).get(name, 0.0) for label in labels]
        self.known = name in SWING
        rotation_deg = settings.rotation_deg if self.known else settings.other_rotation_deg
        self.swing = settings.swing.get(name, settings.other_swing)
        self.turning = settings.turning if self.known else settings.other_swing
        self.limit_deg = np.array([max(rotation_deg, posture) for posture in postures])


# By source: its channels at a place, each with its index and its name there.
_Parts = dict[str, list[tuple[int, str]]]


def _places(description: StreamDescription) -> dict[str, _Parts]:
    """Return what is at each place: a source, or the channels that a grouping has named `<place>_<channel>`."""
    places: dict[str, _Parts] = {}
    for source in description.sources:
        for at, channel in enumerate(source.channels):
            words = channel.split("_")
            place = "_".join(words[:-2]) or source.name
            places.setdefault(place, {}).setdefault(source.name, []).append((at, "_".join(words[-2:])))
    return places


def exchanged(classes: npt.NDArray[np.int64], share: float, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return which window each one takes its samples from: itself, or for a `share` any of the same class."""
    taken = np.arange(len(classes))
    for index in np.unique(classes):
        same = np.flatnonzero(classes == index)
        taken[same] = np.where(random.random(len(same)) < share, random.choice(same, len(same)), same)
    return taken


def drop_sources(samples: Mapping[str, Samples], share: float, random: np.random.Generator) -> None:
    """Set whole windows of a source to zero, in place, never all of one: what a model is fed for a missing source.

    Neverova, Wolf, Taylor and Nebout, "ModDrop: adaptive multi-modal gesture recognition", IEEE TPAMI 38(8), 2016,
    section 4.2.
    """
    if not share or len(samples) < 2:
        return
    there = random.random((len(samples), len(next(iter(samples.values()))))) >= share
    there |= ~there.any(0)
    for values, mask in zip(samples.values(), there, strict=True):
        values[~mask] = 0


def change_pace(values: Samples, stretch: npt.NDArray[np.float64]) -> Samples:
    """Return windows [n, L, C] slowed (< 1) or quickened (> 1) about their middle, by linear interpolation.

    If a quickened window ends early, time runs back from its edge.
    """
    count, length, channels = values.shape
    before, share = _pace(length, stretch)
    return _between(values.reshape(-1, channels), np.arange(count)[:, None] * length + before, share)


def _pace(length: int, stretch: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], Array]:
    """Return for each sample of each window the one before it at the new pace, and the share of the one after."""
    last = length - 1
    at = np.abs((np.arange(length) - last / 2)[None] * stretch[:, None] + last / 2)
    at = np.where(at > last, 2 * last - at, at)
    before = np.clip(at.astype(np.int64), 0, max(0, last - 1))
    return before, (at - before)[..., None].astype(np.float32)


def _between(values: Samples, before: npt.NDArray[np.int64], share: Array) -> Samples:
    """Return rows of `values` [rows, C] between those at `before` [n, L] and the ones after them."""
    first = np.take(values, before, axis=0, mode="clip")
    second = np.take(values, before + 1, axis=0, mode="clip")
    second -= first
    second *= share
    second += first
    return second


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
