"""Differential privacy of a device: its update is clipped, noise is added to it, and what a training spent is told.

The unit is a device with all of its samples, not a sample: each update of a device as a whole is scaled to an L2 norm
of at most `clip` (McMahan et al. 2018, section 3). Every device adds its share of the noise before it sends, so that
the sum over all has the standard deviation `noise` times `clip`. Who sees single updates, as the server does without
pairwise masks (`learning/masking/sums.py`), sees them under less noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from har_edge.errors import ConfigError, ModelError
from har_edge.extras import require
from har_edge.learning.updates.vectors import Vector
from har_edge.learning.worker.worker import Protect, as_it_is
from har_edge.protocol.training import MAX_CLIP, MAX_NOISE, TrainingJob
from har_edge.units import plural

# Usual: below one divided by the number of people.
DEFAULT_DELTA = 1e-5


@dataclass(frozen=True, slots=True)
class UpdatePrivacy:
    """The clipping and the noise that a device applies to its update before it sends it.

    Attributes:
        clip: The largest L2 norm of an update.
        noise: Standard deviation of the noise in the sum of all updates, divided by `clip`; 0 is none.
        devices: How many devices share the noise.
    """

    clip: float
    noise: float = 0.0
    devices: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise ConfigError(f"clip {self.clip}, expected a norm above 0, such as 1")
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"noise {self.noise}, expected a number of at least 0, such as 1")
        if self.devices < 1:
            raise ConfigError(f"{self.devices} devices share the noise, expected at least 1")

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise that one device adds."""
        return self.noise * self.clip / math.sqrt(self.devices)

    def protect(self, update: Vector, random: np.random.Generator) -> Vector:
        """Return the clipped update with this device's share of the noise.

        Args:
            update: It is left as it is.
            random: Seeded by the operating system, never by the seed of the run: who knows the seed knows the noise.

        Raises ModelError for values that are not finite: a norm of them says nothing.
        """
        norm = float(np.linalg.norm(update.astype(np.float64)))
        if not math.isfinite(norm):
            raise ModelError("the update has values that are not finite; the learning rate may be too high")
        scale = min(1.0, self.clip / norm) if norm else 1.0
        clipped = update.astype(np.float64) * scale
        if self.noise:
            clipped += random.normal(0.0, self.deviation, update.size)
        return clipped.astype(np.float32)

    def multiplier(self, shares: Sequence[float]) -> float:
        """Return the noise in a weighted sum of updates, over the most that one device can change it.

        `shares` are the weights of the updates that were counted. With all devices and equal shares it is `noise`; it
        is less where devices are missing, or one weighs more than others.
        """
        if not shares or max(shares) <= 0:
            raise ConfigError(f"shares of updates {list(shares)}, expected some above 0")
        return self.noise / math.sqrt(self.devices) * math.hypot(*shares) / max(shares)


