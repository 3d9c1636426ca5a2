"""Carrying on without a source: each window once, with what came; what comes later is late, and all is settled."""

from __future__ import annotations

import dataclasses
import re

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_edge.config.catalog import find_model
from har_edge.config.pipeline_config import MissingRule
from har_edge.errors import ModelError
from har_edge.evaluation.prediction import Classifier
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol import wire
from har_edge.protocol.wire import Message
from har_edge.runtime.build import build_sensor, topics_of
from har_edge.runtime.stage import loop
from har_edge.runtime.stage.join import REMEMBERED, Join, MissingSourceFallback
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.stage.window import WindowState
from har_edge.runtime.stop import Stop
from har_edge.timing import OVERTAKEN_S, REPLAY_BUFFER_S
from tests.runtime.rig import LENGTH, TOPICS, Clock, Node, Watcher, part, result_of, samples, small_stage, windows_of
from tests.runtime.test_loop import ScriptedBus, identity
from tests.runtime.test_whole import die_unaware

SOURCES = frozenset({"a", "b", "c"})
AFTER_S, TIMEOUT_S = 1.0, 30.0


def message(seq=0, stream="s", captured=1.0):
    return Message(stream, seq, 1, (captured,), {})


def delivery(token, *, duplicate=False):
    return Delivery("t", b"", (1, token), duplicate=duplicate)


def join_of(*activations, capacity=100, after_s=AFTER_S, timeout_s=TIMEOUT_S):
    fallback = MissingSourceFallback(SOURCES, after_s)
    return Join(SOURCES | set(activations), timeout_s=timeout_s, capacity=capacity, fallback=fallback)


class JoinHistory:
    """A join and a clock; notes what becomes of each window and each delivery."""

    def __init__(self, join):
        self.join, self.now, self.tokens = join, 0.0, 0
        self.done, self.late, self.stale, self.given_up = {}, [], [], []
        self.settled, self.sent_again = [], 0

    def come(self, name, seq, *, stream="s", captured=1.0, duplicate=False):
        self.tokens += 1
        came, told = message(seq, stream, captured), delivery(self.tokens, duplicate=duplicate)
        if self.join.repeats(came, [name], told):
            self.sent_again += 1
            self.settled.append(told)
        elif self.join.is_late(came, [name]):
            self.late.append((stream, seq, name))
            self.settled.append(told)
        elif (gathered := self.join.add(came, {name: np.zeros(1)}, told, self.now)) is not None:
            self.note(gathered)
        self.tick()

    def tick(self, seconds=0.0):
        self.now += seconds
        for gathered in self.join.expire_missing(self.now):
            self.note(gathered)
        for gathered in self.join.evict(self.now):
            ends = self.stale if gathered.state is WindowState.STALE else self.given_up
            ends.append((gathered.message.stream, gathered.message.seq))
            self.settled += gathered.deliveries

    def note(self, gathered):
        self.settled += gathered.deliveries
        if gathered.state is WindowState.STALE:
            self.stale.append((gathered.message.stream, gathered.message.seq))
            return
        key = (gathered.message.stream, gathered.message.seq)
        self.done.setdefault(key, []).append((set(gathered.parts), self.now - gathered.came))


events = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.sampled_from("abcx"), st.sampled_from([0.0, 0.0, 0.3, 2.0])),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(events=events, capacity=st.sampled_from([2, 100]), activation=st.booleans())
def test_whatever_comes_in_whatever_order_each_window_is_done_once(events, capacity, activation):
    """`events` come (stream, seq, part, seconds until then), some again, some never."""
    history, came = JoinHistory(join_of(*"x" * activation, capacity=capacity)), {}
    for stream, seq, name, seconds in events:
        if name == "x" and not activation:
            continue
        history.tick(seconds)
        done = history.done.get((stream, seq))
        before = (len(history.late), history.sent_again)
        history.come(name, seq, stream=stream)
        if done is not None:  # it is over: the part was in it, or is late
            parts = done[0][0]
            assert (len(history.late), history.sent_again) == (
                before[0] + (name not in parts),
                before[1] + (name in parts),
            )
        came.setdefault((stream, seq), set()).add(name)
    history.tick(TIMEOUT_S)
    history.tick(TIMEOUT_S)
    wanted = SOURCES | set("x" * activation)
    for key, names in came.items():
        ends = history.done.get(key, []) + [None] * history.given_up.count(key)
        if not activation:
            assert len(ends) == 1 and key in history.done
        assert len(history.done.get(key, [])) <= 1 and ends
        for parts, waited_s in history.done.get(key, []):
            assert wanted - parts <= SOURCES and parts <= names, "an activation is never invented"
            assert parts == wanted or waited_s >= AFTER_S or capacity == 2
    assert sorted(one.token for one in history.settled) == [(1, token + 1) for token in range(history.tokens)]
    assert len(history.join) == 0 and not history.stale


