"""The baseline beside every network: extremely randomised trees on hand-made features.

Geurts, Ernst and Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006; the features (mean, spread, range,
quartiles, change, dominant frequency, magnitude of accelerations) are those of Bao and Intille, Pervasive 2004, section
3.2, and of Ravi et al., IAAI 2005. Needs scikit-learn: the extra `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from har_edge.config.task import Task
from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.evaluation.prediction import Prediction
from har_edge.extras import require

METHOD = "extra-trees on hand-made features"
TREES = 300
# Baseline windows overlap more in training than in the test, to have as many as the network draws in one epoch.
TRAINING_HOP = 50

Array = npt.NDArray[np.float64]


def features(window: Window) -> Array:
    """Return the features of one window, float64 [n], sources in alphabetical order."""
    rows: list[npt.NDArray[np.floating]] = []
    for _, samples in sorted(window.samples.items()):
        values = samples.astype(np.float64)
        spectrum = np.abs(np.fft.rfft(values - values.mean(0), axis=0))[1 : len(values) // 4]
        magnitude = np.linalg.norm(values[:, :3], axis=1)
        rows += [values.mean(0), values.std(0), values.min(0), values.max(0)]
        rows += [*np.percentile(values, [25, 75], axis=0), np.abs(np.diff(values, axis=0)).mean(0)]
        rows += [spectrum.argmax(0).astype(np.float64), spectrum.max(0) / (spectrum.sum(0) + 1e-9)]
        rows.append(np.array([magnitude.mean(), magnitude.std()]))
    return np.concatenate(rows)


def predict_baseline(
    training: Sequence[Recording], test: Iterable[Recording], task: Task, seed: int = 0
) -> list[Prediction]:
    """Fit the trees to the training recordings; return a prediction for every window of the test recordings."""
    length, hop = task.stream.length, task.stream.hop
    known = (
        window for recording in training for window in windows(recording, length, TRAINING_HOP, within_activity=True)
    )
    asked = (window for recording in test for window in windows(recording, length, hop, within_activity=False))
    return predict_windows(known, list(asked), task.label_ids, seed)


def predict_windows(
    known: Iterable[Window], asked: Sequence[Window], label_ids: Sequence[int], seed: int = 0
) -> list[Prediction]:
    """Fit the trees to the known windows that have one of these labels; return a prediction for each one asked."""
    require("the baseline", "sklearn")
    from sklearn.ensemble import ExtraTreesClassifier

    classes = {label: index for index, label in enumerate(label_ids)}
    rows = [(features(window), classes[window.label]) for window in known if window.label in classes]
    trees = ExtraTreesClassifier(TREES, random_state=seed)
    trees.fit(np.stack([row for row, _ in rows]), [index for _, index in rows])
    # A class that no known window has gets the score 0.
    scores = np.zeros((len(asked), len(classes)))
    scores[:, trees.classes_] = trees.predict_proba(np.stack([features(window) for window in asked]))
    truths = [None if window.label is None else classes.get(window.label) for window in asked]
    return [
        Prediction(window.stream, window.seq, truth, int(row.argmax()), row)
        for window, truth, row in zip(asked, truths, scores, strict=True)
    ]
