"""Accuracy, F1 and the confusion matrix, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Confusion = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class did; a ratio of nothing is 0."""

    precision: float
    recall: float
    f1: float
    windows: int


def confusion_matrix(truth: Sequence[int], answers: Sequence[int], classes: int) -> Confusion:
    """Return int64 [classes, classes]: rows are the truth, columns the answers, as class indices from 0."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (np.asarray(truth, np.int64), np.asarray(answers, np.int64)), 1)
    return matrix


def accuracy(confusion: Confusion) -> float:
    """Return the share of windows whose answer is right; 0 where there are none."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else 0.0


def class_scores(confusion: Confusion) -> list[ClassScore]:
    """Return precision, recall and F1 of every class."""
    right = np.diag(confusion).astype(np.float64)
    came, asked = confusion.sum(1), confusion.sum(0)
    return [
        ClassScore(_ratio(hits, says), _ratio(hits, count), _ratio(2 * hits, says + count), int(count))
        for hits, count, says in zip(right, came, asked, strict=True)
    ]


def macro_f1(confusion: Confusion) -> float:
    """Return the mean F1 of the classes that occur, in truth or in answers; 0 where there are none."""
    occurs = (confusion.sum(0) + confusion.sum(1)) > 0
    scores = [score.f1 for score, counts in zip(class_scores(confusion), occurs, strict=True) if counts]
    return float(np.mean(scores)) if scores else 0.0


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
