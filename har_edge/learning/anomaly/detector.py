"""Write the detector that is served: features, their distance from normal ones, heat map, score and threshold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from har_edge.config.anomaly import HEAT_MAP, PICTURE, SCORE, THRESHOLD
from har_edge.learning.anomaly.features import Features, resize
from har_edge.learning.anomaly.statistics import FeatureStatistics, Floats
from har_edge.tflite.gradient.builder import GraphBuilder, Shape
from har_edge.tflite.schema import tflite

# Standard deviations that a blur reaches.
_REACH = 3


class Pool(Enum):
    """How a score comes out of a heat map: its largest value, or the root of the mean of its squares."""

    MAX = "max"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """How distances become a score.

    Attributes:
        pool: How the heat map becomes a score.
        regularization: A share of the mean variance of a map that is added to each variance.
        blur: Standard deviation of the Gaussian that smooths the heat map, in its pixels; 0 for none.
        weights: The weight of each map of features; none for equal ones.
    """

    pool: Pool = Pool.MAX
    regularization: float = 0.1
    blur: float = 0.0
    weights: tuple[float, ...] = ()


def write_detector(
    features: Features,
    shape: Shape,
    statistics: FeatureStatistics,
    settings: DetectorSettings = DetectorSettings(),
    threshold: float = 0.0,
) -> memoryview:
    """Return the .tflite: pictures uint8 [n, height, width, channels] -> score [n], heat map [n, h, w], threshold [1].

    A heat map is, at each position, the root of the mean over channels and maps of ((f - mean) / deviation)^2: about 1
    for normal pictures.
    """
    builder = GraphBuilder()
    picture, x = _write_picture(builder, shape)
    score, heat = _write_scores(builder, features.write(builder, x), statistics, settings)
    builder.rename(score, SCORE)
    builder.rename(heat, HEAT_MAP)
    limit = builder.constant(np.array([threshold], np.float32))
    builder.rename(limit, THRESHOLD)
    builder.open_batch()
    return builder.encode([picture], [score, heat, limit])


def write_features(features: Features, shape: Shape) -> memoryview:
    """Return a model of the features alone: pictures as a detector takes them -> `map/0`, ... float32 [n, h, w, c]."""
    builder = GraphBuilder()
    picture, x = _write_picture(builder, shape)
    maps = features.write(builder, x)
    for number, one in enumerate(maps):
        builder.rename(one, f"map/{number}")
    builder.open_batch()
    return builder.encode([picture], maps)


def write_head(statistics: FeatureStatistics, settings: DetectorSettings) -> memoryview:
    """Return what stands behind the features in a detector: maps `map/0`, ... -> score [n], heat map [n, h, w]."""
    builder = GraphBuilder()
    maps = [builder.empty((1, *mean.shape), name=f"map/{number}") for number, mean in enumerate(statistics.means)]
    score, heat = _write_scores(builder, maps, statistics, settings)
    builder.rename(score, SCORE)
    builder.rename(heat, HEAT_MAP)
    builder.open_batch()
    return builder.encode(maps, [score, heat])


def _write_picture(builder: GraphBuilder, shape: Shape) -> tuple[int, int]:
    """Write the input, uint8, and its values from 0 to 1; return both."""
    picture = builder.empty((1, *shape), "uint8")
    builder.rename(picture, PICTURE, _bytes_as_they_are())
    x = builder.add("DEQUANTIZE", [picture], (1, *shape), tflite.DequantizeOptionsT())
    return picture, builder.scaled(x, 1 / 255)


def _write_scores(
    builder: GraphBuilder, maps: list[int], statistics: FeatureStatistics, settings: DetectorSettings
) -> tuple[int, int]:
    """Write score [n] and heat map [n, h, w] of maps of features."""
    squares = _distances(builder, maps, statistics, settings)
    if settings.blur:
        squares = _blurred(builder, squares, settings.blur)
    heat = builder.unary("SQRT", builder.sum_over(squares, [3]))  # over one channel: it takes the dimension away
    if settings.pool is Pool.MAX:
        score = _reduce_max(builder, heat)
    else:
        _, height, width, _ = builder.shape(squares)
        mean = builder.scaled(builder.sum_over(squares, [1, 2, 3]), 1 / (height * width))
        score = builder.unary("SQRT", mean)
    return score, heat


def _bytes_as_they_are() -> Any:
    """Return the scale 1: pipelines take no uint8 input without a scale."""
    found = tflite.QuantizationParametersT()
    found.scale, found.zeroPoint = np.ones(1, np.float32), np.zeros(1, np.int64)
    return found


def _distances(
    builder: GraphBuilder, maps: list[int], statistics: FeatureStatistics, settings: DetectorSettings
) -> int:
    """Return the weighted mean of the squared distances of all maps, [n, h, w, 1], in the size of the finest."""
    weights = settings.weights or (1.0,) * len(maps)
    height = max(builder.shape(one)[1] for one in maps)
    width = max(builder.shape(one)[2] for one in maps)
    total: int | None = None
    rows = zip(maps, statistics.means, statistics.variances, weights, strict=True)
    for number, (one, mean, variance, weight) in enumerate(rows):
        if not weight:
            continue
        share = np.float32(np.sqrt(weight / (sum(weights) * builder.shape(one)[3])))
        off = builder.minus(one, builder.constant(mean[None]))
        if statistics.covariances:
            white = statistics.whitening(number, settings.regularization)
            square = _full_distance(builder, off, share * white)
        else:
            factor = share * _inverse_deviation(variance, settings.regularization)
            scaled = builder.times(off, builder.constant(factor[None]))
            square = builder.sum_over(builder.times(scaled, scaled), [3], keep=True)
        grown = resize(builder, square, height, width)
        total = grown if total is None else builder.plus(total, grown)
    if total is None:
        raise ValueError("all weights of maps are 0")
    return total


def _full_distance(builder: GraphBuilder, off: int, whitening: Floats) -> int:
    """Return the squared Mahalanobis distance of differences [n, h, w, c] at each position, [n, h, w, 1]."""
    _, height, width, channels = builder.shape(off)
    rows = _reshaped(builder, off, (height * width, 1, channels))
    white = builder.matmul(rows, builder.constant(whitening))
    square = builder.sum_over(builder.times(white, white), [3], keep=True)
    return _reshaped(builder, square, (height, width, 1))


def _reshaped(builder: GraphBuilder, x: int, shape: Shape) -> int:
    """Return samples in another shape; the file does not hold their number."""
    options = tflite.ReshapeOptionsT()
    options.newShape = np.array([-1, *shape], np.int32)
    return builder.add("RESHAPE", [x, builder.ints([-1, *shape])], (builder.shape(x)[0], *shape), options)


def _inverse_deviation(variance: Floats, regularization: float) -> Floats:
    floor = regularization * float(variance.mean(dtype=np.float64)) + 1e-12
    found: Floats = (1 / np.sqrt(variance.astype(np.float64) + floor)).astype(np.float32)
    return found


def _blurred(builder: GraphBuilder, x: int, deviation: float) -> int:
    """Return a map [n, h, w, 1] behind a Gaussian, whose weights at the border are those that lie inside."""
    _, height, width, _ = builder.shape(x)
    reach = max(1, round(_REACH * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for axis, size in ((1, height), (2, width)):
        shape = [1, 1, 1, 1]
        shape[axis] = len(kernel)
        x = _convolved(builder, x, kernel.reshape(shape).astype(np.float32))
        inside = np.convolve(np.ones(size), kernel)[reach : reach + size]
        around = [1, 1, 1, 1]
        around[axis] = size
        x = builder.times(x, builder.constant((1 / inside).reshape(around).astype(np.float32)))
    return x


def _convolved(builder: GraphBuilder, x: int, kernel: Floats) -> int:
    options = tflite.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    options.padding = tflite.Padding.SAME
    bias = builder.constant(np.zeros(1, np.float32))
    return builder.add("CONV_2D", [x, builder.constant(kernel), bias], builder.shape(x), options)


def _reduce_max(builder: GraphBuilder, heat: int) -> int:
    options = tflite.ReducerOptionsT()
    options.keepDims = False
    return builder.add("REDUCE_MAX", [heat, builder.ints([1, 2])], builder.shape(heat)[:1], options)