def test_a_window_waits_for_its_sources_as_long_as_it_is_told_to():
    history = JoinHistory(join_of())
    history.come("a", 0)
    history.tick(0.5)
    history.come("a", 1)
    history.tick(0.49)
    assert history.done == {}
    history.tick(0.01)
    assert list(history.done) == [("s", 0)] and history.done["s", 0] == [({"a"}, 1.0)]
    history.come("b", 1)
    history.come("c", 1)
    assert history.done["s", 1] == [({"a", "b", "c"}, 0.5)]
    history.come("b", 0)
    assert history.late == [("s", 0, "b")]


def test_an_activation_is_waited_for_and_then_the_sources_are_not():
    history = JoinHistory(join_of("x"))
    history.come("a", 0)
    history.come("b", 1)
    history.tick(20.0)
    assert history.done == {}
    history.come("x", 0)
    assert history.done["s", 0] == [({"a", "x"}, 20.0)], "the time since its first part has passed"
    history.tick(10.0)
    assert history.given_up == [("s", 1)]


def test_an_activation_alone_carries_on_for_it_was_made_from_some_source():
    history = JoinHistory(join_of("x"))
    history.come("x", 0)
    history.tick(AFTER_S)
    assert history.done["s", 0] == [({"x"}, AFTER_S)]


def test_when_too_many_wait_the_oldest_goes_on_early_and_nothing_is_given_up():
    history = JoinHistory(join_of(capacity=3))
    for seq in range(5):
        history.come("a", seq)
    assert list(history.done) == [("s", 0), ("s", 1)] and len(history.join) == 3 and not history.given_up


def test_windows_behind_complete_ones_carry_on_in_time_and_are_not_given_up_as_leftovers():
    history = JoinHistory(join_of(after_s=8.0))
    history.come("a", 0, duplicate=True)
    history.tick(0.1)
    for name in "abc":
        history.come(name, 1)
    for _ in range(80):
        assert ("s", 0) not in history.done
        history.tick(0.1)
    assert ("s", 0) in history.done and not history.given_up


def test_a_stream_that_begins_anew_is_answered_anew_also_without_the_source_that_was_missing():
    history = JoinHistory(join_of())
    for seq in range(5):
        for name in "ab":
            history.come(name, seq)
        history.tick(AFTER_S)
    assert len(history.done) == 5
    history.tick(60.0)
    for seq in range(3):  # every part comes at once: the second and third window need not wait like the first
        for name in "ab":
            history.come(name, seq, captured=99.0)
    history.tick(AFTER_S)
    assert all(len(times) == 1 for times in history.done.values())
    history.tick(OVERTAKEN_S - AFTER_S)
    history.tick()
    assert [len(history.done["s", seq]) for seq in range(5)] == [2, 2, 2, 1, 1]
    history.come("c", 3, captured=99.0)  # before the others: its stream has begun anew, so it is not late
    history.come("a", 3, captured=99.0)
    history.come("b", 3, captured=99.0)
    assert history.done["s", 3][-1][0] == SOURCES and not history.late and not history.stale


def test_a_short_run_of_a_stream_is_followed_by_a_longer_one_without_a_source():
    """The first windows of the new run were done in the old one, the others never."""
    history = JoinHistory(join_of())
    for seq in range(3):
        for name in "abc":
            history.come(name, seq)
    for seq in range(40):
        for name in "ab":
            history.come(name, seq, captured=9.0)
        history.tick(0.25)
    history.tick(OVERTAKEN_S)
    assert [len(history.done["s", seq]) for seq in range(40)] == [2] * 3 + [1] * 37
    assert not history.stale and not history.late and not history.given_up


@pytest.mark.parametrize("others", ["ab", "xy"])
def test_a_sensor_that_begins_anew_alone_does_not_answer_windows_again(others):
    """The others may be sources or activations."""
    wanted = frozenset({"c", *others})
    history = JoinHistory(
        Join(wanted, timeout_s=TIMEOUT_S, capacity=100, fallback=MissingSourceFallback(SOURCES, AFTER_S))
    )
    for seq in range(4):
        for name in (*others, "c"):
            history.come(name, seq)
    for seq in range(4, 20):  # c has gone, and comes back with the numbers from 0
        for name in others:
            history.come(name, seq)
        if seq >= 10:
            history.come("c", seq - 10, captured=50.0)
        history.tick(2.5)
    history.tick(OVERTAKEN_S)
    assert all(len(times) == 1 for times in history.done.values()) and len(history.done) == 20
    assert sorted(history.stale) == [("s", seq) for seq in range(4)]
    assert history.late == [("s", seq, "c") for seq in range(4, 10)] and not history.given_up


