"""Make the detector that is served: choose its settings, set its threshold, and write its note."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from har_edge.config.anomaly import AnomalyNote, with_anomaly_note
from har_edge.data.pictures import AspectRule, Pixels
from har_edge.errors import ConfigError
from har_edge.inference.anomaly import AnomalyDetector, AnomalyOutcome
from har_edge.learning.anomaly.defects import DefectivePictures, add_defects
from har_edge.learning.anomaly.detector import DetectorSettings, Pool, write_detector
from har_edge.learning.anomaly.features import Features
from har_edge.learning.anomaly.statistics import FeatureStatistics
from har_edge.tflite.gradient.builder import Shape

Floats = npt.NDArray[np.float32]
# Shares of the mean variance that are added to each, and blurs as parts of a heat map's side, that are tried.
_REGULARIZATIONS = (0.01, 0.1, 1.0)
_BLURS = (0.0, 0.03, 0.08)
DEFAULT_QUANTILE = 0.99
# At most so many of the held-out pictures choose the settings: each is run once for each of them.
_CHOOSING = 64


@dataclass(frozen=True, slots=True)
class LearnedFeatures:
    """The outcome of a training: features, and their statistics over the training pictures."""

    method: str
    features: Features
    statistics: FeatureStatistics
    shape: Shape


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """The name of the training pictures, whether they are real, and how they were brought to size."""

    name: str
    real: bool
    fit: AspectRule = AspectRule.STRETCH


@dataclass(frozen=True, slots=True)
class FinishedDetector:
    """A detector as it is served; `separation` is its AUROC on synthetic defects of held-out normal pictures."""

    content: bytes = field(repr=False)
    note: AnomalyNote
    settings: DetectorSettings
    separation: float


def finish_detector(
    learned: LearnedFeatures, held_out: Pixels, origin: DataOrigin, quantile: float = DEFAULT_QUANTILE, seed: int = 0
) -> FinishedDetector:
    """Return the detector whose settings tell synthetic defects best, with a threshold from normal pictures alone.

    Args:
        learned: Features with their statistics.
        held_out: Normal pictures that were not trained with, uint8 [n, height, width, channels].
        origin: The training pictures.
        quantile: The threshold is this quantile of the scores of the held-out pictures.
        seed: The seed of the synthetic defects.
    """
    if not 0 < quantile <= 1:
        raise ConfigError(f"quantile {quantile} came; expected a number above 0 and at most 1")
    chosen = held_out[:_CHOOSING]
    defective = add_defects(chosen, seed)
    settings, separation = _choose(learned, chosen, defective)
    outcome = _run(learned, settings, held_out)
    threshold = float(np.quantile(outcome.scores, quantile, method="higher"))
    note = AnomalyNote(
        method=learned.method,
        threshold=threshold,
        quantile=quantile,
        held_out=len(held_out),
        heat_low=float(np.median(outcome.heat_maps)),
        heat_high=float(np.quantile(outcome.heat_maps.max(axis=(1, 2)), quantile, method="higher")),
        fit=origin.fit,
        data=origin.name,
        real=origin.real,
        features=learned.features.origin,
    )
    content = write_detector(learned.features, learned.shape, learned.statistics, settings, threshold)
    return FinishedDetector(bytes(with_anomaly_note(content, note)), note, settings, separation)


def separation(normal: Floats, defective: Floats) -> float:
    """Return the share of pairs in which the defective picture has the larger score; an equal one counts half.

    This is the area under the ROC curve (Mann and Whitney 1947).
    """
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, defective, "left") + np.searchsorted(ordered, defective, "right")
    return float(below.sum() / (2 * len(normal) * len(defective)))


def _choose(learned: LearnedFeatures, normal: Pixels, defective: DefectivePictures) -> tuple[DetectorSettings, float]:
    """Return the settings with the largest separation; the first of equals."""
    best, largest = DetectorSettings(), -1.0
    for settings in list_settings(learned):
        found = separation(_run(learned, settings, normal).scores, _run(learned, settings, defective.pictures).scores)
        if found > largest:
            best, largest = settings, found
    return best, largest


def list_settings(learned: LearnedFeatures) -> Iterator[DetectorSettings]:
    """Yield what is tried for features: pools, regularizations, blurs."""
    side = max(mean.shape[0] for mean in learned.statistics.means)
    blurs = dict.fromkeys(part * side if part * side >= 0.5 else 0.0 for part in _BLURS)
    for pool, regularization, blur in product(Pool, _REGULARIZATIONS, blurs):
        if pool is Pool.MAX or not blur:  # a blur hardly changes the mean
            yield DetectorSettings(pool, regularization, blur)


def _run(learned: LearnedFeatures, settings: DetectorSettings, pictures: Pixels) -> AnomalyOutcome:
    content = bytes(write_detector(learned.features, learned.shape, learned.statistics, settings))
    return AnomalyDetector(content).run(pictures)
