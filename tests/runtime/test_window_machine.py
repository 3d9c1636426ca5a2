"""Random schedules of faults through sensors, stages and sink: what is promised of each window holds after each step.

- The sink passes each window on once, with the scores of the whole model.
- Nothing is acknowledged before what follows from it is safe, or a sensor still has it.
- A window that was sent is answered, or its sensors count it as lost or incomplete; without a fault that costs memory,
  none is lost.
- What is remembered stays within its bounds.
"""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from har_edge.runtime.sensor import retransmit_buffer
from har_edge.runtime.sensor.retransmit_buffer import SentState
from har_edge.runtime.sink import MOST_RUNS, REMEMBERED
from har_edge.runtime.stage import join, receive_limit, stage, streams
from tests.runtime.coded_pipeline import make_coded_group
from tests.runtime.faulty_pipeline import (
    CHAIN,
    SHARDS,
    SOURCES,
    Group,
    Pipeline,
    Slice,
    StageProcess,
    expected_scores,
    make_group,
)

SETTLE_S = 1500.0  # longer than the longest life of a window (faulty_pipeline.GIVE_UP_S)
FAST = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
# `make test` draws some of these schedules, .ci/run (which sets CI) four times as many.
LONG = settings(FAST, max_examples=200 if os.environ.get("CI") else 50, stateful_step_count=60)


