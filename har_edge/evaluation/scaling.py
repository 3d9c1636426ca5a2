"""The picture of a speed-up: throughput over that of one device, by number of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.extras import require


@dataclass(frozen=True, slots=True)
class Point:
    """So many devices, the median ratio, and the least and the largest of the repeats."""

    devices: int
    speedup: float
    lowest: float
    highest: float


def draw_speedup(curves: Mapping[str, Sequence[Point]], published: Sequence[Point], path: Path, title: str) -> None:
    """Write a PNG: a line a model, the ideal, and published figures; ConfigError without matplotlib."""
    require("drawing", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    most = max(point.devices for curve in curves.values() for point in curve)
    axes.plot([1, most], [1, most], ":", color="grey", label="ideal")
    for name, curve in curves.items():
        points = sorted(curve, key=lambda point: point.devices)
        spread = [
            [point.speedup - point.lowest for point in points],
            [point.highest - point.speedup for point in points],
        ]
        numbers, values = [point.devices for point in points], [point.speedup for point in points]
        axes.errorbar(numbers, values, yerr=spread, marker="o", capsize=3, label=name)
    axes.plot([p.devices for p in published], [p.speedup for p in published], "s--", color="black", label="published")
    axes.set_xticks(range(1, most + 1))
    axes.set_xlabel("devices")
    axes.set_ylabel("windows a second, over one device with the whole model")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_figure(path, format="png", dpi=120)
