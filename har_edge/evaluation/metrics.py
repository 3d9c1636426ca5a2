"""Accuracy, F1 and the confusion matrix, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each class was answered rightly, occurred, and was answered; int64 [classes] each.

    These are the figures of a confusion matrix without the matrix: a thousand classes would take a million cells.
    """

    right: Confusion
    came: Confusion
    asked: Confusion

    @property
    def windows(self) -> int:
        return int(self.came.sum())

    @property
    def accuracy(self) -> float | None:
        """The share of windows whose answer is right; None where there are none."""
        return int(self.right.sum()) / self.windows if self.windows else None

    @property
    def macro_f1(self) -> float | None:
        """The mean F1 of the classes that occur, in truth or in answers; None where there are none."""
        occurs = self.came + self.asked > 0
        return float(np.mean(2 * self.right[occurs] / (self.came + self.asked)[occurs])) if occurs.any() else None

    def scores(self) -> list[ClassScore]:
        """Return precision, recall and F1 of every class."""
        return [
            ClassScore(_ratio(hits, says), _ratio(hits, count), _ratio(2 * hits, says + count), int(count))
            for hits, count, says in zip(
                self.right.astype(np.float64), self.came.astype(np.float64), self.asked.astype(np.float64), strict=True
            )
        ]


def count_classes(truth: Sequence[int], answers: Sequence[int], classes: int) -> Counts:
    """Return the counts of pairs of class indices from 0."""
    truths, given = np.asarray(truth, np.int64), np.asarray(answers, np.int64)
    return Counts(
        np.bincount(truths[truths == given], minlength=classes),
        np.bincount(truths, minlength=classes),
        np.bincount(given, minlength=classes),
    )


def rank_of(scores: npt.NDArray[Any], truth: int) -> int:
    """Return how many classes come before the true one, by score; of equal ones the lower index comes first."""
    own = scores[truth]
    return int((scores > own).sum() + (scores[:truth] == own).sum())


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
