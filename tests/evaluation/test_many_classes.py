"""Models of a thousand classes: the best K, no matrix of a million cells, a page that a person can read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.cli import console
from har_edge.cli.reports.evaluation import MAX_CLASSES, format_evaluation
from har_edge.config.catalog import FoundModel
from har_edge.config.task import StreamTask, Task
from har_edge.errors import ConfigError
from har_edge.evaluation.metrics import (
    accuracy,
    class_scores,
    confusion_matrix,
    count_classes,
    macro_f1,
    rank_of,
)  # fmt: skip
from har_edge.evaluation.prediction import Prediction
from har_edge.evaluation.report import evaluate, score

CLASSES = 1001
LABELS = [f"class {number}" for number in range(CLASSES)]


def predictions(count: int, streams: int = 1, classes: int = CLASSES) -> list[Prediction]:
    """Window k is of class k (mod classes); its true class has the (k mod 10)-th best score."""
    rng, made = np.random.default_rng(0), []
    for k in range(count):
        scores = rng.permutation(classes).astype(np.uint8 if classes < 256 else np.int16)
        truth, place = k % classes, k % 10
        other = int(np.flatnonzero(scores == classes - 1 - place)[0])
        scores[[truth, other]] = scores[[other, truth]]
        made.append(Prediction(f"s{k % streams}", k, truth, int(scores.argmax()), scores))
    return made


def test_counts_say_what_a_matrix_says() -> None:
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(0, 7, 500).tolist(), rng.integers(0, 9, 500).tolist()
    counts, matrix = count_classes(truth, answers, 10), confusion_matrix(truth, answers, 10)
    assert counts.windows == 500 and counts.accuracy == accuracy(matrix)
    assert counts.macro_f1 == pytest.approx(macro_f1(matrix)) and counts.scores() == class_scores(matrix)


def test_nothing_has_no_figures() -> None:
    counts = count_classes([], [], 3)
    assert (counts.windows, counts.accuracy, counts.macro_f1) == (0, None, None)


@pytest.mark.parametrize(("k", "share"), [(1, 0.1), (3, 0.3), (5, 0.5), (10, 1.0)])
def test_the_best_k(k: int, share: float) -> None:
    assert score(predictions(1000), LABELS, (k,)).top_k == {k: pytest.approx(share)}


def test_of_equal_scores_the_lower_index_comes_first_as_in_the_answer() -> None:
    scores = np.array([3, 7, 7, 7], np.uint8)
    assert [rank_of(scores, truth) for truth in range(4)] == [3, 0, 1, 2]
    assert rank_of(scores, int(scores.argmax())) == 0


def test_top_1_is_the_accuracy() -> None:
    scores = score(predictions(300), LABELS, (1,))
    assert scores.top_k[1] == scores.accuracy


def test_a_class_without_scores_has_no_best_k() -> None:
    one = Prediction("s", 0, 3, 3, np.array([3], np.int64))
    assert score([one], LABELS).accuracy == 1.0
    with pytest.raises(ConfigError, match="--top-k came, but this model answers with a class and no scores"):
        score([one], LABELS, (5,))


def test_memory_does_not_grow_with_the_square_of_the_classes() -> None:
    """A matrix a stream would take 8 MB each."""
    rows = predictions(200, streams=50)
    tracemalloc.start()
    scores = score(rows, LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.confusion == [] and len(scores.per_subject) == 50 and peak < 8_000_000
    assert len(msgspec.json.encode(scores)) < 200_000


def test_few_classes_have_their_matrix_as_before() -> None:
    scores = score(predictions(120, classes=12), LABELS[:12])
    assert len(scores.confusion) == len(scores.per_class) == 12 and sum(map(sum, scores.confusion)) == 120


def test_the_page_is_short_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "folds", lambda file=None: True)
    labels = [*LABELS[:500], "a class whose name is longer than half of a line, as in ImageNet", *LABELS[501:]]
    task = Task(StreamTask("s", 1.0, 1, 1), {}, "scores", labels, list(range(CLASSES)))
    found = FoundModel(Path("m.tflite"), "0" * 64, None)
    text = format_evaluation(evaluate(found, task, predictions(1000), [], "real data from x", {}, (5,)))
    lines = text.splitlines()
    assert len(lines) < MAX_CLASSES + 20 and len(text) < 10_000
    assert "top 5      0.5000" in lines and "(no confusion matrix: there are 1001 classes)" in lines
    assert "more classes that occur, in truth or in answers: --json has all" in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("classes", [12, 40])
def test_a_matrix_is_cut_into_parts_that_fit(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    labels = [f"an activity with a rather long name {number}" for number in range(classes)]
    task = Task(StreamTask("s", 1.0, 1, 1), {}, "scores", labels, list(range(classes)))
    found = FoundModel(Path("m.tflite"), "0" * 64, None)
    rows = predictions(40 * classes, classes=classes)
    text = format_evaluation(evaluate(found, task, rows, [], "real data from x", {}))
    matrix = text.split("rows: truth, columns: answer")[1]
    assert all(len(line) <= 80 for line in matrix.splitlines())
    numbers = [word for line in matrix.splitlines() for word in line.split() if word.isdecimal()]
    whole = score(rows, labels).confusion
    cells = [str(cell) for row in whole for cell in row if cell]
    assert all(numbers.count(cell) >= 1 for cell in set(cells))
    assert sum(int(cell) for cell in cells) == 40 * classes
