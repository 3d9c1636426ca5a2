"""A stage that runs a shard: two shards of rows, which send each other their border rows."""

import dataclasses

import numpy as np
import pytest

from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol import wire
from har_edge.runtime.stage.loop import StageLoop
from har_edge.runtime.stage.replay_buffer import MOST_BEGUN
from har_edge.runtime.stage.shard import ShardStage
from har_edge.runtime.stage.stage import RECENT_S
from har_edge.runtime.stop import Stop
from tests.runtime.faulty_pipeline import make_group, make_stage, rows, samples_of
from tests.runtime.rig import TOPICS, Clock

GROUP = make_group(sources=True)


def shard(clock=None, **options):
    made = make_stage(GROUP, 0, clock or Clock(), **options)
    assert isinstance(made, ShardStage)
    return made


_tokens = iter(range(1, 10**6))


def delivery(topic, tensors, seq=0, captured=5.0, duplicate=False):
    payload = wire.encode(wire.Message("p", seq, 1, (captured,), tensors))
    return Delivery(topic, payload, (1, next(_tokens)), duplicate=duplicate)


def window(source, seq=0, **options):
    return delivery(TOPICS.window("p", source), {source: samples_of("p", seq, source)[None]}, seq, **options)


def halo(seq=0, **options):
    both = np.concatenate([samples_of("p", seq, one) for one in ("chest", "arm")], axis=1)[None]
    return delivery(TOPICS.activation(1, "1-1", "p"), {"h[1:2:3]": 2 * both[:, 2:3]}, seq, **options)


def run(stage):
    """Run all steps that are ready; return what each gave."""
    made = []
    while stage.ready:
        made.append(stage.step())
    return made


def test_a_border_row_leaves_before_the_next_step_and_its_deliveries_wait_for_the_last_one():
    stage = shard()
    assert set(stage.filters) == {
        *(TOPICS.window("+", source) for source in ("chest", "arm", "all")),
        TOPICS.activation(1, "1-1", "+"),
    }
    chest, arm, border = window("chest"), window("arm"), halo()
    assert stage.handle(chest) == [] and not stage.ready
    assert stage.handle(arm) == [] and stage.ready
    (first,) = stage.step()
    assert first.topic == TOPICS.activation(1, "0-1", "p") and first.partial and first.needs_subscriber
    assert first.acks == (chest, arm) and list(wire.decode(first.payload).tensors) == ["h[1:1:2]"]
    assert stage.ready and stage.step() == [] and not stage.ready and stage.waiting == 1
    assert stage.handle(border) == [] and stage.ready
    (last,) = stage.step()
    assert last.topic == TOPICS.activation(1, "0", "p") and not last.partial and last.acks == (chest, arm, border)
    expected = np.concatenate([samples_of("p", 0, one)[:2] for one in ("chest", "arm")], axis=1)[None]
    assert wire.decode(last.payload).tensors["g[1:0:2]"].tobytes() == expected.tobytes()
    assert stage.counters.windows == 1 and stage.waiting == 0 and not stage.ready


def test_a_border_row_may_come_first_and_the_oldest_window_goes_first():
    stage = shard(Clock(1.0))
    for seq, came in ((1, 1.0), (0, 2.0)):
        for one in (halo(seq), window("arm", seq), window("chest", seq)):
            assert stage.handle(one, came) == []
    made = run(stage)
    seqs = [wire.decode(one.payload).seq for step in made for one in step]
    assert seqs == [1, 1, 0, 0] and stage.counters.windows == 2


def test_a_piece_of_a_wrong_shape_or_of_another_plan_is_dropped_and_counted(caplog):
    stage = shard()
    wrong = delivery(TOPICS.activation(1, "1-1", "p"), {"h[1:2:3]": np.zeros((1, 2, 5), np.float32)})
    (released,) = stage.handle(wrong)
    assert (released.topic, released.acks) == ("", (wrong,)) and stage.counters.rejected == 1
    assert "'h[1:2:3]' came as float32 [1, 2, 5] for 1 windows; expected float32 [-1, 1, 5]" in stage.complaint
    payload = wire.encode(wire.Message("p", 0, 2, (5.0,), {"h[1:2:3]": np.zeros((1, 1, 5), np.float32)}))
    (released,) = stage.handle(Delivery(TOPICS.activation(2, "1-1", "p"), payload, (1, 999_999)))
    assert released.topic == "" and stage.counters.rejected == 2 and "epoch 2 came; expected 1" in stage.complaint
    stage.handle(window("chest"))
    stage.handle(window("arm"))
    stage.handle(halo())
    assert len(run(stage)) == 3 and stage.counters.windows == 1


def test_what_was_computed_of_a_window_stays_when_it_is_put_aside():
    clock = Clock()
    stage = shard(clock, deployed=True)
    chest, arm = window("chest"), window("arm")
    stage.handle(chest)
    stage.handle(arm)
    stage.step()
    clock.now = 3.5
    (released,) = stage.tick()
    assert (released.topic, released.acks) == ("", (chest, arm)) and not released.partial
    assert stage.counters.shelved == 1 and not stage.ready
    late = halo()
    stage.handle(late)
    (made,) = [one for step in run(stage) for one in step]
    assert made.topic == TOPICS.activation(1, "0", "p") and made.acks == (late,) and stage.counters.windows == 1


def test_a_window_that_was_put_aside_is_computed_again_when_its_sensor_sends_it_again():
    clock = Clock()
    stage = shard(clock, deployed=True)
    for one in (window("chest"), window("arm")):
        stage.handle(one)
    (border,) = stage.step()
    clock.now = 3.5
    stage.tick()
    again = window("chest"), window("arm"), halo()
    for one in again:
        stage.handle(one)
    made = [one for step in run(stage) for one in step]
    assert [one.topic for one in made] == [border.topic, TOPICS.activation(1, "0", "p")]
    assert made[0].payload == border.payload and made[1].acks == again and stage.counters.windows == 1


