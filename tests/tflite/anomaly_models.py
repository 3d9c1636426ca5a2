"""Small models that find anomalies: how far each pixel is from a mean picture, in units of a variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as tflite

from tests.tflite.models import Draft, GraphDraft
from tests.tflite.picture_models import behind

HEIGHT, WIDTH, CHANNELS = 8, 6, 3
MEAN, VARIANCE, THRESHOLD = 100.0, 25.0, 9.0
NOTE = (
    '{{"method":"padim","threshold":{},"quantile":0.99,"held_out":20,"heat_low":0.5,"heat_high":9.0,"fit":"stretch",'
    '"data":"made","real":false}}'
)


def detector(
    *, mean: float = MEAN, threshold: float = THRESHOLD, note: bool = True, limit: bool = True, batch: int = -1
) -> bytes:
    """Pictures "picture" to "score" [n], "heat_map" [n, h, w] and the constant "threshold".

    The heat map is the mean over channels of (byte - mean)^2 / VARIANCE, the score its maximum.
    """
    draft = Draft()
    graph = draft.graph()
    shape = [1, HEIGHT, WIDTH, CHANNELS]

    def tensor(sizes: Sequence[int], name: str | None = None) -> int:
        return graph.tensor(sizes, name, signature=[batch, *sizes[1:]])

    x = graph.input(
        shape, "picture", type=tflite.TensorType.UINT8, quantization=(1.0, 0), signature=[batch, *shape[1:]]
    )
    real, centred, squares, scaled = (tensor(shape, name) for name in ("real", "centred", "squares", "scaled"))
    graph.op("DEQUANTIZE", [x], [real], tflite.DequantizeOptionsT(), version=2)
    means = graph.const(np.full((1, HEIGHT, WIDTH, CHANNELS), mean, np.float32), name="mean")
    graph.op("SUB", [real, means], [centred], tflite.SubOptionsT())
    graph.op("SQUARE", [centred], [squares], tflite.SquareOptionsT())
    weights = graph.const(np.full((1, HEIGHT, WIDTH, CHANNELS), 1 / VARIANCE, np.float32), name="precision")
    graph.op("MUL", [squares, weights], [scaled], tflite.MulOptionsT())
    heat_map = _reduced(graph, "MEAN", scaled, [3], tensor(shape[:3], "heat_map"))
    score = _reduced(graph, "REDUCE_MAX", heat_map, [1, 2], tensor([1], "score"))
    graph.output(score, heat_map)
    if limit:
        graph.output(graph.const(np.array([threshold], np.float32), name="threshold"))
    return behind(draft.build(), {"anomaly.json": NOTE.format(threshold).encode()} if note else {})


def _reduced(graph: GraphDraft, operator: str, x: int, axes: Sequence[int], result: int) -> int:
    graph.op(operator, [x, graph.const(np.array(axes, np.int32))], [result], tflite.ReducerOptionsT())
    return result


def heat_map_of(pixels: np.ndarray, mean: float = MEAN) -> np.ndarray:
    """Return the heat map of a picture, by NumPy."""
    return ((pixels.astype(np.float32) - np.float32(mean)) ** 2 * np.float32(1 / VARIANCE)).mean(axis=2)


def normal(seed: int = 0) -> np.ndarray:
    """Return a picture close to the mean: no pixel comes near the threshold."""
    return np.random.default_rng(seed).integers(96, 105, (HEIGHT, WIDTH, CHANNELS)).astype(np.uint8)


def defect(row: int = 5, column: int = 2, seed: int = 0) -> np.ndarray:
    """Return a picture with one pixel that is far from the mean."""
    made = normal(seed)
    made[row, column] = 160
    return made
