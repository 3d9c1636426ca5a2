"""One detector for each digit of MNIST: trained as `har-edge train` does, tested together.

All digits have the same features, so those of a test picture are computed once, and NumPy makes the scores of each
detector of them. For the first digit the detector itself scores some pictures, too: `whole_detector_apart`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.cli import anomaly_training
from har_edge.cli.console import say
from har_edge.cli.main import build_parser
from har_edge.data.pictures import Pixels
from har_edge.evaluation.anomaly_metrics import grow, image_auroc
from har_edge.inference.anomaly import AnomalyDetector
from har_edge.learning.anomaly.choosing import (
    REGULARIZATIONS,
    FeatureMaps,
    FeatureReader,
    LearnedFeatures,
    score_alone,
    separation,
)
from har_edge.learning.anomaly.classes import one_class
from har_edge.learning.anomaly.defects import add_defects, rearrange
from har_edge.learning.anomaly.detector import DetectorSettings, Pool
from har_edge.learning.anomaly.finishing import DataOrigin, FinishedDetector, finish_detector
from har_edge.learning.anomaly.local_run import train_here
from har_edge.learning.anomaly.pictures import NormalSplit, split_normal
from har_edge.learning.data.dataset_files import LabelledData, read_data

_BATCH, _CHECKED = 250, 16
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trained:
    """The detector of a digit, and what stands behind the features in it."""

    digit: str
    learned: LearnedFeatures
    made: FinishedDetector
    pictures: int
    seconds: float


def score_digits(folder: Path, method: str, words: list[str], digits: list[str], most: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each digit; `most` training pictures of each, 0 for all."""
    args, data = _parse(folder, method, words), read_data(folder)
    trained = [train_digit(args, data, digit, most) for digit in digits]
    test = data.test.x.reshape(-1, *trained[0].learned.shape)
    scores = score_together(trained, test)
    whole = AnomalyDetector(trained[0].made.content).run(test[:_CHECKED]).scores
    apart = float(np.abs(whole - scores[0][:_CHECKED]).max() / np.abs(whole).max())
    for one, found in zip(trained, scores, strict=True):
        anomalous, note = data.test.y != int(one.digit), one.made.note
        settings = one.made.settings
        yield {
            "kind": "mnist",
            "method": method,
            "normal": one.digit,
            "pictures": one.pictures,
            "separation": one.made.separation,
            "settings": [settings.pool.value, settings.regularization, settings.blur, *settings.weights],
            "whole_detector_apart": apart,
            "training_seconds": round(one.seconds, 1),
            "report": {
                "test": {
                    "image_auroc": image_auroc(found, anomalous),
                    "caught": float((found[anomalous] > note.threshold).mean()),
                    "false_alarms": float((found[~anomalous] > note.threshold).mean()),
                }
            },
        }


def separate_maps(
    folder: Path, words: list[str], digits: list[str], most: int, held_out: int = 200
) -> Iterator[dict[str, Any]]:
    """Yield how each combination of maps tells synthetic defects of each digit; no test picture is read.

    Keys are pool, regularization and numbers of maps, finest first and the picture last; values the areas under the ROC
    curve for rectangles and for rearranged pictures.
    """
    args, data = _parse(folder, "joint", words), read_data(folder)
    for digit in digits:
        split = split_normal(one_class(data, digit).train[: most or None], args.held_out, args.seed)
        learned = _learn(args, split, DataOrigin(digit, real=True))
        reader, normal = FeatureReader(learned.features, learned.shape), split.held_out[:held_out]
        sets = [reader.read(one) for one in (normal, add_defects(normal, 0).pictures, rearrange(normal, 0))]
        found: dict[str, list[float]] = {}
        for pool, share in product(Pool, REGULARIZATIONS):
            singles = [learned.statistics.only(number) for number in range(len(sets[0].maps))]
            alone = [score_alone(one, i, DetectorSettings(pool, share), sets) for i, one in enumerate(singles)]
            for count in range(1, len(alone) + 1):
                for chosen in combinations(range(len(alone)), count):
                    sums = [sum(alone[i][k] / alone[i][0].std() for i in chosen) for k in range(3)]
                    name = f"{pool.value} {share} {'+'.join(map(str, chosen))}"
                    found[name] = [separation(sums[0], other) for other in sums[1:]]
        say(f"digit {digit}: {len(split.train)} pictures to train with, {len(normal)} to choose with")
        yield {"kind": "maps", "normal": digit, "separations": found}