class Machine(RuleBasedStateMachine):
    """The faults that no window may be lost by; each kind of pipeline adds its own."""

    tracked, live = True, False
    slices: ClassVar[list[Slice] | Group] = SHARDS
    capacities: ClassVar[list[int]] = [4, 64]
    receive_most: ClassVar[list[int]] = [8, 1024]
    options: ClassVar[dict[str, Any]] = {}
    drops, kills, gaps = True, False, False  # which faults there are
    loses_nothing = True
    starved_s = receive_limit.STARVED_S

    @initialize(batch=st.sampled_from([1, 3]), capacity=st.integers(0, 1), receive_max=st.integers(0, 1))
    def begin(self, batch: int, capacity: int, receive_max: int) -> None:
        self.pipeline = Pipeline(
            slices=self.slices,
            tracked=self.tracked,
            live=self.live,
            batch=batch,
            receive_max=self.receive_most[receive_max],
            stage_options={"capacity": self.capacities[capacity]} | self.options,
        )

    def process(self, number: int) -> StageProcess:
        return self.pipeline.stages[number % len(self.pipeline.stages)]

    @rule(stream=st.sampled_from(Pipeline.streams), count=st.integers(1, 4), seconds=st.sampled_from([0.0, 0.1, 1.0]))
    def capture(self, stream: str, count: int, seconds: float) -> None:
        for _ in range(count):
            self.pipeline.capture(stream)
        self.pipeline.step(seconds)

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.5]))
    def wait(self, seconds: float) -> None:
        self.pipeline.step(seconds)

    @rule(source=st.sampled_from(SOURCES))
    def cut_sensor(self, source: str) -> None:
        self.pipeline.sensors[source].bus.cut()

    @rule(index=st.integers(0, 3))
    def cut_stage(self, index: int) -> None:
        if self.process(index).up:
            self.process(index).bus.cut()

    @rule(index=st.integers(0, 3), messages=st.integers(0, 3))
    def crash_stage(self, index: int, messages: int) -> None:
        """Crash after so many messages more, whose outputs may not have left."""
        process = self.process(index)
        process.step(messages)
        process.crash()

    @rule(index=st.integers(0, 3))
    def start_stage(self, index: int) -> None:
        self.process(index).crash()
        self.process(index).start()

    @rule()
    def restart_watcher(self) -> None:
        self.pipeline.restart_watcher()

    @rule()
    def restart_broker(self) -> None:
        self.pipeline.restart_broker(forget=False)

    @rule(order=st.permutations(Pipeline.streams))
    def reorder_streams(self, order: list[str]) -> None:
        self.pipeline.order = order

    @rule(count=st.integers(1, 5))
    def double(self, count: int) -> None:
        self.pipeline.broker.doubles += count

    @precondition(lambda self: self.drops)
    @rule(count=st.integers(1, 5))
    def drop(self, count: int) -> None:
        self.pipeline.broker.drops += count

    @precondition(lambda self: self.gaps)
    @rule(stream=st.sampled_from(Pipeline.streams), source=st.sampled_from(SOURCES))
    def capture_without(self, stream: str, source: str) -> None:
        self.pipeline.capture(stream, [one for one in SOURCES if one != source])

    @precondition(lambda self: self.kills)
    @rule(source=st.sampled_from(SOURCES))
    def kill_sensor(self, source: str) -> None:
        self.pipeline.kill_sensor(source)

    @precondition(lambda self: self.kills)
    @rule()
    def lose_memory_of_broker(self) -> None:
        self.pipeline.restart_broker(forget=True)

    @invariant()
    def each_window_comes_once_with_the_bits_of_the_whole(self) -> None:
        for watcher in self.pipeline.watchers:
            keys = [(one.stream, one.seq) for one in watcher.results]
            assert len(keys) == len(set(keys)), "a window came twice"
            for one in watcher.results:
                scores = expected_scores(one.stream, one.seq, one.missing)
                assert one.confidence == max(scores), "other bits than those of the whole model"
                assert one.label_id == (1 if scores[0] >= scores[1] else 4)
                there = [source for source in SOURCES if source not in one.missing]
                assert one.captured == max(self.pipeline.captured[one.stream, one.seq, source] for source in there)

    @invariant()
    def nothing_is_acknowledged_early(self) -> None:
        assert self.pipeline.early == []

    @invariant()
    def what_a_sensor_counts_adds_up(self) -> None:
        if not self.tracked:
            return
        for sensor in self.pipeline.sensors.values():
            counts = sensor.flow.streams().values()
            sent = sum(one.sent for one in counts)
            over = sum((one.answered or 0) + one.lost + one.incomplete for one in counts)
            assert sent == len(sensor.sent) == over + sensor.flow.open
            told = list(sensor.not_awaited.values())
            assert sum(one.lost for one in counts) == told.count(SentState.LOST)
            assert sum(one.incomplete for one in counts) == told.count(SentState.INCOMPLETE)

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        for process in self.pipeline.stages:
            one = process.stage
            assert len(one._join) <= one._setup.join_capacity and one._join._nbytes <= join.HELD_BYTES
            assert (one._join._nbytes == 0) or len(one._join), "bytes are counted of windows that do not wait"
            assert len(one._join._run) <= join.REMEMBERED + 1 and len(one._join.streams) <= streams.MOST_STREAMS
            assert one._replay._bytes <= stage.REPLAY_BYTES and one._cache._bytes <= stage.OUTPUT_BYTES
        for sensor in self.pipeline.sensors.values():
            buffer = sensor.buffer
            assert len(buffer._closed) <= retransmit_buffer.MOST_CLOSED
            assert len(buffer._answered) <= retransmit_buffer.MOST_RECENT
            assert len(buffer._streams) <= retransmit_buffer.MOST_STREAMS
            assert {id(one) for one in buffer._batch_of.values()} == {id(one) for one in buffer._batches}
        for watcher in self.pipeline.watchers:
            assert len(watcher.sink._answers) <= REMEMBERED
            assert all(len(one.captured) <= MOST_RUNS for one in watcher.sink._answers.values())

    def teardown(self) -> None:
        """Heal everything; then no window is under way, and each is answered or counted."""
        if not hasattr(self, "pipeline"):
            return
        pipeline = self.pipeline
        pipeline.settle(SETTLE_S)
        self.check_invariants_now()
        assert not pipeline.is_busy, "something is under way for ever"
        answered = {(one.stream, one.seq) for watcher in pipeline.watchers for one in watcher.results}
        for source, sensor in pipeline.sensors.items():
            missing = sensor.sent - answered
            if self.tracked:
                assert missing <= sensor.not_awaited.keys(), f"{source} calls windows answered that never came"
            assert not (self.loses_nothing and missing - pipeline.partly - pipeline.orphans), "a window was lost"
            if self.loses_nothing and self.tracked:
                assert sensor.not_awaited.keys() <= pipeline.partly | pipeline.orphans

    def check_invariants_now(self) -> None:
        self.each_window_comes_once_with_the_bits_of_the_whole()
        self.nothing_is_acknowledged_early()
        self.what_a_sensor_counts_adds_up()
        self.what_is_remembered_is_bounded()


