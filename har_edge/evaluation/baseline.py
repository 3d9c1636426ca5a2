"""The baseline beside every network: extremely randomised trees on hand-made features.

Geurts, Ernst and Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006; the features (mean, spread, range,
quartiles, change, dominant frequency, magnitude of accelerations) are those of Bao and Intille, Pervasive 2004, section
3.2, and of Ravi et al., IAAI 2005. Needs scikit-learn: the extra `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from har_edge.evaluation.prediction import Prediction
from har_edge.planning.task import Task
from har_edge.streams.recording import Recording, Window
from har_edge.streams.windows import windows

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
    from sklearn.ensemble import ExtraTreesClassifier

    classes = {label: index for index, label in enumerate(task.label_ids)}
    known = [
        (features(window), classes[window.label])
        for recording in training
        for window in windows(recording, task.stream.length, TRAINING_HOP, within_activity=True)
        if window.label in classes
    ]
    trees = ExtraTreesClassifier(TREES, random_state=seed)
    trees.fit(np.stack([row for row, _ in known]), [index for _, index in known])
    asked = [
        window
        for recording in test
        for window in windows(recording, task.stream.length, task.stream.hop, within_activity=False)
    ]
    scores = trees.predict_proba(np.stack([features(window) for window in asked]))
    truths = [None if window.label is None else classes.get(window.label) for window in asked]
    return [
        Prediction(window.stream, window.seq, truth, int(row.argmax()), row)
        for window, truth, row in zip(asked, truths, scores, strict=True)
    ]
