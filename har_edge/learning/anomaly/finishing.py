"""Make the detector that is served: choose its settings, set its threshold, and write its note."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from har_edge.config.anomaly import MAX_TEXT, AnomalyNote, with_anomaly_note
from har_edge.data.pictures import AspectRule, Pixels
from har_edge.errors import ConfigError
from har_edge.inference.anomaly import AnomalyDetector, AnomalyOutcome
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.anomaly.choosing import FeatureReader, LearnedFeatures, choose, choose_weighted, separation
from har_edge.learning.anomaly.defects import add_defects, rearrange
from har_edge.learning.anomaly.detector import DetectorSettings, write_detector, write_head

DEFAULT_QUANTILE = 0.99
# At most so many of the held-out pictures choose the settings: each is run once for each of them. Twice as many choose
# among combinations of maps, which are more.
CHOOSING = 64


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
    settings, found = _choose(learned, held_out, seed)
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
        data=origin.name[:MAX_TEXT],
        real=origin.real,
        features=learned.features.origin[:MAX_TEXT],
    )
    content = write_detector(learned.features, learned.shape, learned.statistics, settings, threshold)
    return FinishedDetector(bytes(with_anomaly_note(content, note)), note, settings, found)


def _choose(learned: LearnedFeatures, held_out: Pixels, seed: int) -> tuple[DetectorSettings, float]:
    """Return the settings, and their separation on rectangles that were pasted or erased."""
    chosen, statistics = held_out[: CHOOSING * (1 + learned.weighted)], learned.statistics
    reader = FeatureReader(learned.features, learned.shape)
    normal, local = reader.read(chosen), reader.read(add_defects(chosen, seed).pictures)
    if learned.weighted:
        settings = choose_weighted(statistics, normal, [local, reader.read(rearrange(chosen, seed))])
    else:
        settings = choose(statistics, normal, [local])
    head = Interpreter(bytes(write_head(statistics, settings)))
    return settings, separation(normal.run(head)[0], local.run(head)[0])


def _run(learned: LearnedFeatures, settings: DetectorSettings, pictures: Pixels) -> AnomalyOutcome:
    content = bytes(write_detector(learned.features, learned.shape, learned.statistics, settings))
    return AnomalyDetector(content).run(pictures)
