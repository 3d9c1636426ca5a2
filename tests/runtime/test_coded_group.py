"""A group with a parity shard: any one shard may be missing or late, at any time, and no window waits for it.

tests/runtime/test_window_machine.py has random faults of all kinds for such a group, too.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.status import NodeStatus, State, encode_status
from har_edge.runtime.stage.loop import Takers
from tests.runtime.coded_pipeline import make_coded_group
from tests.runtime.faulty_pipeline import Pipeline, expected_scores
from tests.runtime.rig import TOPICS, Clock

GROUP = make_coded_group(0, 2, 4, 5)
SHARDS = 4  # three shares and their parity; the last stage answers
FEW = settings(max_examples=40, deadline=None)


def make_pipeline(**options: object) -> Pipeline:
    made: dict[str, object] = {"capacity": 64} | options
    return Pipeline(slices=GROUP, tracked=True, live=False, batch=1, receive_max=1024, stage_options=made)


def check_answers(pipeline: Pipeline, count: int) -> None:
    """Assert that each window was answered once, with the bits of the whole model, and none was given up."""
    results = [one for watcher in pipeline.watchers for one in watcher.results]
    assert sorted((one.stream, one.seq) for one in results) == [("p", seq) for seq in range(count)]
    for one in results:
        scores = expected_scores(one.stream, one.seq, ())
        assert one.confidence == max(scores) and one.label_id == (1 if scores[0] >= scores[1] else 4)
    assert pipeline.early == []
    for process in pipeline.stages:
        counters = process.stage.counters
        assert (counters.given_up, counters.rejected, counters.too_large) == (0, 0, 0)


@FEW
@given(bad=st.integers(0, SHARDS - 1), at=st.integers(0, 7), messages=st.integers(0, 5), deployed=st.booleans())
def test_a_shard_that_is_killed_holds_up_nothing_and_costs_nothing(
    bad: int, at: int, messages: int, deployed: bool
) -> None:
    pipeline = make_pipeline(deployed=deployed)
    for seq in range(8):
        pipeline.capture("p")
        if seq == at:
            pipeline.step(0.0)
            pipeline.stages[bad].step(messages)
            pipeline.stages[bad].crash()
        for _ in range(3):
            pipeline.step(0.01)
        assert len(pipeline.watchers[0].results) == seq + 1, "a window waited for the shard"
    check_answers(pipeline, 8)
    assert not any(one.stage.waiting for one in pipeline.stages if one.up), "the others wait for the shard"
    decoded = [one.stage.counters.decoded for k, one in enumerate(pipeline.stages) if k != bad]
    assert all(count >= 7 - at for count in decoded) if bad < SHARDS - 1 else not any(decoded)
    pipeline.settle(300.0)  # it comes back, and works off what the broker kept for it
    assert not pipeline.is_busy
    check_answers(pipeline, 8)


@FEW
@given(
    bad=st.integers(0, SHARDS - 1),
    turns=st.lists(st.integers(0, 4), min_size=30, max_size=30),
    capacity=st.sampled_from([2, 64]),
    deployed=st.booleans(),
)
def test_a_shard_that_is_late_holds_up_nothing_and_its_share_is_dropped(
    bad: int, turns: list[int], capacity: int, deployed: bool
) -> None:
    pipeline = make_pipeline(deployed=deployed)
    late = pipeline.stages[bad]
    work, pipeline.stages[bad].step = late.step, lambda most=0: None  # type: ignore[method-assign]
    for seq, most in enumerate(turns):
        pipeline.capture("p")
        for _ in range(3):
            pipeline.step(0.01)
        assert len(pipeline.watchers[0].results) == seq + 1, "a window waited for the shard"
        work(most)  # so many messages and steps while the others run three rounds
    late.step = work  # type: ignore[method-assign]
    pipeline.settle(300.0)
    assert not pipeline.is_busy
    check_answers(pipeline, len(turns))


@pytest.mark.parametrize("bad", range(SHARDS))
def test_a_shard_that_is_late_leaves_out_what_the_others_can_do_without(bad: int) -> None:
    pipeline = make_pipeline()
    late = pipeline.stages[bad]
    work, pipeline.stages[bad].step = late.step, lambda most=0: None  # type: ignore[method-assign]
    for _ in range(6):
        pipeline.capture("p")
        for _ in range(3):
            pipeline.step(0.01)
    first, second = (next(level for level in levels if level.startswith(str(bad))) for levels in GROUP.coded)
    work()
    sent = [pipeline.broker.flows.get((bad, ("p", seq)), set()) for seq in range(6)]
    assert all(first not in levels for levels in sent), "it computed a share that all others had decoded"
    assert all(second in levels for levels in sent), "only the stage that answers can know that it needs no more"
    counters = late.stage.counters
    assert late.stage.reads_first and not any(one.stage.reads_first for one in pipeline.stages if one is not late)
    assert late.stage.waiting == 0 and counters.windows == 6 and counters.decoded == (6 if bad < SHARDS - 1 else 0)
    pipeline.step(0.1)
    assert pipeline.stages[-1].stage.counters.late == 6
    late.step = work  # type: ignore[method-assign]
    pipeline.stages.remove(late)
    pipeline.stages.insert(0, late)  # the first to compute
    pipeline.capture("p")
    for _ in range(3):
        pipeline.step(0.1)
    assert not late.stage.reads_first, "it is in time again"
    check_answers(pipeline, 7)


def test_two_missing_shards_are_waited_for_and_nothing_is_lost() -> None:
    pipeline = make_pipeline()
    for bad in (0, 3):
        pipeline.stages[bad].crash()
    for _ in range(3):
        pipeline.capture("p")
    for _ in range(5):
        pipeline.step(0.1)
    assert pipeline.watchers[0].results == []
    pipeline.stages[3].start()
    for _ in range(5):
        pipeline.step(0.1)
    check_answers(pipeline, 3)


def test_windows_of_a_stream_that_begins_anew_are_not_late() -> None:
    pipeline = make_pipeline()
    pipeline.stages[1].crash()
    pipeline.capture("p")
    for _ in range(3):
        pipeline.step(0.1)
    assert len(pipeline.watchers[0].results) == 1
    pipeline.count["p"] = 0
    for source in ("chest", "arm"):
        pipeline.kill_sensor(source)
    pipeline.clock.now += 100.0
    pipeline.stages[1].start()
    pipeline.capture("p")
    for _ in range(5):
        pipeline.step(0.1)
    first, second = pipeline.watchers[0].results
    assert (first.seq, second.seq) == (0, 0) and second.captured > first.captured


def test_a_shard_begins_without_one_that_a_parity_stands_for_and_waits_for_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, clock = MemoryBroker(), Clock(100.0)
    monkeypatch.setattr("har_edge.runtime.stage.loop.time.monotonic", clock)
    nodes, spared = [f"stage-{k}" for k in range(1, 5)], [f"stage-{k}" for k in range(4)]
    takers = Takers(broker.connect(Session("look")), nodes, TOPICS, spared)
    bus = broker.connect(Session("nodes"))

    def ready(name: str) -> None:
        status = NodeStatus(node=name, role="stage", state=State.READY, instance="i", started=1.0)
        bus.publish(TOPICS.status(name), encode_status(status), retain=True)
        bus.poll(0.0)

    for name in ("stage-1", "stage-2"):
        ready(name)
    clock.now += 10.0
    assert not takers.look(0.0), "the last stage has no parity, and two are missing"
    ready("stage-4")
    assert takers.look(0.0)
    early = Takers(broker.connect(Session("early")), nodes, TOPICS, spared)
    assert not early.look(0.0)
    clock.now += 1.0
    assert not early.look(0.0), "it may be about to start"
    ready("stage-3")
    assert early.look(0.0)
    other = Takers(broker.connect(Session("other")), [*nodes, "stage-5"], TOPICS, spared)
    clock.now += 100.0
    assert not other.look(0.0), "no parity stands for stage 5"