class PrivacyAccountant:
    """Adds up what the rounds of a training spent, by Google's dp-accounting (extra `privacy`).

    Every device takes part in every round: no amplification by sampling is claimed. Rounds of Gaussian noise with
    multipliers z compose to exactly one with 1 / sqrt(sum(1 / z**2)) (Dong, Roth and Su 2022, corollary 2), whose
    epsilon the library has without a bound in between (Balle and Wang 2018). Two neighbouring data sets differ in the
    presence of one device.
    """

    def __init__(self, delta: float = DEFAULT_DELTA) -> None:
        """Begin with nothing spent. Raises ConfigError for a delta out of range, or without the library."""
        if not 0 < delta < 1:
            raise ConfigError(f"delta {delta}, expected a probability above 0 and below 1, such as {DEFAULT_DELTA:g}")
        require("the privacy spent", "dp_accounting")
        self.delta = delta
        # Sums of 1 / z**2, of sums and of single updates; infinite after a round without noise.
        self._precision = self._single = 0.0
        self._rounds = 0

    def spend(self, multiplier: float, single: float) -> None:
        """Add a round whose sum had noise of `multiplier` times the clip, and each update `single` times; 0 is none."""
        if not (0 <= multiplier < math.inf and 0 <= single < math.inf):
            raise ConfigError(f"noise multipliers {multiplier} and {single}, expected at least 0")
        self._precision += _precision(multiplier)
        self._single += _precision(single)
        self._rounds += 1

    @property
    def epsilon(self) -> float:
        """Epsilon at `delta` of everything so far."""
        return _epsilon(self._precision, self.delta)

    @property
    def epsilon_single(self) -> float:
        """Epsilon towards who sees the updates of a device one by one, under its own share of the noise alone."""
        return _epsilon(self._single, self.delta)

    def state(self) -> dict[str, float]:
        """Return what a restarted run needs."""
        return {
            "precision": self._precision,
            "single": self._single,
            "rounds": float(self._rounds),
            "delta": self.delta,
        }

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from a state. Raises ModelError for one that is damaged, or of another delta."""
        wanted = {"precision", "single", "rounds", "delta"}
        if set(state) != wanted or not all(value >= 0 for value in state.values()):
            raise ModelError(f"privacy spent: a state of {sorted(state)}, expected {sorted(wanted)}, each from 0")
        if state["delta"] != self.delta:
            raise ModelError(f"privacy spent: delta {state['delta']:g}, expected {self.delta:g}; go on with the same")
        self._precision, self._single, self._rounds = state["precision"], state["single"], int(state["rounds"])

    def describe(self, *, masked: bool = False) -> str:
        """Return the privacy spent, in a line; where updates are `masked`, nobody sees them one by one."""
        rounds = plural(self._rounds, "round")
        if math.isinf(self._precision):
            return f"privacy: none, as {rounds} had no noise"
        spent = f"privacy spent by a device: epsilon {self.epsilon:.3g} at delta {self.delta:g} in {rounds}"
        if masked:
            return f"{spent}; server and broker see masked updates, and their sums alone"
        return (
            f"{spent}; towards server and broker, which see its updates one by one, epsilon {self.epsilon_single:.3g}"
        )


def check_privacy(job: TrainingJob) -> None:
    """Raise ConfigError for a job that cannot keep what its `clip` and `noise` promise."""
    check_noise(job.clip, job.noise, job.compress)


def check_noise(clip: float, noise: float, compress: str) -> None:
    """Raise ConfigError for a clip, a noise of each device and a packing of updates that do not go together."""
    if clip > MAX_CLIP or noise > MAX_NOISE:
        raise ConfigError(
            f"clip {clip:g} and noise {noise:g} a device, expected at most {MAX_CLIP:g} and {MAX_NOISE:g}"
        )
    if noise and not clip:
        raise ConfigError("noise without a clip hides nothing; set --clip, the largest norm of an update")
    if clip and compress.startswith("topk"):
        raise ConfigError(
            f"--clip with --compress {compress}: what was not sent is sent later, beyond the clip; choose none, "
            "float16 or int8"
        )


def protection_of(job: TrainingJob, random: np.random.Generator) -> Protect:
    """Return what a worker does to its updates for a job. Raises ConfigError as `check_privacy` does."""
    check_privacy(job)
    if not job.clip:
        return as_it_is
    privacy = UpdatePrivacy(job.clip, job.noise)

    def protect(vector: Vector, samples: int) -> Vector:
        del samples
        return privacy.protect(vector, random)

    return protect


def _precision(multiplier: float) -> float:
    """Return 1 / z**2; infinite also where the square is less than a float can be."""
    return 1 / multiplier / multiplier if multiplier else math.inf


def _epsilon(precision: float, delta: float) -> float:
    if not precision:
        return 0.0
    if math.isinf(precision):
        return math.inf
    import dp_accounting

    library: Any = dp_accounting
    return float(library.get_epsilon_gaussian(1 / math.sqrt(precision), delta))
