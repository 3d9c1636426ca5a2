"""Ranges of tensors: measured where the samples are, merged by the server, of no use when forged."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from har_edge.inference.interpreter import Interpreter
from har_edge.learning.data.input_layout import layout_of
from har_edge.learning.lenet import INPUT, write_lenet5
from har_edge.learning.preparation import prepare_model
from har_edge.learning.quantization.tensor_ranges import (
    PATIENCE_S,
    SAMPLES,
    RangeCollection,
    RangeMeter,
    TensorRanges,
    write_range_graph,
)
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.training import encode_training
from har_edge.protocol.training_results import RangeReport
from har_edge.tflite.model import read_model
from tests.learning.training_rig import TOPICS, make_job

MODEL = read_model(bytes(write_lenet5(4, shape=(8, 8))))
GRAPH = write_range_graph(MODEL)
JOB = make_job((5,))


class Samples:
    """Pictures of one worker, in one block."""

    def __init__(self, count: int, seed: int) -> None:
        self.x = np.random.default_rng(seed).normal(size=(count, 8, 8, 1)).astype(np.float32)

    def samples(self, block: int) -> int:
        return len(self.x)

    def missing(self, block: int) -> bool:
        return False

    def values(self, block: int, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.x[indices]


def delivered(message: Outgoing) -> Delivery:
    return Delivery(message.topic, message.payload, (0, 1))


def measured(count: int, seed: int, content: bytes = GRAPH.content, name: str = "a") -> tuple[Outgoing, Samples]:
    source = Samples(count, seed)
    layout = layout_of(prepare_model(MODEL, 4).spec)
    meter = RangeMeter(JOB, name, TOPICS, source, layout, lambda file: content)
    (request,) = RangeCollection(TOPICS, JOB, GRAPH, {name: (0,)}, 0.0).tick(0.0)
    assert meter.handle(delivered(request)) == []
    answers: list[Outgoing] = []
    while meter.busy:
        answers += meter.step()
    (answer,) = answers
    again = meter.handle(delivered(request))  # asked again, it need not measure again
    assert again == ([answer] if content is GRAPH.content else [])
    return answer, source


def test_ranges_over_workers_are_those_of_all_their_samples() -> None:
    collection = RangeCollection(TOPICS, JOB, GRAPH, {"a": (0,), "b": (0,), "c": (0,)}, 0.0)
    sources = []
    for name, count in (("a", 40), ("b", 3)):
        answer, source = measured(count, count, name=name)
        sources.append(source.x)
        collection.handle(delivered(answer))
    assert collection.awaited == ["c"] and not collection.ended(1.0) and collection.ended(PATIENCE_S)
    ranges = collection.merged()
    assert ranges is not None and (ranges.workers, ranges.samples) == (("a", "b"), 43)
    x = np.concatenate(sources)
    whole = Interpreter(GRAPH.content)
    found = [x, *whole.run({INPUT: x}).values()]
    np.testing.assert_allclose(ranges.lows, [values.min() for values in found], atol=1e-6)
    np.testing.assert_allclose(ranges.highs, [values.max() for values in found], atol=1e-6)
    assert GRAPH.names[0] == INPUT and "scores" in GRAPH.names and len(set(GRAPH.names)) == len(GRAPH.names)


def test_a_worker_takes_no_more_samples_than_it_is_asked_for() -> None:
    answer, _ = measured(SAMPLES + 100, 1)
    event = decode(answer, TOPICS)
    assert isinstance(event, TrainingEvent) and isinstance(event.message, RangeReport)
    assert event.message.samples == SAMPLES


REPORT = RangeReport(
    run="r",
    author="one",
    worker="a",
    sha256=GRAPH.file.sha256,
    samples=5,
    lows=np.zeros(len(GRAPH.names), "<f4").tobytes(),
    highs=np.ones(len(GRAPH.names), "<f4").tobytes(),
)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"lows": b"\0" * 4}, f"ranges of 1 and {len(GRAPH.names)} tensors came; expected {len(GRAPH.names)}"),
        ({"highs": np.full(len(GRAPH.names), np.nan, "<f4").tobytes()}, "no finite numbers"),
        ({"lows": np.full(len(GRAPH.names), 2, "<f4").tobytes()}, "least value is above the largest"),
        ({"samples": 0}, "ranges of no sample came"),
        ({"problem": "no room"}, "no room"),
    ],
)
def test_ranges_of_no_use_are_named_with_their_worker(more: dict[str, object], text: str) -> None:
    collection = RangeCollection(TOPICS, JOB, GRAPH, {"a": (0,)}, 0.0)
    message = structs.replace(REPORT, **more)
    collection.handle(Delivery(TOPICS.training("r", "ranges", "a"), encode_training(message), (0, 1)))
    assert text in collection.problems["a"] and collection.merged() is None and collection.ended(0.0)


@pytest.mark.parametrize("more", [{"author": "other"}, {"sha256": "0" * 64}])
def test_ranges_for_another_server_or_file_are_passed_over(more: dict[str, object]) -> None:
    collection = RangeCollection(TOPICS, JOB, GRAPH, {"a": (0,)}, 0.0)
    message = structs.replace(REPORT, **more)
    collection.handle(Delivery(TOPICS.training("r", "ranges", "a"), encode_training(message), (0, 1)))
    assert collection.awaited == ["a"]


def test_a_file_with_other_tensors_is_told() -> None:
    answer, _ = measured(3, 0, content=bytes(MODEL.data))
    event = decode(answer, TOPICS)
    assert isinstance(event, TrainingEvent) and isinstance(event.message, RangeReport)
    assert "came for ranges of" in event.message.problem


def test_statistics_have_a_value_for_each_tensor_with_its_axes() -> None:
    from har_edge.learning.quantization.int8_model import statistics

    lows = np.arange(len(GRAPH.names), dtype=np.float32)
    found = statistics(TensorRanges(GRAPH, lows, lows + 1, ("a",), 5))
    assert (found[INPUT]["min"].shape, found[INPUT]["max"].item()) == ((1, 1, 1, 1), 1.0)
    assert found["scores"]["min"].shape == (1, 1)