def test_windows_older_than_memory_count_as_done():
    history = JoinHistory(join_of())
    for seq in range(REMEMBERED + 50):
        for name in "abc":
            history.come(name, seq)
    history.come("c", 3, captured=50.0)
    history.tick(0.1)
    history.come("a", REMEMBERED + 50)
    history.tick(OVERTAKEN_S)
    assert history.stale == [("s", 3)] and len(history.done["s", 3]) == 1


# --- a stage --------------------------------------------------------------------------------------------------------


def zeros(source):
    return np.zeros_like(samples(source))


@pytest.mark.parametrize(("dtype", "fill"), [("float32", 0.0), ("int8", 3)])
def test_a_missing_source_enters_as_real_zero_and_the_result_says_so(dtype, fill, caplog):
    clock, seen = Clock(), []

    def run(values):
        seen.append(values)
        return {"scores": np.array([[0.25, 0.75]] * len(values["c"]), np.float32)}

    stage = small_stage(run=run, dtype=dtype, clock=clock, carry_on_after_s=1.0)
    chest = part("chest", 0, captured=[1.0, 2.0])
    assert stage.handle(chest) == []
    clock.now = 0.9
    assert stage.tick() == []
    clock.now = 1.0
    (outgoing,) = stage.tick()
    assert [one.missing for one in result_of([outgoing])] == [["arm"], ["arm"]] and outgoing.acks == (chest,)
    assert seen[0]["a"].shape == (2, LENGTH, 3) and seen[0]["a"].dtype == dtype and (seen[0]["a"] == fill).all()
    late = part("arm", 0, captured=[1.0, 2.0])
    (released,) = stage.handle(late)
    assert (released.topic, released.acks) == ("", (late,)) and stage.waiting == 0
    counters = stage.counters
    assert (counters.windows, counters.carried_on, counters.late) == (2, 2, 2)
    assert (counters.given_up, counters.rejected, counters.duplicates) == (0, 0, 0)
    assert "window 0 of s: carrying on without arm" in caplog.text


def test_it_is_logged_when_a_source_goes_and_when_it_is_back(caplog):
    clock = Clock()
    stage = small_stage(clock=clock, carry_on_after_s=1.0)
    for seq in range(6):
        stage.handle(part("chest", seq))
        if seq == 4:
            stage.handle(part("arm", seq))
        clock.now += 1.0
        stage.tick()
    told = re.findall(r"window \d of s: [a-z ]+", caplog.text)
    assert told == [
        "window 0 of s: carrying on without arm",
        "window 4 of s: all sources are there again",
        "window 5 of s: carrying on without arm",
    ]


def test_activations_carry_what_is_missing_on_and_the_last_stage_joins_it():
    clock = Clock()
    stage = small_stage(sends=("both",), clock=clock, carry_on_after_s=1.0)
    stage.handle(part("chest", 2))
    clock.now = 1.0
    result, activation = stage.tick()
    made = wire.decode(activation.payload)
    assert activation.payload[:2] == b"\x98\x02" and made.missing == ("arm",)
    expected = np.concatenate([samples("chest", 2), zeros("arm")], axis=2)
    assert made.tensors["both"].tobytes() == expected.tobytes() and result_of([result])[0].missing == ["arm"]

    run = lambda values: {"scores": values["x"][:, :2] + values["y"][:, :2]}  # noqa: E731
    last = small_stage(run=run, earlier={0: ("x",), 1: ("y",)})
    value = np.ones((1, 5), np.float32)
    for maker, name, missing in ((0, "x", ("chest",)), (1, "y", ("arm",))):
        payload = wire.encode(Message("s", 3, 1, (5.0,), {name: value}, missing=missing))
        outgoing = last.handle(Delivery(TOPICS.activation(1, maker, "s"), payload, (1, maker)))
    assert [one.missing for one in result_of(outgoing)] == [["arm", "chest"]]


