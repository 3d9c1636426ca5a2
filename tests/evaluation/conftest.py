"""A few synthetic people and the shipped int8 model."""

from __future__ import annotations

import pytest

from har_edge.config.catalog import FoundModel, ModelEntry, find_model
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.evaluation.prediction import Classifier, Prediction, predict_recordings
from har_edge.inference.interpreter import Interpreter


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    return synthesize(["subject7", "subject8"], seconds_per_activity=12.0)


@pytest.fixture(scope="session")
def found() -> FoundModel:
    return find_model("int8")


@pytest.fixture(scope="session")
def entry(found: FoundModel) -> ModelEntry:
    assert found.entry is not None
    return found.entry


@pytest.fixture(scope="session")
def predictions(found: FoundModel, entry: ModelEntry, recordings: list[Recording]) -> list[Prediction]:
    interpreter = Interpreter(found.path)
    classifier = Classifier(interpreter.run, interpreter.inputs, entry.task)
    return list(predict_recordings(classifier, recordings, entry.task))
