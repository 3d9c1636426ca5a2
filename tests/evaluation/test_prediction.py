"""Predictions, their comparison, and the figures made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.catalog import FoundModel, ModelEntry
from har_edge.config.task import SourceInput, StateRule, StreamTask, Task
from har_edge.data.recording import Recording
from har_edge.data.windows import windows
from har_edge.errors import ConfigError, CutError, ModelError
from har_edge.evaluation.chart import draw_confusion, format_confusion
from har_edge.evaluation.comparison import Answer, compare_answers, compare_scores
from har_edge.evaluation.composition import Composition, cut_composition, load_composition, load_whole
from har_edge.evaluation.prediction import Classifier, Prediction, predict_recordings
from har_edge.evaluation.report import evaluate, score, write_evaluation
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.tflite.folder import write_folder
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from tests.tflite import models


def row(stream: str, seq: int, truth: int | None, answer: int) -> Prediction:
    return Prediction(stream, seq, truth, answer, np.eye(3, dtype=np.float32)[answer])


ROWS = [row("a", 0, 0, 0), row("a", 1, 0, 1), row("a", 2, None, 2), row("b", 0, 2, 2)]


def test_every_window_is_predicted_and_mixed_ones_have_no_truth(
    predictions: list[Prediction], recordings: list[Recording], entry: ModelEntry
) -> None:
    cut = [w for r in recordings for w in windows(r, 250, 125, within_activity=False)]
    assert [(p.stream, p.seq) for p in predictions] == [(w.stream, w.seq) for w in cut]
    truths = [None if p.truth is None else entry.task.label_ids[p.truth] for p in predictions]
    assert truths == [w.label for w in cut]
    assert None in truths


def test_a_label_that_the_model_does_not_know_is_not_scored(
    found: FoundModel, entry: ModelEntry, recordings: list[Recording]
) -> None:
    strange = replace(recordings[0], labels=np.full(len(recordings[0]), 77, np.int16))
    interpreter = Interpreter(found.path)
    rows = list(predict_recordings(Classifier(interpreter.run, interpreter.inputs, entry.task), [strange], entry.task))
    scores = score(rows, entry.task.labels)
    assert (scores.windows, scores.mixed) == (0, len(rows))


def test_a_task_for_other_tensors_is_refused(found: FoundModel, entry: ModelEntry) -> None:
    interpreter = Interpreter(found.path)
    inputs = {source: msgspec.structs.replace(entry.task.inputs[source], tensor="knee") for source in entry.task.inputs}
    task = msgspec.structs.replace(entry.task, inputs=inputs)
    message = (
        "the task feeds chest to tensor 'knee' [windows, length, channels], but the model takes chest [-1, 250, 5]"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        Classifier(interpreter.run, interpreter.inputs, task)


def test_composed_slices_are_identical(
    found: FoundModel, entry: ModelEntry, recordings: list[Recording], predictions: list[Prediction], tmp_path: Path
) -> None:
    model = read_model(found.path)
    write_folder(model, slice_model(model, [4, 9]), tmp_path)
    ways = load_composition(tmp_path, found.sha256, entry.task), cut_composition(found.path, [3, 6, 9, 11], entry.task)
    for slices in ways:
        came = predict_recordings(Classifier(slices.run, slices.inputs, entry.task), recordings, entry.task)
        assert compare_scores(predictions, came).identical
    with pytest.raises(ModelError, match=f"holds slices of a model with sha256 {found.sha256}, expected 0000"):
        load_composition(tmp_path, "0000", entry.task)
    with pytest.raises(CutError):
        cut_composition(found.path, [99], entry.task)


def test_a_model_that_remembers_is_refused_or_starts_anew_for_every_window(tmp_path: Path) -> None:
    path, length, channels = tmp_path / "model.tflite", 4, 5
    path.write_bytes(models.recurrent_classifier(length, channels))
    model = read_model(path)
    write_folder(model, slice_model(model, [1]), tmp_path / "slices")
    task = Task(
        stream=StreamTask("mhealth", 50.0, length, length),
        inputs={"chest": SourceInput("c")},
        output="scores",
        labels=["standing still", "walking"],
        label_ids=[1, 4],
    )
    ways: list[Callable[[Task], Interpreter | Composition]] = [
        lambda task: load_whole(path, task),
        lambda task: load_composition(tmp_path / "slices", model.sha256, task),
        lambda task: cut_composition(path, [1], task),
    ]
    samples = np.random.default_rng(0).normal(0, 1, (20, channels)).astype(np.float32)
    recording = Recording("a", 50.0, {"chest": samples}, np.ones(20, np.int16), (0,), False)
    alone = [
        Interpreter(path).run({"c": samples[None, start : start + length]})["scores"][0].tobytes()
        for start in range(0, 20, length)
    ]
    for load in ways:
        with pytest.raises(ConfigError, match="keeps state from one run to the next"):
            load(task)
        reset = msgspec.structs.replace(task, state=StateRule.RESET)
        loaded = load(reset)
        rows = predict_recordings(Classifier(loaded.run, loaded.inputs, reset), [recording], reset)
        assert [row.scores.tobytes() for row in rows] == alone


def test_answers_that_came_another_way_are_compared_by_stream_and_seq() -> None:
    output = Port("scores", (-1, 3), ROWS[0].scores.dtype, 0.0, 0)
    same = {(p.stream, p.seq): Answer(p.answer, float(p.scores[p.answer])) for p in ROWS}
    assert compare_answers(ROWS, same, output).identical
    other = {key: answer for key, answer in same.items() if key != ("a", 2)}
    other |= {("a", 1): replace(same["a", 1], index=0 if same["a", 1].index else 2), ("c", 5): Answer(1, 1.0)}
    comparison = compare_answers(ROWS, other, output)
    assert not comparison.identical
    assert (comparison.equal, comparison.different) == (2, (("a", 1),))
    assert (comparison.missing, comparison.extra) == ((("a", 2),), (("c", 5),))


def test_a_confidence_that_differs_in_its_last_bit_is_no_match() -> None:
    output = Port("scores", (-1, 3), ROWS[0].scores.dtype, 0.0, 0)
    came = {(p.stream, p.seq): Answer(p.answer, float(p.scores[p.answer])) for p in ROWS}
    key = ("b", 0)
    came[key] = replace(came[key], confidence=float(np.nextafter(came[key].confidence, 2)))
    assert compare_answers(ROWS, came, output).different == (key,)


def test_scores_are_compared_bit_for_bit() -> None:
    nudged = [*ROWS[:3], replace(ROWS[3], scores=np.nextafter(ROWS[3].scores, 2))]
    assert compare_scores(ROWS, nudged).different == (("b", 0),)


def test_figures(tmp_path: Path) -> None:
    scores = score(ROWS, ["run", "walk", "sit"])
    assert (scores.windows, scores.mixed, scores.accuracy) == (3, 1, pytest.approx(2 / 3))
    assert scores.confusion == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert {stream: part.accuracy for stream, part in scores.per_subject.items()} == {"a": 0.5, "b": 1.0}
    assert [(part.label, part.windows) for part in scores.per_class] == [("run", 2), ("walk", 0), ("sit", 1)]
    assert format_confusion(scores) == (
        "           1   2   3\nrun    1   1   1   .\nwalk   2   .   .   .\nsit    3   .   .   1"
    )


def test_the_png_is_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_confusion(score(ROWS, ["run", "walk", "sit"]), tmp_path / "confusion.png", "title")
    assert (tmp_path / "confusion.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_json_holds_what_others_read(
    found: FoundModel, recordings: list[Recording], predictions: list[Prediction], tmp_path: Path
) -> None:
    way = compare_scores(predictions, predictions)
    evaluation = evaluate(found, found.entry.task, predictions, recordings, "synthetic data", {"slices": way})
    write_evaluation(evaluation, tmp_path / "deep" / "figures.json")
    content = msgspec.json.decode((tmp_path / "deep" / "figures.json").read_bytes())
    wanted = {"accuracy", "macro_f1", "per_subject", "per_class", "confusion", "windows", "mixed", "data", "real"}
    assert wanted <= set(content)
    assert content["model_sha256"] == found.sha256
    assert content["seen"] == []  # synthetic people are not those the weights were trained on
    assert content["agreement"]["slices"]["identical"] is True


def test_seen_subjects_are_named(found: FoundModel, recordings: list[Recording], predictions: list[Prediction]) -> None:
    as_real = [replace(recording, real=True) for recording in recordings]
    evaluation = evaluate(found, found.entry.task, predictions, as_real, "", {})
    assert evaluation.seen == ["subject7", "subject8"]
    assert evaluation.split.test == ["subject7", "subject8"]
    unlisted = evaluate(replace(found, entry=None), found.entry.task, predictions, as_real, "", {})
    assert (unlisted.trained_on, unlisted.seen, unlisted.split) == (None, [], None)
    assert unlisted.model == found.path.name and unlisted.accuracy == evaluation.accuracy