@pytest.mark.parametrize(
    ("topic", "missing", "text"),
    [
        (
            TOPICS.window("s", "chest"),
            ("arm",),
            "a message of kind window came that misses arm; expected only activati",
        ),
        (
            TOPICS.activation(1, 0, "s"),
            ("leg",),
            "a message of kind act came that misses leg; expected .* of chest, arm",
        ),
    ],
)
def test_what_cannot_miss_that_is_dropped(topic, missing, text, caplog):
    run = lambda values: {"scores": values["x"][:, :2]}  # noqa: E731
    is_window = "/window/" in topic
    stage = small_stage() if is_window else small_stage(run=run, earlier={0: ("x",)})
    tensors = {"chest": samples("chest")} if is_window else {"x": np.ones((1, 5), np.float32)}
    came = Delivery(topic, wire.encode(Message("s", 0, 1, (5.0,), tensors, missing=missing)), (1, 1))
    (released,) = stage.handle(came)
    assert released.acks == (came,) and stage.counters.rejected == 1 and re.search(text, caplog.text)


def test_an_input_that_cannot_be_filled_is_refused_at_start():
    stage = small_stage(carry_on_after_s=1.0)
    ports = {source: dataclasses.replace(port, shape=(-1, -1, 3)) for source, port in stage._setup.ports.items()}
    with pytest.raises(ModelError, match=r"expected \[windows, ...\] with fixed sizes"):
        Stage(dataclasses.replace(stage._setup, ports=ports), clock=Clock(), monotonic=Clock())


def test_what_has_come_but_waits_to_be_handled_does_not_count_as_missing():
    """A slow stage with a backlog: chest and arm came together, but are handled far apart."""
    clock = Clock()
    stage = small_stage(clock=clock, carry_on_after_s=1.0)
    stage.handle(part("chest", 0), came=0.0)
    clock.now = 50.0
    assert stage.tick(until=0.1) == []
    (outgoing,) = stage.handle(part("arm", 0), came=0.1)
    assert [one.missing for one in result_of([outgoing])] == [[]]


def test_a_slow_stage_with_a_backlog_leaves_no_source_out(monkeypatch):
    """Each run takes a second, and what came at once is handled for longer than a window may wait."""
    clock = Clock(100.0)
    monkeypatch.setattr(loop.time, "monotonic", clock)

    def slow(values):
        clock.now += 1.0
        return {"scores": values["c"].sum(axis=2)[:, :2]}

    came = [part(source, seq) for source in ("chest", "arm") for seq in range(20)]
    bus = ScriptedBus(came, clock=clock)
    stage, stop = small_stage(run=slow, clock=clock, carry_on_after_s=1.0), Stop()
    bus.quiet = lambda: setattr(stop, "asked", stage.counters.windows >= 20)
    loop.run_stage(bus, stage, identity(), stop)
    assert (stage.counters.windows, stage.counters.carried_on, stage.counters.late) == (20, 0, 0)


# --- whole pipelines over the memory bus ------------------------------------------------------------------------------


class World:
    """Stages with a clock of the test, and a watcher; every message of every sensor, to be sent or lost."""

    def __init__(self, pipeline, count):
        join = msgspec.structs.replace(pipeline.config.join, missing=MissingRule.CARRY_ON)
        self.pipeline = dataclasses.replace(pipeline, config=msgspec.structs.replace(pipeline.config, join=join))
        self.broker, self.clock = MemoryBroker(), Clock(1000.0)
        self.watcher = Watcher(self.broker, topics_of(self.pipeline))
        self.nodes = [
            Node(self.broker, self.pipeline, index, clock=self.clock) for index in range(len(pipeline.manifest.slices))
        ]
        self.windows = {(window.stream, window.seq): window for window in windows_of(pipeline, "left", count)}
        self.bus = self.broker.connect(Session("sensors"))
        self.messages = {
            (key, source): outgoing
            for skew, source in enumerate(pipeline.task.inputs)
            for key, window in self.windows.items()
            for outgoing in build_sensor(self.pipeline, [source]).handle(
                [window], [990.0 + window.seq / 10 + skew / 100]
            )
        }

    def send(self, key, source):
        outgoing = self.messages[key, source]
        self.bus.publish(outgoing.topic, outgoing.payload)
        self.bus.poll(0)

    def settle(self, seconds=0.0):
        """Let time pass, and step everything until nothing moves any more."""
        self.clock.now += seconds
        moved = [True]
        while any(moved):
            moved = [node.step() for node in self.nodes]
        self.watcher.step()

    def expected(self, key, missing):
        """Return the answer of the whole model, through the code that evaluation uses."""
        found, task = find_model("int8"), self.pipeline.task
        whole = Interpreter(found.path)
        output = next(port for port in whole.outputs if port.name == task.output)
        prediction = Classifier(whole.run, whole.inputs, task).predict(self.windows[key], frozenset(missing))
        return task.label_ids[prediction.answer], float(output.real(prediction.scores).max())

    def counted(self, name):
        return sum(getattr(node.stage.counters, name) for node in self.nodes)


