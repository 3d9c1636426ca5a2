"""How well scores and heat maps tell anomalies from what is normal: areas under the ROC curve, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError
from har_edge.extras import require

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnomalyFigures:
    """Figures of a detector on a labelled test.

    Attributes:
        image_auroc: Area under the ROC curve of the scores.
        pixel_auroc: The same of the pixels of all heat maps; None without masks.
        kinds: The area for each kind of anomaly against all normal pictures.
        caught: The share of anomalous pictures above the threshold.
        false_alarms: The share of normal pictures above it.
        pictures: Number of test pictures.
        anomalous: Number of anomalous ones.
    """

    image_auroc: float
    pixel_auroc: float | None
    kinds: dict[str, float]
    caught: float
    false_alarms: float
    pictures: int
    anomalous: int


def image_auroc(scores: Floats, anomalous: Flags) -> float:
    """Return the area under the ROC curve of scores; DataError where pictures of one kind only came."""
    require("the area under the ROC curve", "sklearn")
    from sklearn.metrics import roc_auc_score

    if anomalous.all() or not anomalous.any():
        raise DataError(
            f"{len(anomalous)} pictures came, {int(anomalous.sum())} of them anomalous; expected normal and anomalous "
            "ones"
        )
    return float(roc_auc_score(anomalous, scores))


def pixel_auroc(heat_maps: Floats, masks: Flags) -> float:
    """Return the area under the ROC curve of all pixels; heat maps [n, h, w] grow to the masks' size."""
    return image_auroc(grow(heat_maps, masks.shape[1], masks.shape[2]).reshape(-1), masks.reshape(-1))


def grow(heat_maps: Floats, height: int, width: int) -> Floats:
    """Return heat maps [n, h, w] in another size, bilinearly between the centres of pixels."""
    rows, columns = _between(heat_maps.shape[1], height), _between(heat_maps.shape[2], width)
    tall: Any = heat_maps[:, rows.low] * (1 - rows.share[:, None]) + heat_maps[:, rows.high] * rows.share[:, None]
    wide: Any = tall[:, :, columns.low] * (1 - columns.share) + tall[:, :, columns.high] * columns.share
    found: Floats = wide.astype(np.float32)
    return found


@dataclass(frozen=True, slots=True)
class _Between:
    """For each place of the new size, the two of the old one around it, and the share of the upper one."""

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    share: Floats


def _between(old: int, new: int) -> _Between:
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(place).astype(np.int64)
    return _Between(low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32))


def score_detector(
    scores: Floats,
    heat_maps: Floats,
    anomalous: Flags,
    kinds: Sequence[str],
    masks: Flags | None,
    threshold: float,
) -> AnomalyFigures:
    """Return all figures of a labelled test."""
    named = np.array(kinds)
    normal = ~anomalous
    by_kind = {}
    for kind in sorted(set(named[anomalous].tolist())):
        chosen = normal | (anomalous & (named == kind))
        by_kind[kind] = image_auroc(scores[chosen], anomalous[chosen])
    return AnomalyFigures(
        image_auroc=image_auroc(scores, anomalous),
        pixel_auroc=None if masks is None or not masks.any() else pixel_auroc(heat_maps, masks),
        kinds=by_kind,
        caught=float((scores[anomalous] > threshold).mean()),
        false_alarms=float((scores[normal] > threshold).mean()),
        pictures=len(scores),
        anomalous=int(anomalous.sum()),
    )