def test_only_the_windows_put_aside_last_keep_what_was_computed_of_them():
    clock = Clock()
    stage = shard(clock, deployed=True)
    for seq in range(MOST_BEGUN + 1):
        stage.handle(window("chest", seq))
        stage.handle(window("arm", seq))
        stage.step()
    clock.now = 3.5
    stage.tick()
    kept = [one.window.progress is not None for one in stage._replay._shelved.values()]
    assert kept == [False] + MOST_BEGUN * [True]
    for seq in range(MOST_BEGUN + 1):
        stage.handle(halo(seq))
    made = [one for step in run(stage) for one in step]
    assert len(made) == MOST_BEGUN + 2 and stage.counters.windows == MOST_BEGUN + 1


def test_a_window_that_is_put_aside_before_its_border_was_computed_sends_that_first():
    stage = shard(capacity=1)
    chest, arm = window("chest"), window("arm")
    stage.handle(chest)
    stage.handle(arm)
    border, released = stage.handle(window("chest", 1))
    assert border.topic == TOPICS.activation(1, "0-1", "p") and border.partial and border.acks == (chest, arm)
    assert (released.topic, released.acks) == ("", (chest, arm)) and not released.partial


def answered(clock):
    stage = shard(clock)
    for one in (window("chest"), window("arm"), halo()):
        stage.handle(one)
    return stage, [one for step in run(stage) for one in step]


def test_what_comes_again_soon_is_dropped_and_later_a_source_makes_the_shard_send_again_but_no_other_shard():
    clock = Clock()
    stage, made = answered(clock)
    again = halo()
    assert [(one.topic, one.acks) for one in stage.handle(again)] == [("", (again,))]
    clock.now = RECENT_S + 1.0
    row = halo()
    (released,) = stage.handle(row)  # nor does it wait: it would hold up what came after it
    assert (released.topic, released.acks) == ("", (row,)) and stage.waiting == 0
    source = window("arm")
    sent = stage.handle(source)
    assert [(one.topic, one.payload) for one in sent] == [(one.topic, one.payload) for one in made]
    assert all(one.acks == (source,) and not one.partial for one in sent) and not stage.ready


def test_what_comes_again_of_a_window_that_is_being_run_is_acknowledged_with_it():
    stage = shard()
    first = (window("chest"), window("arm"), halo())
    for one in first:
        stage.handle(one)
    twice = window("arm", duplicate=True)
    (nothing,) = stage.handle(twice)
    assert (nothing.topic, nothing.acks) == ("", ())
    assert run(stage)[-1][-1].acks == (*first, twice) and stage.counters.duplicates == 1


def test_a_window_that_an_operator_refuses_is_dropped_and_counted_once():
    def refuse(values):
        from har_edge.errors import MessageError

        raise MessageError("the model refuses these values")

    stage = shard()
    stage._program.steps = tuple(dataclasses.replace(step, run=refuse) for step in stage._program.steps)
    chest, arm = window("chest"), window("arm")
    stage.handle(chest)
    stage.handle(arm)
    (dropped,) = stage.step()
    assert (dropped.topic, dropped.acks) == ("", (chest, arm))
    assert stage.counters.rejected == 1 and stage.waiting == 0 and not stage.ready


def test_parts_of_another_run_of_the_only_source_never_go_together(monkeypatch):
    stage = shard()
    stage._one_source = True  # as of a model with one source: all parts have its time of capture
    stage.handle(window("chest", captured=5.0))
    stage.handle(window("arm", captured=6.0))  # a new run: what came of the old one is forgotten
    assert not stage.ready and list(stage._join.find(("p", 0, 1)).parts) == ["a"]
    old = halo(captured=5.0)
    (released,) = stage.handle(old)
    assert (released.topic, released.acks) == ("", (old,)) and stage.counters.duplicates == 1
    stage.handle(window("chest", captured=6.0))
    assert stage.ready and rows("h", 2, 3, 5).name not in stage._join.find(("p", 0, 1)).parts


@pytest.mark.parametrize("steps", [1, 2])
def test_a_shard_with_much_to_run_takes_no_more(monkeypatch, steps):
    monkeypatch.setattr("har_edge.runtime.stage.shard.FULL_BYTES", 100)
    stage = shard()
    for one in (window("chest"), window("arm"), halo()):
        stage.handle(one)
    for _ in range(steps):
        assert stage.full and stage.ready
        stage.step()
    run(stage)
    assert not stage.full


def test_the_loop_puts_a_border_row_on_its_way_before_the_next_step_is_computed():
    broker = MemoryBroker()
    peer, bus = broker.connect(Session("peer")), broker.connect(Session("stage"))
    peer.subscribe([TOPICS.activation(1, "0-1", "+")])
    stage, heard = shard(), []

    def watching(number, run):
        def watched(values):
            heard.append((number, len(peer.poll(0.0))))
            return run(values)

        return watched

    stage._program.steps = tuple(
        dataclasses.replace(step, run=watching(number, step.run)) for number, step in enumerate(stage._program.steps)
    )
    loop = StageLoop(bus, stage, Stop())
    sensor = broker.connect(Session("sensor"))
    for one in (window("chest"), window("arm")):
        sensor.publish(one.topic, one.payload)
    sensor.poll(0.0)
    for _ in range(3):
        loop.turn()
    assert heard == [(0, 0), (1, 1)], "the border row left before step 1, and its deliveries are still unacknowledged"
    assert len(bus._account.unacknowledged) == 2
