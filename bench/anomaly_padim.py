"""PaDiM with full covariances in NumPy, beside the diagonal ones of har_edge, on the same features and pictures.

As Defard et al. 2021 and anomalib have it: the layers of a network grow to the size of the finest and stand behind one
another; DIMENSIONS of their channels are drawn with a seed; at each position a Gaussian with mean and covariance plus
0.01 I; the distance is Mahalanobis's; a Gaussian of deviation BLUR smooths the map at the size of the picture; the
score is the largest value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anomaly_data
import numpy as np
import numpy.typing as npt

from har_edge.evaluation.anomaly_metrics import grow, score_detector
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.anomaly.features import NetworkFeatures, pick_layers, pick_zoom
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.model import read_model

DIMENSIONS, REGULARIZATION, BLUR = 100, 0.01, 4.0
Floats = npt.NDArray[np.float32]


def score_texture(network: Path, name: str) -> dict[str, Any]:
    """Return the figures of a texture."""
    model = read_model(network)
    features = NetworkFeatures(model, pick_layers(model), pick_zoom((anomaly_data.PATCH, anomaly_data.PATCH)))
    train = extract(features, anomaly_data.train_patches(name))
    test = anomaly_data.texture_test(name)
    heat = distances(train, extract(features, test.patches))
    heat = blur(grow(heat, anomaly_data.PATCH, anomaly_data.PATCH), BLUR)
    kinds = [
        kind if kind == "good" else f"{kind}-{contrast:g}"
        for kind, contrast in zip(test.kinds, test.contrasts, strict=True)
    ]
    anomalous = np.array([kind != "good" for kind in kinds])
    found = score_detector(heat.max(axis=(1, 2)), heat, anomalous, kinds, test.masks, np.inf)
    report = {"test": {"image_auroc": found.image_auroc, "pixel_auroc": found.pixel_auroc, "kinds": found.kinds}}
    return {"kind": "texture", "method": "full-padim", "normal": name, "report": report}


def extract(features: NetworkFeatures, pictures: npt.NDArray[np.uint8], batch: int = 20) -> Floats:
    """Return the features of pictures, float32 [n, h, w, DIMENSIONS]."""
    builder = GraphBuilder()
    x = builder.empty((1, *pictures.shape[1:]), name="x")
    maps = features.write(builder, x)
    names = [f"map{number}" for number in range(len(maps))]
    for number, name in zip(maps, names, strict=True):
        builder.rename(number, name)
    builder.open_batch()
    interpreter = Interpreter(bytes(builder.encode([x], maps)))
    found = []
    for start in range(0, len(pictures), batch):
        got = interpreter.run({"x": pictures[start : start + batch].astype(np.float32) / np.float32(255)})
        height, width = got[names[0]].shape[1:3]
        wide = [np.repeat(np.repeat(got[n], height // got[n].shape[1], 1), width // got[n].shape[2], 2) for n in names]
        found.append(np.concatenate(wide, axis=3))
    whole = np.concatenate(found)
    chosen = np.sort(np.random.default_rng(0).permutation(whole.shape[3])[:DIMENSIONS])
    return whole[..., chosen]


def distances(train: Floats, test: Floats) -> Floats:
    """Return the Mahalanobis distance at each position, float32 [n, h, w]."""
    _, height, width, channels = train.shape
    found = np.empty(test.shape[:3], np.float32)
    for row in range(height):
        for column in range(width):
            here = train[:, row, column].astype(np.float64)
            mean, covariance = here.mean(axis=0), np.cov(here, rowvar=False)
            factor = np.linalg.cholesky(covariance + REGULARIZATION * np.eye(channels))
            off = np.linalg.solve(factor, (test[:, row, column] - mean).T)
            found[:, row, column] = np.sqrt(np.square(off).sum(axis=0))
    return found


def blur(maps: Floats, deviation: float) -> Floats:
    """Return maps behind a Gaussian; the border is mirrored."""
    reach = round(4 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        padded = np.pad(maps, [(0, 0) if i != axis else (reach, reach) for i in range(3)], mode="reflect")
        size = maps.shape[axis]
        maps = sum(  # type: ignore[assignment]
            weight * np.take(padded, np.arange(start, start + size), axis) for start, weight in enumerate(kernel)
        ).astype(np.float32)
    return maps
