"""Draw a training on devices: loss by round, accuracy by epoch, over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from har_edge.extras import require


def draw_training(
    path: Path,
    title: str,
    losses: Sequence[tuple[float, float]],
    accuracies: Sequence[tuple[float, float]],
) -> None:
    """Write a PNG of losses and held-out accuracies, each by seconds; ConfigError without matplotlib."""
    require("drawing", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    left = figure.add_subplot()
    left.plot([one[0] for one in losses], [one[1] for one in losses], color="tab:blue", linewidth=1)
    left.set_xlabel("seconds")
    left.set_ylabel("loss on the samples of a round", color="tab:blue")
    left.set_title(title)
    if accuracies:
        right = left.twinx()
        right.plot([one[0] for one in accuracies], [one[1] for one in accuracies], color="tab:red", marker="o")
        right.set_ylabel("accuracy on held-out samples", color="tab:red")
    FigureCanvasAgg(figure).print_figure(path, format="png", dpi=120)