class Acknowledged(Machine):
    """Sensors that listen to no results: acknowledgement alone must carry each window to the sink.

    That holds where the bounds are wide: beyond them, or where the broker seems to hold back, a stage acknowledges what
    only its memory has.
    """

    tracked, drops = False, False
    starved_s = math.inf
    options: ClassVar[dict[str, Any]] = {"timeout_s": 1000.0}  # longer than the faults of a schedule last
    capacities: ClassVar[list[int]] = [512, 1024]
    receive_most: ClassVar[list[int]] = [1024, 4096]


class Retransmitted(Machine):
    """Recordings over a broker that drops with success: each window is answered in the end."""


class Deployed(Machine):
    """The same, with stages of a plan, that put parts aside sooner."""

    options: ClassVar[dict[str, Any]] = {"deployed": True}


class Devices(Machine):
    """Devices that lose power, miss windows, and a broker that forgets: what is not answered is counted."""

    live, kills, gaps, loses_nothing = True, True, True, False
    options: ClassVar[dict[str, Any]] = {"deployed": True}


class DevicesWithGaps(Machine):
    """Devices with gaps, and nothing that costs memory: only windows that one of them has not are left out."""

    live, gaps = True, True


class MissingSources(Machine):
    """Stages that run without a source that does not come, over a broker that drops nothing.

    Without shards: a stage that dies may run a window again with other sources, and shards of both runs would meet.
    """

    gaps, drops = True, False
    slices: ClassVar[list[Slice] | Group] = CHAIN
    options: ClassVar[dict[str, Any]] = {"carry_on_after_s": 1.0}


class ShardsAcknowledged(Acknowledged):
    """A group of shards that run steps and exchange rows, between two slices."""

    slices: ClassVar[list[Slice] | Group] = make_group(sources=False)


class ShardsRetransmitted(Machine):
    """A group of shards that take the sources themselves.

    The broker gives more than STARVED_LEAST messages: this test handles them in another order than that in which they
    came, so one that is handled before all windows that wait may be behind one of them.
    """

    receive_most: ClassVar[list[int]] = [10, 1024]
    slices: ClassVar[list[Slice] | Group] = make_group(sources=True)


class ShardsDeployed(Deployed):
    """The same, with stages of a plan."""

    receive_most: ClassVar[list[int]] = [10, 1024]
    slices: ClassVar[list[Slice] | Group] = make_group(sources=True)


class ShardsOfDevices(Devices):
    """Shards, and faults that cost memory."""

    receive_most: ClassVar[list[int]] = [10, 1024]
    slices: ClassVar[list[Slice] | Group] = make_group(sources=False)


class ParityAcknowledged(Acknowledged):
    """A group with a parity shard: any one share may be missing."""

    slices: ClassVar[list[Slice] | Group] = make_coded_group(0, 2, 5)


class ParityRetransmitted(ShardsRetransmitted):
    """The same, over a broker that drops with success."""

    slices: ClassVar[list[Slice] | Group] = make_coded_group(0, 2, 5)


class ParityDeployed(ShardsDeployed):
    """The same, with stages of a plan."""

    slices: ClassVar[list[Slice] | Group] = make_coded_group(0, 2, 5)


class ParityOfDevices(ShardsOfDevices):
    """The same, and faults that cost memory."""

    slices: ClassVar[list[Slice] | Group] = make_coded_group(0, 2, 5)


KINDS = [
    Acknowledged,
    Retransmitted,
    Deployed,
    Devices,
    DevicesWithGaps,
    MissingSources,
    ShardsAcknowledged,
    ShardsRetransmitted,
    ShardsDeployed,
    ShardsOfDevices,
    ParityAcknowledged,
    ParityRetransmitted,
    ParityDeployed,
    ParityOfDevices,
]


def run(kind: type[Machine], profile: settings) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receive_limit, "STARVED_S", kind.starved_s)
        run_state_machine_as_test(kind, settings=profile)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_promised_of_each_window_holds_whatever_happens(kind: type[Machine]) -> None:
    run(kind, FAST)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_promised_of_each_window_holds_in_long_schedules(kind: type[Machine]) -> None:
    run(kind, LONG)
