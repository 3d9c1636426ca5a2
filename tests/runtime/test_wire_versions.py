"""Nodes whose manifests agree on wire version 1, on 3, and on different ones, for the same slices."""

from __future__ import annotations

import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.config.catalog import find_model
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.topics import Kind
from har_edge.runtime.build import build_sensor, build_stage, topics_of
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.runtime.slicing import prepare
from tests.runtime.rig import CHANNELS, LENGTH, TOPICS, Clock, result_of, small_stage, windows_of
from tests.runtime.sensor.test_sensor import window as window_of

CUTS = (4, 9)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    found = find_model("int8")
    return {
        wire: prepare(found.path, found.entry.task, tmp_path_factory.mktemp("cut"), stages=3, cuts=CUTS, wire=wire)
        for wire in (1, 3)
    }


def run_through(pipelines, sensor_wire, stage_wires):
    """Return the results of five windows, and the heads of all messages on the way."""
    results, heads = results_through(pipelines, sensor_wire, stage_wires, {})
    return {one.seq: (one.label, one.confidence) for one in results}, heads


def results_through(pipelines, sensor_wire, stage_wires, counts):
    """Do that with a sensor a source; `counts`: its run, and how many windows it sent before the first of these."""
    sensors = {source: build_sensor(pipelines[sensor_wire], [source]) for source in pipelines[1].task.inputs}
    stages = [build_stage(pipelines[wire], index) for index, wire in enumerate(stage_wires)]
    topics, heads, results, token = topics_of(pipelines[1]), [], [], 0
    for window in windows_of(pipelines[1], "s", 5):
        todo = []
        for source, sensor in sensors.items():
            run, before = counts.get(source, (None, 0))
            sent = None if run is None else (run, before + window.seq)
            todo += sensor.handle([window], [float(window.seq)], sent=sent)
        while todo:
            outgoing = todo.pop(0)
            if topics.read(outgoing.topic).kind is Kind.RESULT:
                results += result_of([outgoing])
                continue
            heads.append(bytes(outgoing.payload[:2]))
            for stage in stages:
                levels = [one.split("/") for one in stage.filters]
                if any(_matches(one, outgoing.topic.split("/")) for one in levels):
                    token += 1
                    todo += [
                        made
                        for made in stage.handle(Delivery(outgoing.topic, outgoing.payload, (1, token)))
                        if made.topic
                    ]
    assert [stage.counters.rejected for stage in stages] == [0, 0, 0]
    return results, heads


def _matches(levels, topic):
    return len(levels) == len(topic) and all(one in ("+", level) for one, level in zip(levels, topic, strict=True))


def test_the_same_slices_have_the_same_epoch(pipelines):
    assert pipelines[1].config.epoch == pipelines[3].config.epoch
    assert (pipelines[1].manifest.version, pipelines[3].manifest.version) == (1, 2)


def test_a_manifest_decides_what_is_written(pipelines):
    expected, old = run_through(pipelines, 1, (1, 1, 1))
    results, new = run_through(pipelines, 3, (3, 3, 3))
    assert results == expected and len(expected) == 5
    assert set(old) == {b"\x97\x01"} and set(new) == {b"\x98\x03"} and len(old) == len(new)


@pytest.mark.parametrize("stages", [(1, 3, 3), (3, 3, 3)])
def test_what_older_senders_write_is_read(pipelines, stages):
    """A sender that writes names beside stages that know ids: folders are replaced one device after the other."""
    assert run_through(pipelines, 1, stages)[0] == run_through(pipelines, 1, (1, 1, 1))[0]


def test_a_reader_without_ids_says_what_it_lacks(pipelines, caplog):
    """Windows of version 3 at a stage whose manifest gives no ids: new senders are started last."""
    (outgoing, *_) = build_sensor(pipelines[3], ["chest"]).handle(windows_of(pipelines[3], "s", 1), [1.0])
    stage = build_stage(pipelines[1], next(k for k in range(3) if "chest" in pipelines[1].wiring(k).sources))
    (released,) = stage.handle(Delivery(outgoing.topic, outgoing.payload, (1, 1)))
    assert not released.topic and stage.counters.rejected == 1
    assert "tensors of the ids " in caplog.text and "copy the folder of slices to all nodes" in caplog.text


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"chest": (9, 10), "ankle": (8, 3), "arm": (7, 5)}, (8, 3)),  # the ankle's sensor began last
        ({"chest": (9, 4), "ankle": (8, 4), "arm": (7, 4)}, (7, 4)),
        ({"arm": (2**64 - 1, 0)}, (2**64 - 1, 0)),
        ({}, None),
    ],
)
def test_what_was_sent_reaches_the_results(pipelines, counts, expected):
    results, _ = results_through(pipelines, 3, (3, 3, 3), counts)
    numbers = [expected and (expected[0], expected[1] + seq) for seq in range(5)]
    assert [one.sent for one in sorted(results, key=lambda one: one.seq)] == numbers
    assert {one.sent for one in results_through(pipelines, 1, (1, 1, 1), counts)[0]} == {None}


def test_each_window_of_a_batch_has_its_own_number():
    reducers = {source: make_reducer("none", LENGTH, channels) for source, channels in CHANNELS.items()}
    sensor = Sensor(SensorSetup(TOPICS, 1, reducers, frozenset(), combine=True, wire_version=3))
    (one,) = sensor.handle([window_of(seq) for seq in (4, 5, 6)], [1.0, 2.0, 3.0], sent=(7, 40))
    results = result_of(small_stage(clock=Clock()).handle(Delivery(one.topic, one.payload, (1, 1))))
    assert [(one.seq, one.sent) for one in results] == [(4, (7, 40)), (5, (7, 41)), (6, (7, 42))]
