"""Draw the worst cases of a detector: anomalous pictures with the lowest scores, normal ones with the highest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from har_edge.extras import require

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
_VERDICTS = ("caught", "missed", "normal", "false-alarm")


@dataclass(frozen=True, slots=True)
class ScoredPictures:
    """Test pictures with what a detector said of them, and the ends of the colours of its heat maps."""

    pictures: npt.NDArray[np.uint8] = field(repr=False)
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    anomalous: Flags = field(repr=False)
    masks: Flags | None = field(repr=False)
    scores: Floats = field(repr=False)
    heat_maps: Floats = field(repr=False)
    heat_low: float
    heat_high: float
    threshold: float


def verdict(scored: ScoredPictures, number: int) -> str:
    """Return how the threshold judges a test picture: caught, missed, normal or false-alarm."""
    above = bool(scored.scores[number] > scored.threshold)
    if scored.anomalous[number]:
        return "caught" if above else "missed"
    return "false-alarm" if above else "normal"


def worst_cases(scored: ScoredPictures, count: int) -> list[int]:
    """Return the anomalous pictures with the lowest scores and the normal ones with the highest, `count` of each."""
    order = np.argsort(scored.scores, kind="stable")
    missed = [int(i) for i in order if scored.anomalous[i]][:count]
    raised = [int(i) for i in order[::-1] if not scored.anomalous[i]][:count]
    return missed + raised


def draw_worst_cases(folder: Path, scored: ScoredPictures, count: int = 6) -> list[Path]:
    """Write a PNG of each worst case: picture, marked pixels where there are any, heat map. Return the files.

    Their names begin with their place and end with the verdict. Drawings of an earlier run with such names are removed.

    Raises ConfigError without matplotlib.
    """
    require("drawing", "matplotlib")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9]-*.png"):
        if old.stem[3:] in _VERDICTS:
            old.unlink()
    files = []
    for place, number in enumerate(worst_cases(scored, count), 1):
        path = folder / f"{place:02d}-{verdict(scored, number)}.png"
        _draw(path, scored, number)
        files.append(path)
    return files


def _draw(path: Path, scored: ScoredPictures, number: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    masked = scored.masks is not None and bool(scored.anomalous[number])
    figure = Figure(figsize=(9 if masked else 6, 3.6), layout="constrained")
    axes = figure.subplots(1, 3 if masked else 2, squeeze=False)[0]
    picture = scored.pictures[number]
    axes[0].imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("picture", fontsize=9)
    if scored.masks is not None and masked:
        axes[1].imshow(scored.masks[number], cmap="gray", vmin=0, vmax=1)
        axes[1].set_title("marked", fontsize=9)
    axes[-1].imshow(scored.heat_maps[number], cmap="inferno", vmin=scored.heat_low, vmax=scored.heat_high)
    axes[-1].set_title("heat map", fontsize=9)
    for one in axes:
        one.set_axis_off()
    # `$` would begin mathematical text.
    title = f"{scored.names[number]} ({scored.kinds[number]}): score {scored.scores[number]:.3g}"
    figure.suptitle(f"{title}, threshold {scored.threshold:.3g}".replace("$", r"\$"), fontsize=9)
    FigureCanvasAgg(figure).print_figure(path, format="png", dpi=100)