def print_maps(rows: list[dict[str, Any]]) -> None:
    """Print the best combinations of maps, and the best of each number of maps, as means over the digits."""
    means = {name: np.mean([row["separations"][name] for row in rows], axis=0) for name in rows[0]["separations"]}
    ranked = sorted(means, key=lambda name: -means[name].mean())
    singles = [next(name for name in ranked if name.split()[2] == str(number)) for number in range(5)]
    every = next(name for name in ranked if name.endswith("0+1+2+3+4"))
    for name in dict.fromkeys([*ranked[:5], every, *singles]):
        both = means[name]
        say(f"{name}: {both.mean():.4f} (rectangles {both[0]:.4f}, rearranged {both[1]:.4f})")


def _parse(folder: Path, method: str, words: list[str]) -> argparse.Namespace:
    options = ["train", "--task", "anomaly", "--data", str(folder), "--out", "out", "--method", method, *words]
    args = build_parser().parse_args(options)
    args.optimizer = args.optimizer or anomaly_training.DEFAULT_OPTIMIZER
    return args


def _learn(args: argparse.Namespace, split: NormalSplit, origin: DataOrigin) -> LearnedFeatures:
    return anomaly_training.learn(
        args,
        args.method,
        split,
        origin,
        lambda trainable, samples, optimizer, epochs, _: train_here(trainable, samples, optimizer, epochs, args.seed),
    )


def train_digit(args: argparse.Namespace, data: LabelledData, digit: str, most: int) -> Trained:
    """Return the detector that `har-edge train --normal DIGIT` makes, of the first `most` training pictures."""
    began, pictures = time.monotonic(), one_class(data, digit)
    split = split_normal(pictures.train[: most or None], args.held_out, args.seed)
    origin = DataOrigin(pictures.name, pictures.real)
    learned = _learn(args, split, origin)
    made = finish_detector(learned, split.held_out, origin, args.quantile, args.seed)
    seconds = time.monotonic() - began
    say(f"digit {digit}: {len(split.train)} pictures, {made.settings}, {made.separation:.4f}, {seconds:.0f} s")
    return Trained(digit, learned, made, len(split.train), seconds)


def score_together(trained: list[Trained], test: Pixels) -> list[Floats]:
    """Return the scores of all test pictures by each detector."""
    reader = FeatureReader(trained[0].learned.features, trained[0].learned.shape)
    scores: list[list[Floats]] = [[] for _ in trained]
    for start in range(0, len(test), _BATCH):
        maps = reader.read(test[start : start + _BATCH])
        for one, found in zip(trained, scores, strict=True):
            found.append(score_maps(one, maps))
    return [np.concatenate(found) for found in scores]


def score_maps(one: Trained, features: FeatureMaps) -> Floats:
    """Return scores [n] as the operators of a detector make them, for many pictures at once."""
    settings, statistics = one.made.settings, one.learned.statistics
    weights = settings.weights or (1.0,) * len(features.maps)
    height, width = (max(found.shape[axis] for found in features.maps) for axis in (1, 2))
    total = np.zeros((len(features.maps[0]), height, width), np.float32)
    for number, (found, mean, weight) in enumerate(zip(features.maps, statistics.means, weights, strict=True)):
        if weight:
            n, high, wide, channels = found.shape
            off = (found - mean).reshape(n, high * wide, channels).transpose(1, 0, 2)
            white = np.matmul(off, statistics.whitening(number, settings.regularization))
            square = np.square(white).sum(axis=2).T.reshape(n, high, wide)
            total += grow(square * np.float32(weight / (sum(weights) * channels)), height, width)
    if settings.blur:
        total = blurred(total, settings.blur)
    return np.sqrt(total.max(axis=(1, 2)) if settings.pool is Pool.MAX else total.mean(axis=(1, 2)))


def blurred(maps: Floats, deviation: float) -> Floats:
    """Return maps behind a Gaussian, whose weights at the border are those that lie inside."""
    reach = max(1, round(3 * deviation))
    for axis in (1, 2):
        places = np.arange(maps.shape[axis])
        kernel = np.exp(-0.5 * ((places[:, None] - places) / deviation) ** 2)
        kernel[np.abs(places[:, None] - places) > reach] = 0
        kernel /= kernel.sum(axis=1, keepdims=True)
        maps = np.moveaxis(np.tensordot(kernel.astype(np.float32), maps, (1, axis)), 0, axis)
    return maps
