"""Choose how distances become a score: by synthetic defects on held-out normal pictures, without an anomalous one.

The features are computed once; behind them each trial runs the operators of the detector that it would become.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from har_edge.config.anomaly import HEAT_MAP, PICTURE, SCORE
from har_edge.data.pictures import Pixels
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.anomaly.detector import DetectorSettings, Pool, write_features, write_head
from har_edge.learning.anomaly.features import Features
from har_edge.learning.anomaly.statistics import FeatureStatistics
from har_edge.tflite.gradient.builder import Shape

Floats = npt.NDArray[np.float32]
# Shares of the mean variance that are added to each, and blurs as parts of a heat map's side, that are tried.
REGULARIZATIONS = (0.01, 0.1, 1.0)
_BLURS = (0.0, 0.03, 0.08)
_BATCH = 16


@dataclass(frozen=True, slots=True)
class LearnedFeatures:
    """The outcome of a training: features, and their statistics over the training pictures.

    With `weighted`, maps of features get weights of their own, and settings are chosen on changes of whole pictures,
    too; else all maps count alike.
    """

    method: str
    features: Features
    statistics: FeatureStatistics
    shape: Shape
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The maps of features of some pictures, float32 [n, h, w, c] each."""

    maps: tuple[Floats, ...] = field(repr=False)

    def run(self, head: Interpreter) -> tuple[Floats, Floats]:
        """Return scores [n] and heat maps [n, h, w] that stand behind these maps."""
        scores, heat = [], []
        for start in range(0, len(self.maps[0]), _BATCH):
            found = head.run({f"map/{i}": one[start : start + _BATCH] for i, one in enumerate(self.maps)})
            scores.append(found[SCORE].reshape(-1))
            heat.append(found[HEAT_MAP])
        return np.concatenate(scores), np.concatenate(heat)


class FeatureReader:
    """Computes features of pictures uint8 [n, height, width, channels]."""

    def __init__(self, features: Features, shape: Shape) -> None:
        self._interpreter = Interpreter(bytes(write_features(features, shape)))

    def read(self, pictures: Pixels) -> FeatureMaps:
        """Return the maps of features of pictures."""
        found = []
        for start in range(0, len(pictures), _BATCH):
            got = self._interpreter.run({PICTURE: np.ascontiguousarray(pictures[start : start + _BATCH])})
            found.append([got[f"map/{number}"] for number in range(len(got))])
        return FeatureMaps(tuple(np.concatenate(parts) for parts in zip(*found, strict=True)))


def separation(normal: Floats, defective: Floats) -> float:
    """Return the share of pairs in which the defective picture has the larger score; an equal one counts half.

    This is the area under the ROC curve (Mann and Whitney 1947).
    """
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, defective, "left") + np.searchsorted(ordered, defective, "right")
    return float(below.sum() / (2 * len(normal) * len(defective)))


def choose(statistics: FeatureStatistics, normal: FeatureMaps, defective: Sequence[FeatureMaps]) -> DetectorSettings:
    """Return the settings that separate best, as the mean over the kinds of defects; the first of equals."""
    return _best(statistics, list_settings(statistics), normal, defective)


def choose_weighted(
    statistics: FeatureStatistics, normal: FeatureMaps, defective: Sequence[FeatureMaps]
) -> DetectorSettings:
    """Return settings with the maps that separate best together, weighted so that each varies alike on normal pictures.

    Maps and regularization are chosen by sums of the maps' own scores, then pool and blur with the whole detector.
    """
    count, best = len(statistics.means), dict[Pool, tuple[float, DetectorSettings]]()
    chosen = np.array([one for one in product((0.0, 1.0), repeat=count) if any(one)])
    singles = [statistics.only(number) for number in range(count)]
    for regularization, pool in product(REGULARIZATIONS, Pool):
        settings = DetectorSettings(pool, regularization)
        alone = [score_alone(one, i, settings, [normal, *defective]) for i, one in enumerate(singles)]
        inverse = np.array([1 / max(float(one[0].std()), 1e-12) for one in alone])
        for weights in chosen * inverse:
            first, *others = (np.tensordot(weights, x, 1) for x in zip(*alone, strict=True))
            found = float(np.mean([separation(first, other) for other in others]))
            if pool not in best or found > best[pool][0]:
                shares = tuple(map(float, weights / weights.sum()))
                best[pool] = found, DetectorSettings(pool, regularization, 0.0, shares)
    return _best(statistics, _with_blurs(statistics, [one for _, one in best.values()]), normal, defective)


def list_settings(statistics: FeatureStatistics) -> Iterator[DetectorSettings]:
    """Yield what is tried for features: pools, regularizations, blurs."""
    yield from _with_blurs(statistics, [DetectorSettings(*one) for one in product(Pool, REGULARIZATIONS)])


def _with_blurs(statistics: FeatureStatistics, settings: Sequence[DetectorSettings]) -> Iterator[DetectorSettings]:
    side = max(mean.shape[0] for mean in statistics.means)
    blurs = dict.fromkeys(part * side if part * side >= 0.5 else 0.0 for part in _BLURS)
    for one, blur in product(settings, blurs):
        if one.pool is Pool.MAX or not blur:  # a blur hardly changes the mean
            yield replace(one, blur=blur)


def _best(
    statistics: FeatureStatistics,
    tried: Iterator[DetectorSettings],
    normal: FeatureMaps,
    defective: Sequence[FeatureMaps],
) -> DetectorSettings:
    best, largest = DetectorSettings(), -1.0
    for settings in tried:
        head = Interpreter(bytes(write_head(statistics, settings)))
        scores = normal.run(head)[0]
        found = float(np.mean([separation(scores, one.run(head)[0]) for one in defective]))
        if found > largest:
            best, largest = settings, found
    return best


def score_alone(
    statistics: FeatureStatistics, number: int, settings: DetectorSettings, maps: Sequence[FeatureMaps]
) -> list[Floats]:
    """Return squared scores by the map of this number alone, for each of some sets of pictures."""
    head = Interpreter(bytes(write_head(statistics, settings)))
    return [np.square(FeatureMaps(part.maps[number : number + 1]).run(head)[0]) for part in maps]
