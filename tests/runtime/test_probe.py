"""A probe: zeros of every source go through any reducer, and the answer is for nobody but whoever asked."""

import dataclasses

import msgspec
import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.topics import PROBE, is_probe
from har_edge.runtime.build import override, topics_of
from har_edge.runtime.probe import probe
from tests.protocol.reading import read_results
from tests.runtime.rig import Node, Watcher

STREAM = PROBE + "1a2b"


def answers_of(pipeline, epoch):
    """Run all stages for an epoch, probe them, and return the results and what a sink makes of them."""
    config = msgspec.structs.replace(pipeline.config, epoch=epoch)
    broker = MemoryBroker()
    nodes = [
        Node(broker, dataclasses.replace(pipeline, config=config), k) for k in range(len(pipeline.manifest.slices))
    ]
    watcher, topics = Watcher(broker, topics_of(pipeline)), topics_of(pipeline)
    results = []
    take = watcher.sink.handle
    watcher.sink.handle = lambda delivery: results.extend(read_results(delivery)) or take(delivery)
    for outgoing in probe(pipeline, epoch, STREAM, 12.5):
        assert outgoing.needs_subscriber and topics.read(outgoing.topic).levels[0] == STREAM
        nodes[0].bus.publish(outgoing.topic, outgoing.payload)
    while sum(node.step() for node in nodes):
        pass
    watcher.step()
    assert [node.stage.counters.rejected for node in nodes] == [0] * len(nodes)
    assert (watcher.results, watcher.sink.counters.windows) == ({}, 0)
    return results


@pytest.mark.parametrize("model", ["bottleneck", "int8"])
def test_every_stage_of_the_epoch_answers_a_probe_and_a_sink_ignores_it(cut, model):
    (result,) = answers_of(cut(model, 4), 77)
    assert (result.stream, result.seq, result.epoch, result.captured) == (STREAM, 0, 77, 12.5)
    assert result.missing == [] and is_probe(result.stream)


SPECS = ["none", "paa:5", "decimate:2", "sod:0.5", "door:0.5", "q8", "q16", "q8:0.1:3", "q16:0.1:3", "sod:0.5+zlib"]


@pytest.mark.parametrize("spec", [*SPECS, "none+zlib", "q8+zlib:9", "paa:5+q8+zstd"])
def test_zeros_pass_every_reducer(cut, spec):
    if "zstd" in spec:
        pytest.importorskip("zstandard")
    pipeline = cut("float", 4)
    assert len(answers_of(override(pipeline, dict.fromkeys(pipeline.task.inputs, spec)), 5)) == 1


def test_people_have_no_probes_for_names():
    assert not is_probe("subject7") and not is_probe("x" + PROBE)


def test_statistics_of_zeros_are_finite():
    reducer = make_reducer("stats", 250, 5)
    code = reducer.encode(np.zeros((250, 5), np.float32))
    assert np.isfinite(reducer.features(code)).all()
