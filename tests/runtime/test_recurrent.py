"""A model that remembers: refused, or set back before every window, so that streams and repetitions do not mix."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from har_edge.config.pipeline import load_pipeline
from har_edge.config.pipeline_writer import write_pipeline
from har_edge.config.task import SourceInput, StateRule, StreamTask, Task
from har_edge.errors import ConfigError
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.runtime.build import build_stage, topics_of
from har_edge.runtime.slicing import prepare
from har_edge.tflite.folder import write_folder
from har_edge.tflite.model import read_model
from har_edge.tflite.slices import slice_model
from tests.protocol.reading import read_results
from tests.tflite import models

LENGTH, CHANNELS = 4, 5
TASK = Task(
    stream=StreamTask("mhealth", 50.0, LENGTH, 2),
    inputs={"chest": SourceInput("c")},
    output="scores",
    labels=["standing still", "walking"],
    label_ids=[1, 4],
)
RESET = msgspec.structs.replace(TASK, state=StateRule.RESET)
MODEL = models.recurrent_classifier(LENGTH, CHANNELS)
WINDOWS = np.random.default_rng(3).normal(0, 1, (6, 1, LENGTH, CHANNELS)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    return path


def alone(window):
    """Return the scores of a window that nothing came before."""
    return Interpreter(MODEL).run({"c": window})["scores"]


def test_the_model_of_these_tests_remembers():
    model = Interpreter(MODEL)
    first, second = (model.run({"c": WINDOWS[0]})["scores"] for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_stage_refuses_a_slice_that_remembers(tmp_path):
    model = read_model(MODEL)
    write_folder(model, slice_model(model, [1]), tmp_path)
    write_pipeline(tmp_path, TASK)
    pipeline = load_pipeline(tmp_path)
    text = (
        r"slice .*slice-0\.tflite keeps state from one run to the next .* a window that comes twice would count twice; "
        r'.*state = "reset" under \[task\] in the pipeline file.*; else convert the model so that'
    )
    with pytest.raises(ConfigError, match=text):
        build_stage(pipeline, 0)
    build_stage(pipeline, 1)  # the second one remembers nothing


def test_a_local_pipeline_is_refused_before_anything_is_written(path, tmp_path):
    with pytest.raises(ConfigError, match=r"model .*model\.tflite keeps state from one run to the next"):
        prepare(path, TASK, tmp_path / "slices", stages=2, cuts=[1])
    assert not (tmp_path / "slices").exists()


def test_two_streams_and_repetitions_do_not_mix(path, tmp_path):
    pipeline = prepare(path, RESET, tmp_path / "slices", stages=2, cuts=[1])
    stages, topics = [build_stage(pipeline, index) for index in range(2)], topics_of(pipeline)
    epoch = pipeline.config.epoch
    order = [("a", 0), ("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 1), ("a", 2), ("b", 0)]
    for number, (stream, seq) in enumerate(order):
        window = WINDOWS[seq + 3 * (stream == "b")]
        payload = wire.encode(wire.Message(stream, seq, epoch, (1.0 + number,), {"chest": window}))
        delivery = Delivery(topics.window(stream, "chest"), payload, (0, number))
        for stage in stages:
            (made,) = stage.handle(delivery)
            delivery = Delivery(made.topic, made.payload, (0, number))
        (result,) = read_results(delivery)
        scores = alone(window)[0]
        assert (result.stream, result.seq, result.confidence) == (stream, seq, float(scores.max()))
        assert result.label == TASK.labels[scores.argmax()]


def test_variables_that_cannot_be_set_back_are_refused(tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(models.initialised())
    with pytest.raises(ConfigError, match="assigns variables that no runtime can set back"):
        prepare(model, RESET, tmp_path / "slices", stages=1, cuts=[])
