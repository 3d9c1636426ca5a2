"""Sensors send shards the rows that they take, and shards take whole windows of others as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.config.catalog import find_model
from har_edge.config.source_pieces import SourcePiece, find_pieces, piece_of
from har_edge.data.recording import Window
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.runtime.build import build_sensor, build_stage, source_ids, topics_of
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.shard import ShardStage
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorRegion, TensorSpec
from tests.runtime.rig import TOPICS

SPLIT = "rows:0-3@2 rows:3-6@2 rows:6-11@3,2 whole:11-17@2"


def region(start: int, stop: int, axis: int = 1) -> TensorRegion:
    return TensorRegion("x", axis, start, stop)


@pytest.mark.parametrize(
    ("shape", "place", "samples"),
    [
        ((1, 250, 3), region(10, 20), (10, 20)),
        ((1, 250, 1, 3), region(10, 20), (10, 20)),
        ((1, 10, 25, 3), region(2, 4), (50, 100)),
        ((1, 10, 25, 3), region(2, 4, axis=2), None),
        ((1, 3, 250), region(1, 2), None),
        ((1, 750), region(1, 2), None),
        ((1, 10, 24, 3), region(2, 4), None),
        ((1, 250, 3), None, None),
        ((1, 250, 3), region(200, 251), None),
    ],
)
def test_rows_of_an_input_are_consecutive_samples(
    shape: tuple[int, ...], place: TensorRegion | None, samples: tuple[int, int] | None
) -> None:
    piece = piece_of("chest", place, shape, 250, 3)
    assert (None if piece is None else (piece.start, piece.stop)) == samples
    assert piece is None or place is None or piece.level == f"chest-{place.start}-{place.stop}"


def test_a_source_that_one_slice_takes_whole_is_sent_whole() -> None:
    rows = TensorSpec("x[1:0:5]", (1, 5, 3), "float32", region=region(0, 5))
    entries = [SliceEntry("f", "0" * 64, 0, 1, (rows,), ())]
    assert find_pieces(SliceManifest(3, "m", "", tuple(entries)), "chest", "x", (1, 10, 3), 10, 3) == (
        SourcePiece("chest", "chest-0-5", 0, 5),
    )
    entries.append(SliceEntry("f", "0" * 64, 0, 1, (TensorSpec("x", (1, 10, 3), "float32"),), ()))
    assert find_pieces(SliceManifest(3, "m", "", tuple(entries)), "chest", "x", (1, 10, 3), 10, 3) == ()


def test_a_sensor_sends_pieces_on_topics_of_their_own_and_other_sources_whole() -> None:
    reducers = {"chest": make_reducer("none", 4, 2), "arm": make_reducer("none", 4, 3)}
    pieces = {"chest": (SourcePiece("chest", "chest-0-3", 0, 3), SourcePiece("chest", "chest-1-4", 1, 4))}
    samples = {"chest": np.arange(8, dtype=np.float32).reshape(4, 2), "arm": np.ones((4, 3), np.float32)}
    for combine in (False, True):  # a message with what is left of all sources would be of no use to who takes pieces
        sensor = Sensor(SensorSetup(TOPICS, 1, reducers, frozenset(), combine, pieces=pieces))
        sent = {one.topic: wire.decode(one.payload) for one in sensor.handle([Window("p", 0, 0, samples, None)], [5.0])}
        assert list(sent) == [TOPICS.window("p", level) for level in ("chest-0-3", "chest-1-4", "arm")]
        first, second, other = sent.values()
        assert (first.tensors["chest"] == samples["chest"][None, :3]).all()
        assert (second.tensors["chest"] == samples["chest"][None, 1:]).all() and list(other.tensors) == ["arm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_model("int8")
    assert found.entry is not None
    where = tmp_path_factory.mktemp("shards") / "slices"
    prepare(found.path, found.entry.task, where, stages=1, split=SPLIT)
    return where


def test_a_shard_makes_the_same_of_pieces_and_of_whole_windows(folder: Path) -> None:
    from har_edge.config.pipeline import load_pipeline

    pipeline = load_pipeline(folder)
    sensor = build_sensor(pipeline, list(pipeline.task.inputs))
    rng, task = np.random.default_rng(0), pipeline.task
    window = Window(
        "p",
        0,
        0,
        {
            source: rng.normal(0, 6, (task.stream.length, pipeline.channels(source))).astype(np.float32)
            for source in task.inputs
        },
        None,
    )
    pieces = sensor.handle([window], [5.0])
    assert len(pieces) == 6 and all(one.topic.rsplit("-", 2)[1].isdecimal() for one in pieces)
    codes = {source: reducer.encode(window.samples[source])[None] for source, reducer in sensor.setup.reducers.items()}
    message = wire.Message("p", 0, pipeline.config.epoch, (5.0,), codes)
    whole = wire.encode(message, pipeline.manifest.wire, source_ids(pipeline))
    sent = [(one.topic, one.payload) for one in pieces]
    for index in range(2):
        given = []
        for messages in (sent, [(topics_of(pipeline).window("p", "all"), whole)]):
            stage = build_stage(pipeline, index)
            heard = {one.replace("+", "p") for one in stage.filters}
            came = [Delivery(topic, payload, (1, at)) for at, (topic, payload) in enumerate(messages) if topic in heard]
            assert came and not [one for delivery in came for one in stage.handle(delivery)] and stage.ready
            assert isinstance(stage, ShardStage) and not stage.complaint
            taken = stage._join.find(("p", 0, 1)) or stage._whole[0]
            given.append({name: part.tobytes() for name, part in taken.parts.items()})
        assert given[0] == given[1] and len(given[0]) == 3


def test_a_piece_of_another_size_is_dropped_and_counted(folder: Path) -> None:
    from har_edge.config.pipeline import load_pipeline

    pipeline = load_pipeline(folder)
    stage = build_stage(pipeline, 0)
    level = next(iter(stage._inputs.pieces))
    source = level.split("-")[0]
    message = wire.Message("p", 0, pipeline.config.epoch, (5.0,), {source: np.zeros((1, 7, 5), np.int8)})
    payload = wire.encode(message, pipeline.manifest.wire, source_ids(pipeline))
    bad = Delivery(topics_of(pipeline).window("p", level), payload, (1, 1))
    (released,) = stage.handle(bad)
    assert (released.topic, released.acks) == ("", (bad,)) and stage.counters.rejected == 1
    assert f"[1, 7, 5] came for 1 windows on the topic of {level}; expected codes of '{source}' [1, " in stage.complaint


def test_a_shard_that_takes_sources_runs_no_window_without_them(folder: Path) -> None:
    import dataclasses

    import msgspec

    from har_edge.config.pipeline import load_pipeline
    from har_edge.config.pipeline_config import JoinConfig, MissingRule
    from har_edge.errors import ConfigError

    pipeline = load_pipeline(folder)
    config = msgspec.structs.replace(pipeline.config, join=JoinConfig(missing=MissingRule.CARRY_ON))
    with pytest.raises(ConfigError, match="stage 0 is a shard that takes chest, ankle, arm; shards of one group could"):
        build_stage(dataclasses.replace(pipeline, config=config), 0)
