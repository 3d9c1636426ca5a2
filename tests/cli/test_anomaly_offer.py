"""`har-edge train --task anomaly --deploy`: a detector is compared, rolled out, tried on live pictures, rolled back."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from har_edge.api.model import load_model
from har_edge.cli.anomaly_offer import check_detector, score_detector_file
from har_edge.cli.deploy_trained import RunningPipeline
from har_edge.cli.main import build_parser, main
from har_edge.cluster.local_cluster import LocalCluster
from har_edge.cluster.processes import Processes
from har_edge.config.anomaly_task import derive_anomaly_task
from har_edge.config.task import Task
from har_edge.data.pictures import AspectRule
from har_edge.errors import ConfigError
from har_edge.learning.anomaly.pictures import AnomalyPictures, NormalSplit
from har_edge.learning.versions.registry import VersionRegistry, VersionState
from har_edge.protocol.topics import Topics
from har_edge.tflite.model import read_model
from tests.learning.anomaly_pictures import stripes, with_spot
from tests.tflite import anomaly_models
from tests.tflite.anomaly_models import defect, normal

WORDS = ["--size", "16", "--grey", "--epochs", "8", "--filters", "4", "--code", "3", "--batch", "8"]
TRIAL = 20
# Between two pictures.
BETWEEN_S = 0.05


def task_of(content: bytes, **options: float) -> Task:
    found = derive_anomaly_task(read_model(content), **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def other_fit() -> Task:
    task = task_of(anomaly_models.detector())
    assert task.image is not None
    return msgspec.structs.replace(task, image=msgspec.structs.replace(task.image, fit=AspectRule.CROP))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (msgspec.structs.replace(task_of(anomaly_models.detector()), anomaly=None), "finds no anomalies in pictures"),
        (task_of(anomaly_models.detector(), threshold=3.0), "has a threshold of its own (--threshold)"),
        (task_of(anomaly_models.detector()), "takes pictures of 6 x 8 pixels, 3 channels, --fit stretch; these"),
        (other_fit(), "--fit crop; these options train for 16 x 16, 1, --fit stretch: take the same"),
    ],
)
def test_a_pipeline_that_takes_no_such_detector_is_told_before_the_training(task: Task, said: str) -> None:
    args = build_parser().parse_args(["train", "--task", "anomaly", "--deploy", "--out", "out", *WORDS])
    seen = RunningPipeline(plan=SimpleNamespace(config=SimpleNamespace(task=task)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        check_detector(args, Topics("har", "line"), seen)
    assert said in str(caught.value)


def test_both_versions_are_scored_on_the_same_pictures() -> None:
    held_out = np.stack([normal(seed) for seed in range(8)])
    test = np.stack([normal(9), defect(1, 1), defect(2, 2)])
    flags = np.array([False, True, True])
    kinds = ("good", "spot", "spot")
    pictures = AnomalyPictures(held_out, test, flags, kinds, kinds, None, "made", False)
    split = NormalSplit(held_out, held_out)
    found = score_detector_file(anomaly_models.detector(), split, pictures, 0)
    assert found["image_auroc"] == 1.0 and 0.0 <= found["synthetic_auroc"] <= 1.0
    far = score_detector_file(anomaly_models.detector(mean=220.0), split, pictures, 0)
    assert far["image_auroc"] < 1.0
    alone = AnomalyPictures(held_out, test[:0], flags[:0], (), (), None, "made", False)
    assert set(score_detector_file(anomaly_models.detector(), split, alone, 0)) == {"synthetic_auroc"}


def write_pictures(path: Path) -> None:
    """Write stripes and stripes with a black square, of which either may be the normal class."""
    train, test = stripes(40), stripes(20, seed=1)
    x_train, x_test = np.concatenate([train, with_spot(train)]), np.concatenate([test[:10], with_spot(test[10:])])
    labels, classes = np.array([0] * 40 + [1] * 40), np.array(["striped", "spotted"])
    y_test = np.array([0] * 10 + [1] * 10)
    np.savez(path, x_train=x_train, y_train=labels, x_test=x_test, y_test=y_test, classes=classes, real=False)


@pytest.mark.slow
def test_a_detector_takes_over_and_one_that_alarms_more_on_live_pictures_goes_back(tmp_path: Path) -> None:
    data, out = tmp_path / "pictures.npz", tmp_path / "out"
    write_pictures(data)
    base = ["train", "--task", "anomaly", "--data", str(data), "--out", str(out), *WORDS]
    assert main([*base, "--normal", "spotted"]) == 0  # the first one learned the wrong class
    old = (out / "anomaly.tflite").read_bytes()
    model = load_model(out / "anomaly.tflite", pictures=True)
    shown, sent, last = stripes(200, seed=7), 0, 0.0
    with (
        LocalCluster(model, stages=2, nodes=2, directory=tmp_path / "work") as cluster,
        cluster.watch() as results,
        cluster.sensor("line") as sensor,
    ):
        where = ["--pipeline", cluster.topics.pipeline, "--base", cluster.topics.base, "--broker", cluster.broker]
        processes = Processes(folder=tmp_path)

        def train(name: str, *words: str) -> tuple[int, str]:
            """Run a training while pictures flow; return its exit code and what it said."""
            one = processes.start(name, [*base, "--deploy", *words, *where], log=tmp_path / f"{name}.log")
            cluster.until(lambda: not one.alive, f"{name} has not ended: {one.output}", 240.0)
            return one.wait(), one.output

        def send() -> None:
            nonlocal sent, last
            if time.monotonic() >= last + BETWEEN_S:
                sensor.send(shown[sent % len(shown)])
                sent, last = sent + 1, time.monotonic()

        cluster.steps.append(send)
        try:
            better = train("better", "--normal", "striped", "--trial", str(TRIAL))
            refused = train("refused", "--normal", "striped", "--seed", "3", "--least-gain", "2")
            worse = train("worse", "--normal", "spotted", "--seed", "5", "--trial", str(TRIAL))
            cluster.steps.clear()
            assert cluster.view.deployment is not None and cluster.view.deployment.current is not None
            deployed = cluster.view.deployment.current.manifest.model_sha256
        finally:
            processes.stop()
        verdicts = {}
        while len(verdicts) < sent:
            one = next(results)
            assert one.anomaly is not None
            verdicts[one.seq] = one.anomaly.anomaly
    assert sorted(verdicts) == list(range(sent))  # no picture was lost
    assert better[0] == 0 and "is rolled out: image_auroc 1.0000 against 0." in better[1], better[1]
    assert "live pictures are called anomalous, before: 100.0% of " in better[1], better[1]
    assert refused[0] == 1 and "is refused: " in refused[1], refused[1]
    assert worse[0] == 1 and "is rolled back: it calls 100.0% of " in worse[1], worse[1]
    kept = VersionRegistry(out)
    assert kept.versions[0].sha256 == hashlib.sha256(old).hexdigest()
    assert {one.state for one in kept.versions} == {
        VersionState.DEPLOYED,
        VersionState.REFUSED,
        VersionState.REPLACED,
        VersionState.ROLLED_BACK,
    }
    assert kept.deployed is not None and kept.deployed.sha256 == deployed != hashlib.sha256(old).hexdigest()
    # Its figure is that of the last comparison, on pictures of which the spotted ones are called normal.
    assert kept.deployed.figures["image_auroc"] == 0.0 and "1.0000 of the deployed version" not in worse[1]
