"""A whole pipeline over the memory broker: the answers of the whole model, whatever crashes in between."""

import random
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_edge.config.catalog import find_model
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.runtime.build import build_sensor, reducer_of, topics_of
from har_edge.runtime.sender import Sender
from tests.runtime.rig import Node, Watcher, windows_of

# Cuts with one crossing tensor, with several, and with sources that enter in later slices.
CUTS = {"int8": [(4, 10), (3, 6, 9), (8, 12, 13, 16)], "float": [(3,), (5, 7, 12)]}
STREAMS = ("left", "right")


def expected(pipeline, model, windows):
    """Return label id and confidence of each window by the uncut model."""
    whole = Interpreter(find_model(model).path)
    ports = {port.name: port for port in whole.inputs}
    (output,) = (port for port in whole.outputs if port.name == pipeline.task.output)
    answers = {}
    for window in windows:
        values = {}
        for source, enters in pipeline.task.inputs.items():
            reducer, port = reducer_of(pipeline, source), ports[enters.tensor]
            feed = make_input_adapter(source, reducer, port, pipeline.task.stream.length, pipeline.channels(source))
            values[enters.tensor] = feed(reducer.encode(window.samples[source])[None])
        scores = whole.run(values)[output.name].reshape(-1)
        top = float(scores.max()) if output.scale == 0 else (float(scores.max()) - output.zero_point) * output.scale
        answers[window.stream, window.seq] = (pipeline.task.label_ids[int(np.argmax(scores))], top)
    return answers


class World:
    """Stages, a sink, and sensors that send as fast as they are stepped."""

    def __init__(self, pipeline, *, combine=False, batch=1, count=8, receive_max=1024):
        self.broker, self.pipeline = MemoryBroker(), pipeline
        self.watcher = Watcher(self.broker, topics_of(pipeline))
        stages = range(len(pipeline.manifest.slices))
        self.nodes = [Node(self.broker, pipeline, index, receive_max) for index in stages]
        self.windows = [window for stream in STREAMS for window in windows_of(pipeline, stream, count)]
        sources = list(pipeline.task.inputs)
        self.messages, self.senders = [], []
        for group in [sources] if combine else [[source] for source in sources]:
            sensor = build_sensor(pipeline, group, combine=combine)
            for start in range(0, len(self.windows), batch):
                chosen = self.windows[start : start + batch]
                captured = [float(window.seq) for window in chosen]
                self.messages.append(sensor.handle(chosen, captured))
            bus = self.broker.connect(Session(f"sensor-{group[0]}"))
            self.senders.append((bus, Sender(bus, sensor.counters, "start the stages")))

    def send_some(self, number):
        """Publish the next messages, as the sensors would, each source on its own."""
        bus, sender = self.senders[0]
        for outgoing in [out for group in self.messages[:number] for out in group]:
            sender.send(outgoing)
        del self.messages[:number]
        bus.poll(0)
        sender.retry(float("inf"))

    def run_dry(self):
        """Step everything until nothing moves any more."""
        for _ in range(10_000):
            self.send_some(4)
            moved = [node.step() for node in self.nodes]
            self.watcher.step()
            if not any(moved) and not self.messages and self.senders[0][1].pending == 0:
                return
        raise AssertionError("the pipeline never comes to rest")


@pytest.mark.parametrize(("model", "cuts"), [(model, cuts) for model in CUTS for cuts in CUTS[model]])
@pytest.mark.parametrize(("combine", "batch"), [(False, 1), (True, 1), (False, 4), (True, 8)])
def test_stages_answer_as_the_whole_model_does(cut, model, cuts, combine, batch):
    pipeline = cut(model, *cuts)
    world = World(pipeline, combine=combine, batch=batch)
    world.run_dry()
    results = world.watcher.results
    answers = {key: (result.label_id, result.confidence) for key, result in results.items()}
    assert answers == expected(pipeline, model, world.windows)
    truth = {(window.stream, window.seq): window.label for window in world.windows}
    assert {key: result.truth for key, result in results.items()} == truth
    counters = [node.stage.counters for node in world.nodes]
    assert [(one.windows, one.rejected, one.given_up) for one in counters] == [(16, 0, 0)] * len(counters)
    assert world.watcher.sink.counters.duplicates == 0


