"""A seeded stand-in for mHealth, so that everything runs on a machine without the data.

Each activity of each synthetic subject has the posture (mean of each channel), the cadence and the amplitude (Fourier
coefficients of each channel at the cadence) of one real subject, from mhealth_synthetic.json, with a little of its own
added, and AR(1) noise as strong and as slow as what the harmonics leave of the real signal. Channels that the published
recordings truncate to integers are whole numbers here too. The tables are statistics of the real recordings
(CC BY 4.0, attribution in the file), derived by bench/synthetic_tables.py. Good enough to see the pipeline work;
no accuracy measured on it says anything about people.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.data.description import NAME, load_description
from har_edge.data.recording import Recording
from har_edge.errors import ConfigError

SUBJECTS = tuple(f"subject{number}" for number in range(1, 9))
SECONDS_PER_ACTIVITY = 30.0
# How far a synthetic subject is from the real one it is modelled on: cadence and amplitude as a share, posture as a
# share of the channel's spread.
CADENCE_SPREAD = 0.02
AMPLITUDE_SPREAD = 0.05
POSTURE_SPREAD = 0.05

Array = npt.NDArray[np.float64]


class Motion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One activity of one subject; lists run over the channels of all sources, harmonics over k = 1, 2, ..."""

    cadence_hz: float
    jitter: float
    mean: list[float]
    cosine: list[list[float]]
    sine: list[list[float]]
    noise: list[float]
    memory: list[float]


class MotionProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One real subject: its motions by label, and the channels that are not whole numbers."""

    stream: str
    exact: list[int]
    activities: dict[int, Motion]


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    attribution: str
    profiles: list[MotionProfile]


@cache
def _load_profiles() -> tuple[MotionProfile, ...]:
    text = (resources.files("har_edge.data") / "mhealth_synthetic.json").read_bytes()
    return tuple(msgspec.json.decode(text, type=_Tables).profiles)


def synthesize(
    streams: Sequence[str] = SUBJECTS,
    *,
    seed: int = 0,
    seconds_per_activity: float = SECONDS_PER_ACTIVITY,
) -> list[Recording]:
    """Make recordings in the shape of mHealth, `real=False`, one a stream: each activity in turn, 50 Hz.

    A recording depends on the seed and its own name alone. Streams named as real subjects are modelled on them, others
    on one of them. Raises ConfigError for a name or a duration that makes no sense.
    """
    if not 0 < seconds_per_activity < 1e5:
        raise ConfigError(f"{seconds_per_activity} seconds an activity, expected more than 0 and less than 100000")
    for stream in streams:
        if not NAME.fullmatch(stream):
            raise ConfigError(f"stream is named {stream!r}, expected letters, digits, _ and -")
    return [_synthesize_one(stream, seed, seconds_per_activity) for stream in streams]


def _synthesize_one(stream: str, seed: int, seconds_per_activity: float) -> Recording:
    description = load_description("mhealth")
    rng = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    profiles = {profile.stream: profile for profile in _load_profiles()}
    profile = profiles.get(stream) or profiles[str(rng.choice(sorted(profiles)))]
    count = max(1, round(seconds_per_activity * description.rate_hz))
    amplitude = 1 + AMPLITUDE_SPREAD * rng.standard_normal()
    cadence = 1 + CADENCE_SPREAD * rng.standard_normal()
    parts = [
        _move(motion, count, description.rate_hz, amplitude, cadence, rng) for motion in profile.activities.values()
    ]
    values = np.concatenate(parts)
    whole = np.setdiff1d(np.arange(values.shape[1]), profile.exact)
    values[:, whole] = np.rint(values[:, whole])
    labels = np.repeat(np.array(list(profile.activities), np.int16), count)
    bounds = np.cumsum([len(source.channels) for source in description.sources])[:-1]
    samples = {
        source.name: np.ascontiguousarray(part, dtype=np.float32)
        for source, part in zip(description.sources, np.split(values, bounds, axis=1), strict=True)
    }
    return Recording(stream, description.rate_hz, samples, labels, real=False)


def _move(
    motion: Motion, count: int, rate_hz: float, amplitude: float, cadence: float, rng: np.random.Generator
) -> Array:
    """Return float64 [count, channels]: posture + harmonics of a wandering cadence + AR(1) noise."""
    noise, memory = np.array(motion.noise), np.array(motion.memory)
    cosine, sine = np.array(motion.cosine), np.array(motion.sine)
    # The cadence wanders around its mean as slowly as it does between the pieces it was measured on, about 8 s.
    pace = motion.cadence_hz * cadence * (1 + motion.jitter * _wander(count, np.array([0.995]), rng)[:, 0])
    turns = 2 * np.pi * (rng.random() + np.cumsum(pace) / rate_hz)
    angles = turns[:, None] * np.arange(1, len(cosine) + 1)
    swing = np.cos(angles) @ cosine + np.sin(angles) @ sine
    spread = np.sqrt(noise**2 + (cosine**2 + sine**2).sum(axis=0) / 2)
    posture = np.array(motion.mean) + POSTURE_SPREAD * spread * rng.standard_normal(len(noise))
    values: Array = posture + amplitude * swing + noise * _wander(count, memory, rng)
    return values


def _wander(count: int, memory: Array, rng: np.random.Generator) -> Array:
    """Return AR(1) noise of unit variance, [count, channels], begun in its steady state."""
    drive = rng.standard_normal((count, len(memory)))
    drive[1:] *= np.sqrt(1 - memory**2)
    for row in range(1, count):
        drive[row] += memory * drive[row - 1]
    return drive
