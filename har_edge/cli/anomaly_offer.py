"""`har-edge train --task anomaly --deploy`: offer a detector to the pipeline that runs."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from har_edge.errors import ConfigError

if TYPE_CHECKING:
    from har_edge.cli.deploy_trained import RunningPipeline
    from har_edge.cli.version_offer import LiveWatch
    from har_edge.learning.anomaly.pictures import AnomalyPictures, NormalSplit
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.stop import Stop


def check_offer(args: argparse.Namespace, topics: Topics) -> None:
    """Raise ConfigError where the pipeline that runs takes no detector of these options, before anything is trained.

    The file of the deployed one is kept among the versions if it is in --out, which the new one may overwrite.
    """
    from har_edge.cli.deploy_trained import LOOK_S, PipelineView, check_takes_models

    view = PipelineView(args, topics)
    try:
        seen = view.look(LOOK_S, lambda one: one.plan is not None and one.coordinator is not None)
    finally:
        view.close()
    check_takes_models(seen, topics)
    check_detector(args, topics, seen)
    _keep_deployed(args, seen.model_sha256)


def check_detector(args: argparse.Namespace, topics: Topics, seen: RunningPipeline) -> None:
    """Raise ConfigError for a pipeline that finds no anomalies, or takes other pictures than these options say."""
    assert seen.plan is not None
    task, channels = seen.plan.config.task, 1 if args.grey else 3
    name = f"pipeline {topics.pipeline}"
    if task.anomaly is None or task.image is None:
        raise ConfigError(
            f"--deploy came, and {name} finds no anomalies in pictures; start one with the first detector: "
            f"`har-edge coordinator --model DETECTOR --stream images --pipeline {topics.pipeline}`"
        )
    if task.anomaly.limit is None:
        raise ConfigError(
            f"{name} has a threshold of its own (--threshold), which a new version does not bring along; start its "
            "coordinator without"
        )
    there, image = (task.image.height, task.image.width, task.image.channels), task.image
    if there != (args.size, args.size, channels) or image.fit.value != args.fit:
        raise ConfigError(
            f"{name} takes pictures of {there[1]} x {there[0]} pixels, {there[2]} channels, --fit {image.fit.value}; "
            f"these options train for {args.size} x {args.size}, {channels}, --fit {args.fit}: take the same"
        )


def score_detector_file(content: bytes, split: NormalSplit, pictures: AnomalyPictures, seed: int) -> dict[str, float]:
    """Return the figures of a detector that decide between versions, and its share of false alarms.

    `synthetic_auroc` is that of synthetic defects on held-out normal pictures; `image_auroc`, which decides where there
    is one, that of the labelled test.
    """
    from har_edge.evaluation.anomaly_metrics import image_auroc
    from har_edge.inference.anomaly import AnomalyDetector
    from har_edge.learning.anomaly.choosing import separation
    from har_edge.learning.anomaly.defects import add_defects
    from har_edge.learning.anomaly.finishing import CHOOSING

    detector, chosen = AnomalyDetector(content), split.held_out[:CHOOSING]
    defective = detector.run(add_defects(chosen, seed).pictures).scores
    found = {"synthetic_auroc": separation(detector.run(chosen).scores, defective)}
    if pictures.has_test:
        found["image_auroc"] = image_auroc(detector.run(pictures.test).scores, pictures.anomalous)
    return found


def offer_detector(
    args: argparse.Namespace,
    topics: Topics,
    run: str,
    content: bytes,
    split: NormalSplit,
    pictures: AnomalyPictures,
    live: LiveWatch | None,
    stop: Stop,
) -> bool:
    """Compare a detector with the deployed one on the same pictures, and roll it out where it is better.

    Returns whether it is deployed at the end.
    """
    from har_edge.cli.version_offer import offer_to_pipeline
    from har_edge.learning.versions.rollout import ScoredModel

    def score(one: bytes) -> Mapping[str, float]:
        return score_detector_file(one, split, pictures, args.seed)

    count = len(pictures.test) if pictures.has_test else len(split.held_out)
    made = ScoredModel(content, run, score(content), count, pictures.name, pictures.real)
    return offer_to_pipeline(args, topics, made, score, None, stop, live=live)


def _keep_deployed(args: argparse.Namespace, sha256: str) -> None:
    """Keep the file of the deployed detector among the versions, where it is in --out and not among them."""
    from har_edge.files import MAX_MODEL_BYTES, read_regular
    from har_edge.learning.versions.registry import VersionRegistry, VersionState

    registry = VersionRegistry(args.out)
    if any(one.sha256 == sha256 for one in registry.versions):
        return
    for path in sorted(args.out.glob("*.tflite")):
        content = read_regular(path, MAX_MODEL_BYTES)
        if hashlib.sha256(content).hexdigest() == sha256:
            registry.add(
                content, path.stem, {}, samples=0, data="", real=False, state=VersionState.DEPLOYED, reason="found here"
            )
            return
