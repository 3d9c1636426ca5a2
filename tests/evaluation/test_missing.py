"""Answers without a source are those of its input at real zero."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from har_edge.config.catalog import FoundModel, ModelEntry, find_model
from har_edge.data.recording import Recording
from har_edge.data.windows import windows
from har_edge.errors import ConfigError
from har_edge.evaluation.missing import score_without_each
from har_edge.evaluation.prediction import Classifier, Prediction
from har_edge.inference.interpreter import Interpreter


@pytest.mark.parametrize("model", ["int8", "float"])
def test_a_missing_source_is_as_good_as_one_whose_sensor_measures_zero(model: str, recordings: list[Recording]) -> None:
    found = find_model(model)
    assert found.entry is not None
    interpreter, task = Interpreter(found.path), found.entry.task
    classifier = Classifier(interpreter.run, interpreter.inputs, task)
    cut = list(windows(recordings[0], 250, 125, within_activity=False))[:12]
    changed = 0
    for missing in (frozenset({"arm"}), frozenset({"chest", "ankle"})):
        for window in cut:
            zeros = {name: np.zeros_like(window.samples[name]) for name in missing}
            silent = type(window)(window.stream, window.seq, window.start, window.samples | zeros, window.label)
            came = classifier.predict(window, missing)
            assert came.scores.tobytes() == classifier.predict(silent).scores.tobytes()
            changed += came.scores.tobytes() != classifier.predict(window).scores.tobytes()
    assert changed > 12


def test_each_source_in_turn(
    found: FoundModel, entry: ModelEntry, recordings: list[Recording], predictions: list[Prediction]
) -> None:
    interpreter = Interpreter(found.path)
    classifier = Classifier(interpreter.run, interpreter.inputs, entry.task)
    rows = list(score_without_each(classifier, recordings, entry.task))
    assert [row.source for row in rows] == list(entry.task.inputs)
    pure = sum(prediction.truth is not None for prediction in predictions)
    assert [row.windows for row in rows] == [pure] * 3
    one = frozenset({rows[0].source})
    cut = [window for recording in recordings for window in windows(recording, 250, 125, within_activity=False)]
    answers = [classifier.predict(window, one) for window in cut]
    right = sum(answer.answer == answer.truth for answer in answers)
    assert rows[0].accuracy == pytest.approx(right / pure) and 0 < rows[0].macro_f1 < 1


def test_a_task_of_one_source_is_refused(found: FoundModel, entry: ModelEntry) -> None:
    interpreter = Interpreter(found.path)
    classifier = Classifier(interpreter.run, interpreter.inputs, entry.task)
    alone = msgspec.structs.replace(entry.task, inputs={"chest": entry.task.inputs["chest"]})
    with pytest.raises(ConfigError, match="the model takes chest and nothing else; expected two sources or more"):
        next(score_without_each(classifier, [], alone))
