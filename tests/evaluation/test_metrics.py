"""Our metrics against scikit-learn's, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.evaluation.metrics import accuracy, class_scores, confusion_matrix, macro_f1


def test_by_hand() -> None:
    matrix = confusion_matrix([0, 0, 0, 1], [0, 0, 1, 1], 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(matrix) == 0.75
    first, second, never = class_scores(matrix)
    assert (first.precision, first.recall, first.f1, first.windows) == (1.0, 2 / 3, 0.8, 3)
    assert (second.precision, second.recall, second.windows) == (0.5, 1.0, 1)
    assert (never.precision, never.recall, never.f1, never.windows) == (0.0, 0.0, 0.0, 0)
    assert macro_f1(matrix) == pytest.approx((0.8 + 2 / 3) / 2)  # a class that never occurs does not count


def test_nothing_scores_nothing() -> None:
    empty = confusion_matrix([], [], 4)
    assert (accuracy(empty), macro_f1(empty)) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 7, 200)
    answers = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 9, 200))
    matrix = confusion_matrix(truth.tolist(), answers.tolist(), 10)
    assert (matrix == metrics.confusion_matrix(truth, answers, labels=range(10))).all()
    assert accuracy(matrix) == pytest.approx(metrics.accuracy_score(truth, answers))
    assert macro_f1(matrix) == pytest.approx(metrics.f1_score(truth, answers, average="macro", zero_division=0))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, answers, labels=range(10), zero_division=0
    )
    ours = class_scores(matrix)
    assert [row.precision for row in ours] == pytest.approx(precision.tolist())
    assert [row.recall for row in ours] == pytest.approx(recall.tolist())
    assert [row.f1 for row in ours] == pytest.approx(f1.tolist())
    assert [row.windows for row in ours] == support.tolist()