@pytest.mark.parametrize("cuts", [(9,), (4, 9), (8, 12)])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_lost_or_late_each_window_is_answered_once_as_the_whole_model_would_without_it(cut, cuts, data):
    """Sources that enter one stage decide together; with the cuts 4 and 9, arm enters the second stage."""
    world = World(cut("int8", *cuts), count=4)
    sent = data.draw(st.lists(st.sampled_from(sorted(world.messages)), unique=True))
    late = set()
    for key, source in sent:
        late |= {(key, source)} if key in world.watcher.results else set()
        world.send(key, source)
        world.settle(data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.5])))
    for _ in range(4):  # each stage on the way may wait
        world.settle(1.0)
    results = {key: result.missing for key, result in world.watcher.results.items()}
    answered = {(key, source) for key, missing in results.items() for source in {"chest", "ankle", "arm"} - {*missing}}
    lost = {(key, source) for key, source in sent if key not in results}
    # A part that waited for a stage before it, in vain, is given up; the window may be answered without it after that.
    silent = len(sent) - len(answered) - len(lost) - world.counted("late")
    assert answered <= set(sent) and 0 <= silent <= world.counted("given_up")
    starts = [world.pipeline.wiring(index).sources for index in range(len(world.nodes))]
    for key in {key for key, source in sent if source in starts[0]}:
        assert key in results, "the first stage had a source of it"
    for key, missing in results.items():
        assert missing == sorted(missing)
        result = world.watcher.results[key]
        assert (result.label_id, result.confidence) == world.expected(key, missing)
    assert not {key for key, source in answered & late}, "what came after the answer is not in it"
    world.settle(TIMEOUT_S + OVERTAKEN_S)
    assert all(not node.bus._account.unacknowledged and node.stage.waiting == 0 for node in world.nodes)
    assert world.watcher.sink.counters.duplicates == 0 and world.counted("rejected") == 0


def test_a_stage_none_of_whose_sources_comes_is_not_started_and_its_takers_give_up(cut):
    world = World(cut("int8", 4, 9), count=3)
    for key in world.windows:
        world.send(key, "arm")
    world.settle(1.0)
    assert not world.watcher.results and world.nodes[1].stage.waiting == 3
    world.settle(TIMEOUT_S)
    assert world.counted("shelved") == 3 and not world.nodes[1].bus._account.unacknowledged
    world.settle(REPLAY_BUFFER_S + 1.0)
    assert world.counted("given_up") == 3 and world.counted("carried_on") == 0
    assert not world.nodes[1].bus._account.unacknowledged


def test_windows_of_a_source_that_has_gone_wait_beside_each_other(cut, caplog):
    """A window every 0.1 s: as many are answered as without a loss, 1 s later, and acknowledgements keep pace."""
    world, unacknowledged = World(cut("int8", 9), count=60), []
    for number, key in enumerate(world.windows):
        for source in ("chest", "ankle") if number < 40 else ("chest", "ankle", "arm"):
            world.send(key, source)
        world.settle(0.1)
        unacknowledged.append(len(world.nodes[0].bus._account.unacknowledged))
        if number >= 10:
            assert len(world.watcher.results) >= number - 10
    assert max(unacknowledged) <= 3 * 11 and unacknowledged[-1] == 0
    missing = [world.watcher.results[key].missing for key in world.windows]
    assert missing == [["arm"]] * 40 + [[]] * 20
    assert (world.counted("carried_on"), world.counted("late"), world.counted("given_up")) == (40, 0, 0)
    assert [line.split(": ")[1] for line in caplog.messages] == [
        "carrying on without arm",
        "all sources are there again",
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_stage_that_dies_while_sources_are_missing_loses_nothing_and_nobody_sees_a_window_twice(cut, data):
    """A stage may answer again, with what came meanwhile: the sink tells by the time of capture."""
    world = World(cut("int8", 4, 9), count=4)
    sent = data.draw(st.lists(st.sampled_from(sorted(world.messages)), unique=True, min_size=6))
    for key, source in sent:
        world.send(key, source)
        world.clock.now += data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.5]))
        node, steps = data.draw(st.sampled_from(world.nodes)), data.draw(st.integers(0, 3))
        for _ in range(steps):
            node.step()
        match data.draw(st.sampled_from(["lives", "dies", "dies unaware"])):
            case "dies":
                node.crash()
            case "dies unaware":
                die_unaware(node)
        world.watcher.step()
    for _ in range(80):
        world.settle(0.5)
    assert {key for key, source in sent if source != "arm"} <= set(world.watcher.results)
    assert all(not node.bus._account.unacknowledged for node in world.nodes)
