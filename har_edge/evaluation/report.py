"""Figures over predictions, as one value that can be written as JSON, printed or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from har_edge.evaluation.metrics import Confusion, accuracy, class_scores, confusion_matrix, macro_f1
from har_edge.evaluation.prediction import Prediction


class GroupScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One subject: its pure windows and how they did."""

    windows: int
    accuracy: float
    macro_f1: float


class ClassRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One activity: its pure windows and how they did."""

    label: str
    windows: int
    precision: float
    recall: float
    f1: float


class Scores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures over all pure windows: those in which one known activity lasts throughout.

    `mixed` counts the windows that were left out: two activities in one, or a label that the model does not know.
    `confusion` has a row for each true class and a column for each answer.
    """

    windows: int
    mixed: int
    accuracy: float
    macro_f1: float
    per_subject: dict[str, GroupScore]
    per_class: list[ClassRow]
    confusion: list[list[int]]
    labels: list[str]


def score(predictions: Iterable[Prediction], labels: Sequence[str]) -> Scores:
    """Return the figures over these predictions; `labels` names the classes by index."""
    streams: dict[str, tuple[list[int], list[int]]] = {}
    mixed = 0
    for prediction in predictions:
        if prediction.truth is None:
            mixed += 1
            continue
        truth, answers = streams.setdefault(prediction.stream, ([], []))
        truth.append(prediction.truth)
        answers.append(prediction.answer)
    parts = {stream: confusion_matrix(*pair, len(labels)) for stream, pair in streams.items()}
    whole: Confusion = sum(parts.values(), np.zeros((len(labels), len(labels)), np.int64))
    return Scores(
        windows=int(whole.sum()),
        mixed=mixed,
        accuracy=accuracy(whole),
        macro_f1=macro_f1(whole),
        per_subject={
            stream: GroupScore(int(part.sum()), accuracy(part), macro_f1(part)) for stream, part in parts.items()
        },
        per_class=[
            ClassRow(label, row.windows, row.precision, row.recall, row.f1)
            for label, row in zip(labels, class_scores(whole), strict=True)
        ],
        confusion=whole.tolist(),
        labels=list(labels),
    )


def format_confusion(scores: Scores) -> str:
    """Return the confusion matrix as text: a row for each true class, columns numbered like the rows."""
    width = max(4, len(str(max(map(max, scores.confusion)))) + 1)
    margin = max(len(label) for label in scores.labels)
    count = range(1, len(scores.labels) + 1)
    lines = [" " * (margin + 4) + "".join(f"{number:>{width}}" for number in count)]
    for number, label, row in zip(count, scores.labels, scores.confusion, strict=True):
        cells = "".join(f"{cell if cell else '.':>{width}}" for cell in row)
        lines.append(f"{label:<{margin}} {number:>3}{cells}")
    return "\n".join(lines)


def draw_confusion(scores: Scores, path: Path, title: str) -> None:
    """Write the confusion matrix as an image (needs matplotlib: the extra `evaluation`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = np.array(scores.confusion)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(8.5, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(scores.labels)), scores.labels, rotation=60, ha="right")
    axes.set_yticks(range(len(scores.labels)), scores.labels)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(title)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        shade = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=shade)
    FigureCanvasAgg(figure).print_figure(path, dpi=120)
