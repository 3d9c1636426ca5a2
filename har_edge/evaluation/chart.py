"""The confusion matrix as text and as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from har_edge.evaluation.report import Scores
from har_edge.extras import require


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
    """Write the confusion matrix of these scores as a PNG; see `draw_matrix`."""
    draw_matrix(scores.confusion, scores.labels, path, title)


def draw_matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: Path, title: str) -> None:
    """Write a confusion matrix as a PNG; ConfigError without matplotlib (the extra `evaluation`)."""
    require("drawing", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = np.array(confusion)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(8.5, 8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(title)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        shade = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=shade)
    FigureCanvasAgg(figure).print_figure(path, format="png", dpi=120)
