"""Models whose tensors are not all [windows, ...]: every cut that is offered runs, and answers every window."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.pipeline import Pipeline, check_batch, find_batch_problem
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.errors import ConfigError
from har_edge.evaluation.composition import load_whole
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.tensor_observation import open_model
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.results import Result
from har_edge.runtime.build import build_sensor, build_stage
from har_edge.runtime.slicing import prepare
from har_edge.tflite.cuts import list_cuts
from tests.protocol.reading import read_results
from tests.runtime.rig import windows_of
from tests.tflite import models

COUNT = 6
TASK = Task(
    stream=StreamTask("mhealth", 50.0, models.LENGTH, 2),
    inputs={"chest": SourceInput("c")},
    output="scores",
    labels=["standing still", "walking"],
    label_ids=[1, 4],
)
ODD = {
    "dilated": models.dilated(),
    "dilated for one": models.dilated(batch=1),
    "dense each step": models.dense_each_step(),
    "places": models.positive_places(),
    "places without a signature": models.positive_places(signed=False),
    "hardly any place": models.positive_places(threshold=14.0),
    "chosen class": models.chosen_class(),
    "chosen class as int64": models.chosen_class(type=models.tflite.TensorType.INT64),
    "unread input": models.unread_input(),
    "without signatures": models.unsigned(),
    "mixes windows": models.mixes_windows(),
    "one at a time": models.one_at_a_time(),
    "no elements": models.without_elements(),
    "no elements, it says": models.without_elements(planned=False),
}


def run(pipeline: Pipeline, batch: int = 1) -> list[Result]:
    """Send windows through sensor and stages; return the results. No stage may drop or leave one."""
    stages = [build_stage(pipeline, index) for index in range(len(pipeline.manifest.slices))]
    sensor, results = build_sensor(pipeline, ["chest"]), list[Result]()
    windows = windows_of(pipeline, "s", COUNT)
    for start in range(0, COUNT, batch):
        chosen = windows[start : start + batch]
        todo = sensor.handle(chosen, [float(window.seq) for window in chosen])
        while todo:
            sent = todo.pop()
            if "/result/" in sent.topic:
                results += read_results(sent)
                continue
            for stage in stages:
                if any(_matches(one, sent.topic) for one in stage.filters):
                    todo += [made for made in stage.handle(Delivery(sent.topic, sent.payload, (0, 0))) if made.topic]
    assert [(stage.complaint, stage.counters.rejected, stage.waiting) for stage in stages] == [("", 0, 0)] * len(stages)
    return results


def _matches(pattern: str, topic: str) -> bool:
    levels = pattern.split("/"), topic.split("/")
    return len(levels[0]) == len(levels[1]) and all(a in ("+", b) for a, b in zip(*levels, strict=True))


def expected(path: Path, pipeline: Pipeline) -> list[tuple[int, float]]:
    """Return label id and confidence of each window by the uncut model."""
    whole = load_whole(path, pipeline.task)
    classifier = Classifier(whole.run, whole.inputs, pipeline.task, channels={"chest": models.CHANNELS})
    output = next(port for port in whole.outputs if port.name == pipeline.task.output)
    said = [classifier.predict(window) for window in windows_of(pipeline, "s", COUNT)]
    return [(pipeline.task.label_ids[one.answer], one.confidence(output)) for one in said]


@pytest.fixture(params=ODD)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(ODD[request.param])
    return path


def test_every_cut_answers_every_window_as_the_whole_model_does(path: Path, tmp_path: Path) -> None:
    model = open_model(path)
    cuts = list_cuts(model)
    assert [cut.refusal for cut in cuts] == [None] * len(cuts)
    ways = [(), *combinations([cut.index for cut in cuts], 1), *combinations([cut.index for cut in cuts], 2)]
    for number, way in enumerate(ways):
        pipeline = prepare(path, TASK, tmp_path / str(number), stages=len(way) + 1, cuts=way)
        answers = [(one.label_id, one.confidence) for one in run(pipeline)]
        assert answers == expected(path, pipeline), way


def test_no_place_at_all_is_answered_too(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.positive_places(threshold=1e6))
    for cut in (3, 4):  # what crosses has no element
        pipeline = prepare(path, TASK, tmp_path / str(cut), stages=2, cuts=[cut])
        assert [(one.label_id, one.confidence) for one in run(pipeline)] == expected(path, pipeline)


def test_several_windows_a_message_pass_or_are_refused_at_start(path: Path, tmp_path: Path) -> None:
    passed = []
    for cut in list_cuts(open_model(path)):
        pipeline = prepare(path, TASK, tmp_path / str(cut.index), stages=2, cuts=[cut.index])
        if find_batch_problem(pipeline.manifest, pipeline.task):
            with pytest.raises(ConfigError, match=r"--batch 3 came, but tensor .* of slice \d has "):
                check_batch(pipeline, 3)
            check_batch(pipeline, 1)
            continue
        check_batch(pipeline, 3)
        passed.append(cut.index)
        answers = [(one.label_id, one.confidence) for one in run(pipeline, batch=3)]
        alone = expected(path, pipeline)
        assert [label for label, _ in answers] == [label for label, _ in alone]
        assert [score for _, score in answers] == pytest.approx([score for _, score in alone], rel=1e-4)
    known = {
        models.dilated(): [3, 4],
        models.dense_each_step(): [4, 5],
        models.chosen_class(): [1, 2],
        models.chosen_class(type=models.tflite.TensorType.INT64): [1, 2],
        models.unsigned(): [1, 2],
        models.without_elements(): [1, 2, 3],
        models.without_elements(planned=False): [1, 2, 3],
        models.mixes_windows(): [],
    }
    assert passed == known.get(path.read_bytes(), [])


@pytest.mark.parametrize(
    ("shape", "turned"),
    [
        *(([-1, *rest], False) for rest in ([8, 5], [8, 5, 1], [1, 8, 5], [40], [2, 4, 5])),
        *(([-1, *rest], True) for rest in ([5, 8], [1, 5, 8], [5, 8, 1])),
        *((one, False) for one in ([1, 8, 5, 1], [8, 5], [8, 5, 1], [40])),
        ([5, 8], True),
    ],
)
def test_inputs_with_other_dimensions_run(shape: list[int], turned: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.laid_out(shape))
    pipeline = prepare(path, TASK, tmp_path / "slices", stages=2, cuts=[1])
    whole = load_whole(path, TASK)
    for batch in (1, 3) if shape[0] == -1 else (1,):
        results = run(pipeline, batch)
        for window, result in zip(windows_of(pipeline, "s", COUNT), results, strict=True):
            samples = window.samples["chest"]
            entered = np.ascontiguousarray(samples.T if turned else samples).reshape([abs(n) for n in shape])
            scores = whole.run({"c": entered})["scores"].reshape(-1)
            assert result.label_id == TASK.label_ids[int(scores.argmax())]
            assert result.confidence == pytest.approx(float(scores.max()), rel=1e-4)


def test_a_source_that_is_missing_enters_an_input_without_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.laid_out([8, 5]))
    whole = load_whole(path, TASK)
    classifier = Classifier(whole.run, whole.inputs, TASK, channels={"chest": models.CHANNELS})
    (window,) = windows_of(prepare(path, TASK, tmp_path / "slices", stages=1, cuts=[]), "s", 1)
    silent = dataclasses.replace(window, samples={"chest": np.zeros((8, 5), np.float32)})
    missing = classifier.predict(window, frozenset({"chest"}))
    assert missing.scores.tobytes() == classifier.predict(silent).scores.tobytes()


@pytest.mark.parametrize(
    ("content", "labels", "text"),
    [
        (
            models.dilated(),
            3,
            r"output 'scores' is float32 \[-1, 2\], which has 2 values a window, but there are 3 labels",
        ),
        (models.positive_places(), 1, r"float32 \[1, 2\], which has 2 values a window, but there are 1 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused_at_start(content: bytes, labels: int, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    names, ids = ["standing still", "walking", "running"], [1, 4, 11]
    task = msgspec.structs.replace(TASK, labels=names[:labels], label_ids=ids[:labels])
    with pytest.raises(ConfigError, match=text):
        prepare(path, task, tmp_path / "slices", stages=2, cuts=[1])


def test_a_class_that_no_label_names_is_dropped_and_said(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.chosen_class(classes=9))
    pipeline = prepare(path, TASK, tmp_path / "slices", stages=1, cuts=[])
    stage, sensor = build_stage(pipeline, 0), build_sensor(pipeline, ["chest"])
    for window in windows_of(pipeline, "s", 20):
        (sent,) = sensor.handle([window], [0.0])
        stage.handle(Delivery(sent.topic, sent.payload, (0, window.seq)))
    assert 0 < stage.counters.rejected < 20 and stage.counters.windows + stage.counters.rejected == 20
    assert "the model answered with class [" in stage.complaint and "; expected 0 to 1" in stage.complaint


def test_labels_of_the_model_itself_are_those_of_results(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(models.annotated(["walking", "standing still"]))
    task = msgspec.structs.replace(TASK, labels=[], label_ids=[])
    pipeline = prepare(path, task, tmp_path / "slices", stages=2, cuts=[1])
    assert (pipeline.task.labels, pipeline.task.label_ids) == (["walking", "standing still"], [4, 1])
    answers = [(one.label, one.label_id, one.confidence) for one in run(pipeline)]
    assert [(number, score) for _, number, score in answers] == expected(path, pipeline)
    assert {(label, number) for label, number, _ in answers} <= {("walking", 4), ("standing still", 1)}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            models.annotated(["walking", "dancing"]),
            r"label_ids says 14 for 'dancing', but mhealth has labels 0 to 12 only",
        ),
        (models.annotated(["walking"]), "0 labels and 0 label_ids; expected one of each"),
        (models.dilated(), "0 labels and 0 label_ids; expected one of each"),
    ],
)
def test_without_labels_that_fit_a_pipeline_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        prepare(path, msgspec.structs.replace(TASK, labels=[], label_ids=[]), tmp_path / "s", stages=2, cuts=[1])