def die_unaware(node):
    """Let the broker have what the node published, but the node dies before it knows."""
    for topic, payload, retain, _ in node.bus._unsent:
        node.broker.route(topic, payload, retain=retain)
    node.bus._unsent.clear()
    node.crash()


def die_between(node, messages):
    """Let the node take some messages of a turn, and die before it publishes what came of them."""
    left = iter(range(messages))
    before = node.stage
    node.step(lambda: next(left, None) is not None)
    if node.stage is before:
        node.crash()


def disturb(world, rng, crashes):
    """Run the world in a random order of steps; let stages die, and the broker restart, at any point."""
    while crashes:
        world.send_some(rng.randrange(6))
        node, happens = rng.choice(world.nodes), rng.randrange(12)
        for _ in range(rng.randrange(3)):
            node.step()
        if happens < 4:
            crashes -= 1
        if happens == 0:
            node.crash()
        elif happens == 1:
            die_between(node, rng.randrange(1, 12))
        elif happens == 2:
            for delivery in node.bus.poll(0):
                for outgoing in node.stage.handle(delivery):
                    node.sender.send(outgoing)
            die_unaware(node)
        elif happens == 3:
            world.broker.stop()
            world.broker.start()
        if rng.randrange(3) == 0:
            world.watcher.step()


@pytest.mark.slow
@pytest.mark.parametrize(("cuts", "combine", "receive_max"), [((3, 6, 9), False, 1024), ((10, 15), True, 3)])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_no_window_is_lost_or_doubled_whoever_dies_when(cut, cuts, combine, receive_max, seed):
    pipeline = cut("int8", *cuts)
    world = World(pipeline, combine=combine, count=6, receive_max=receive_max)
    disturb(world, random.Random(seed), crashes=10)
    world.run_dry()
    answers = {key: (result.label_id, result.confidence) for key, result in world.watcher.results.items()}
    assert answers == expected(pipeline, "int8", world.windows)
    assert sum(node.stage.counters.rejected + node.stage.counters.given_up for node in world.nodes) == 0


def test_duplicates_after_a_crash_end_at_the_sink(cut):
    world = World(cut("int8", 4, 10), count=5)
    world.send_some(1000)
    last = world.nodes[-1]
    for node in world.nodes[:-1]:
        node.step()
        node.step()
    for delivery in last.bus.poll(0):
        for outgoing in last.stage.handle(delivery):
            last.sender.send(outgoing)
    assert last.bus.unsent == 10
    die_unaware(last)
    world.run_dry()
    assert len(world.watcher.results) == 10 and world.watcher.sink.counters.duplicates == 10


def test_parts_settled_apart_do_not_hold_up_later_windows(cut):
    """Sources send one after the other, so the parts of a window are far apart in the order of acknowledgements."""
    pipeline = cut("int8", 9)
    world = World(pipeline, count=6)
    node = world.nodes[0]
    by_source = world.messages
    third = len(by_source) // 3
    arm = by_source[2 * third :]
    world.messages = by_source[: 2 * third] + arm[:3]
    world.send_some(1000)
    for _ in range(3):
        node.step()
    assert node.stage.counters.windows == 3  # their chest parts are settled; ankle and arm wait for later chest parts
    node.crash()
    world.messages = arm[3:]
    world.run_dry()
    assert len(world.watcher.results) == 12 and node.stage.waiting == 3
    deadline = time.monotonic() + 10
    while node.stage.waiting:
        assert time.monotonic() < deadline, "leftovers wait for companions that were settled"
        node.step()
    assert node.stage.counters.leftover == 3 and node.stage.counters.given_up == 0
    node.step()
    assert not node.bus._account.unacknowledged
