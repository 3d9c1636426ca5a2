"""Judge windows by a model that finds anomalies: score, threshold, and a heat map that fits a result."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from har_edge.config.anomaly_outputs import heat_map_size
from har_edge.config.array_output import Array, dequantize
from har_edge.config.task import AnomalyOutput, ArrayOutput
from har_edge.errors import MessageError
from har_edge.protocol.results import AnomalyScore, HeatMap
from har_edge.runtime.stage.no_score import check_scores

# Digits of a cell of a heat map: more are not seen, and cost bytes.
_DIGITS = 4


def judge_windows(output: AnomalyOutput, outputs: Mapping[str, Array], count: int) -> list[AnomalyScore]:
    """Return score, threshold and verdict of each of `count` windows, with heat maps where the task asks for them.

    Raises MessageError for outputs of another size than so many windows need, and NoScore for a score or a threshold
    that is no finite number.
    """
    scores = _numbers(output.score, outputs, count)
    limits = [output.threshold] * count if output.limit is None else _numbers(output.limit, outputs, count)
    check_scores((*scores, *limits))
    maps: list[HeatMap | None] = [None] * count
    if output.heat_map is not None and output.side:
        maps = [make_heat_map(one, output.side) for one in _pictures(output.heat_map, outputs, count)]
    return [
        AnomalyScore(score, limit, score > limit, heat_map)
        for score, limit, heat_map in zip(scores, limits, maps, strict=True)
    ]


def _numbers(output: ArrayOutput, outputs: Mapping[str, Array], count: int) -> list[float]:
    """Return the number of each window; one number, which a constant is, holds for all."""
    values = dequantize(output, outputs[output.tensor])
    if values.size not in (1, count):
        raise MessageError(
            f"output {output.tensor!r} came as {list(values.shape)} for {count} windows; expected a number for each"
        )
    # The text of a NumPy scalar has the fewest digits that give it back.
    numbers = [float(str(value)) for value in values.reshape(-1)]
    return numbers if len(numbers) == count else numbers * count


def _pictures(output: ArrayOutput, outputs: Mapping[str, Array], count: int) -> Array:
    """Return the heat maps of the windows, [count, height, width]."""
    values = dequantize(output, outputs[output.tensor])
    size = heat_map_size(values.shape)
    if size is None or values.size != count * math.prod(size):
        raise MessageError(
            f"output {output.tensor!r} came as {list(values.shape)} for {count} windows; expected a heat map for each"
        )
    return values.reshape(count, *size)


def make_heat_map(values: Array, side: int) -> HeatMap:
    """Return a heat map of at most `side` cells along each side, each the largest of the values that it covers.

    Args:
        values: float [height, width]. NaN makes its cell null, and so does infinity.
    """
    cells = shrink(values, side)
    listed = [float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None for value in cells.reshape(-1).tolist()]
    return HeatMap((cells.shape[0], cells.shape[1]), listed)


def shrink(values: npt.NDArray[np.floating], side: int) -> Array:
    """Return the largest value of each cell: at most `side` cells along each side, all of about the same size."""
    step = max(1.0, max(values.shape) / side)
    for axis, size in enumerate(values.shape):
        cells = max(1, round(size / step))
        values = np.maximum.reduceat(values, np.arange(cells) * size // cells, axis=axis)
    return values
