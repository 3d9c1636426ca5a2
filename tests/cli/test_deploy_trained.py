"""`train --deploy`: refused before training where it cannot be, and what it leaves at the broker."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from har_edge.cli.deploy_trained import RunningPipeline, _make_note, _removals, check_pipeline
from har_edge.config.image_task import Normalization, derive_image_task
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.coordinator.model_replacement import HEARS_OF_MODELS
from har_edge.errors import ConfigError
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.lenet import write_lenet5
from har_edge.protocol.deployment import Deployment, Generation, Placement
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import Topics
from har_edge.protocol.training_results import ModelNote
from har_edge.tflite.folder import make_manifest
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.slices import slice_model
from tests.learning.made_data import pictures

TOPICS = Topics("har", "har")


def lenet(side: int = 6, classes: int = 4) -> Model:
    return read_model(bytes(write_lenet5(classes, shape=(side, side))))


def running(model: Model, data: Dataset, std: float = 255.0) -> RunningPipeline:
    task = derive_image_task(model, labels=data.classes, asked=True, normalization=Normalization((0.0,), (std,)))
    made = Generation(5, make_manifest(model, slice_model(model, [3])), (Placement(0, "a"), Placement(1, "b")))
    plan = Deployment(1, 7, "c", 1.0, PipelineConfig(task), 5, {}, (made,))
    status = NodeStatus("coordinator", "coordinator", State.READY, "1", 1.0, version="9", counters={HEARS_OF_MODELS: 1})
    return RunningPipeline(plan, status)


DATA = pictures()


def test_the_same_network_fits() -> None:
    check_pipeline(running(lenet(), DATA), TOPICS, lenet(), DATA)


def changed(seen: RunningPipeline, **more: object) -> RunningPipeline:
    return RunningPipeline(seen.plan, msgspec.structs.replace(seen.coordinator, **more))


@pytest.mark.parametrize(
    ("seen", "model", "text"),
    [
        (RunningPipeline(), lenet(), "no coordinator runs in pipeline har; start one first"),
        (changed(running(lenet(), DATA), state=State.STOPPED), lenet(), "no coordinator runs in pipeline har"),
        (changed(running(lenet(), DATA), counters={}), lenet(), "takes no trained models: it is older"),
        (RunningPipeline(None, running(lenet(), DATA).coordinator), lenet(), "has deployed nothing yet"),
        (running(lenet(8), DATA), lenet(), r"source camera enters image \[8, 8, 1\] there, and the model takes image"),
        (running(lenet(6, 5), pictures(classes=5)), lenet(), "the pipeline has 5 classes"),
        (running(lenet(), DATA, 127.5), lenet(), r"pixels enter as \(byte - 0\) / 127.5 there, and the model learned"),
        (
            running(lenet(), Dataset(DATA.x, DATA.y, tuple("wxyz"), "rows", True, 1 / 255)),
            lenet(),
            "its classes are w, x, y, z ..., those of the data 0, 1, 2, 3 ...",
        ),
    ],
)
def test_what_does_not_fit_is_refused(seen: RunningPipeline, model: Model, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_pipeline(seen, TOPICS, model, DATA)


def test_a_model_replaces_the_running_one_and_all_that_this_one_had_replaced() -> None:
    seen = running(lenet(), DATA)
    before = ModelNote(run="old", author="x", sha256=seen.model_sha256, size=300_000, replaces=("a" * 64,), time=5e9)
    seen.notes["old"] = before
    note = _make_note(seen, "new", b"new model")
    assert note is not None
    assert note.replaces == (seen.model_sha256, "a" * 64) and note.time > before.time
    topics = [one.topic.removeprefix(TOPICS.prefix) for one in _removals(TOPICS, note, seen.notes, True)]
    assert topics == ["train/old/model", *(f"{kind}/{before.sha256}{at}" for kind, at in
                                           (("file", ""), ("part", "/0"), ("part", "/1")))]  # fmt: skip
    (said, *files) = _removals(TOPICS, note, seen.notes, False)  # where it was not deployed, the old one counts
    assert (said.topic.removeprefix(TOPICS.prefix), said.payload) == ("train/new/model", b"")
    assert all(note.sha256 in one.topic for one in files)
    assert _make_note(seen, "new", bytes(seen_model())) is None


def seen_model() -> bytes:
    return bytes(write_lenet5(4, shape=(6, 6)))


def test_values_without_bytes_need_no_normalization() -> None:
    floats = Dataset(DATA.values(), DATA.y, DATA.classes, "rows", True)
    check_pipeline(running(lenet(), DATA, 127.5), TOPICS, lenet(), floats)
    assert floats.x.dtype == np.float32
