"""Joining the parts of a window: complete or given up, bounded in time and number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from har_edge.mqtt.bus import Delivery
from har_edge.protocol.wire import Message
from har_edge.runtime.stage.join import REDELIVERED_S, REMEMBERED, Join
from har_edge.runtime.stage.window import WindowState
from har_edge.timing import OVERTAKEN_S

PARTS = ("a", "b", "c")


def message(seq=0, stream="s", captured=(1.0,), truth=None):
    return Message(stream, seq, 1, captured, {}, truth)


def delivery(token, *, duplicate=False):
    return Delivery("t", b"", (1, token), duplicate=duplicate)


def join_of(wanted=PARTS, timeout_s=10.0, capacity=100):
    return Join(frozenset(wanted), timeout_s=timeout_s, capacity=capacity)


@given(st.permutations([(part, seq) for part in PARTS for seq in range(4)]))
def test_any_order_of_parts_completes_every_window_with_its_own_deliveries(order):
    join, complete = join_of(), {}
    for token, (part, seq) in enumerate(order):
        gathered = join.add(message(seq), {part: np.array([seq])}, delivery(token), now=0.0)
        if gathered is not None:
            complete[seq] = gathered
    assert sorted(complete) == [0, 1, 2, 3] and len(join) == 0
    for seq, gathered in complete.items():
        assert {name: int(value[0]) for name, value in gathered.parts.items()} == dict.fromkeys(PARTS, seq)
        tokens = [token for token, (_, which) in enumerate(order) if which == seq]
        assert [came.token[1] for came in gathered.deliveries] == tokens


def test_waiting_is_bounded_in_time_and_oldest_goes_first():
    join = join_of(timeout_s=10.0)
    for seq, now in ((0, 0.0), (1, 4.0)):
        join.add(message(seq), {"a": np.zeros(1)}, delivery(seq), now)
    assert join.evict(9.9) == []
    (given_up,) = join.evict(10.0)
    assert given_up.message.seq == 0 and join.missing(given_up) == ["b", "c"] and given_up.state is WindowState.SHELVED
    assert [one.message.seq for one in join.evict(14.0)] == [1] and len(join) == 0


def test_waiting_is_bounded_in_number():
    join = join_of(capacity=3)
    for seq in range(5):
        join.add(message(seq), {"a": np.zeros(1)}, delivery(seq), now=0.0)
    assert [one.message.seq for one in join.evict(0.0)] == [0, 1] and len(join) == 3


def test_a_part_that_comes_again_replaces_the_earlier_one_and_is_settled_with_it():
    join = join_of(("a", "b"))
    join.add(message(), {"a": np.array([1])}, delivery(1), 0.0)
    join.add(message(), {"a": np.array([2])}, delivery(2, duplicate=True), 0.0)
    gathered = join.add(message(), {"b": np.array([3])}, delivery(3), 0.0)
    assert gathered is not None and int(gathered.parts["a"][0]) == 2
    assert [came.token[1] for came in gathered.deliveries] == [1, 2, 3]


def test_capture_is_that_of_the_last_part_and_any_known_label_stays():
    join = join_of(("a", "b"))
    join.add(message(captured=(1.0, 9.0)), {"a": np.zeros(2)}, delivery(1), 0.0)
    gathered = join.add(message(captured=(3.0, 4.0), truth=(None, 2)), {"b": np.zeros(2)}, delivery(2), 0.0)
    assert gathered is not None
    assert gathered.message.captured == (3.0, 9.0) and gathered.message.truth == (None, 2)


def test_parts_in_batches_of_another_size_never_hinder_each_other():
    join = join_of(("a", "b"))
    join.add(message(captured=(1.0, 2.0)), {"a": np.zeros(2)}, delivery(1), 0.0)
    assert join.add(message(captured=(1.0,)), {"b": np.zeros(1)}, delivery(2), 0.0) is None
    pair = join.add(message(captured=(1.0, 2.0)), {"b": np.ones(2)}, delivery(3), 0.0)
    single = join.add(message(captured=(1.0,)), {"a": np.ones(1)}, delivery(4), 0.0)
    assert pair is not None and [one.token[1] for one in pair.deliveries] == [1, 3]
    assert single is not None and [one.token[1] for one in single.deliveries] == [2, 4]
    assert len(join) == 0 and join.streams.find("s").batches == (2, 1)


def waits(join):
    return [(one.message.stream, one.message.seq) for one in join.windows]


def known_streams(join, names):
    """Let a window of each stream be run."""
    for name in names:
        join.add(message(0, name), {part: np.zeros(1) for part in PARTS}, delivery(1), 0.0)


def test_a_stream_that_floods_the_join_loses_its_own_windows_only():
    join = join_of(capacity=6)
    known_streams(join, ("quiet", "flood"))
    for seq in (1, 2):
        join.add(message(seq, "quiet"), {"a": np.zeros(1)}, delivery(seq), 0.0)
    for seq in range(1, 21):
        join.add(message(seq, "flood"), {"a": np.zeros(1)}, delivery(seq), 0.0)
        evicted = join.evict(0.0)
        assert [one.message.stream for one in evicted] == ["flood"] * (seq > 4)
    assert waits(join) == [("quiet", 1), ("quiet", 2), *(("flood", seq) for seq in range(17, 21))]


def test_many_made_up_streams_have_one_share_together():
    join = join_of(capacity=6)
    known_streams(join, ("real",))
    for seq in (1, 2, 3):
        join.add(message(seq, "real"), {"a": np.zeros(1)}, delivery(seq), 0.0)
    for seq in range(20):
        join.add(message(5, f"made-up-{seq}"), {"a": np.zeros(1)}, delivery(seq), 0.0)
        join.evict(0.0)
    assert waits(join)[:3] == [("real", 1), ("real", 2), ("real", 3)] and len(join) == 6


def test_the_share_with_most_bytes_goes_where_bytes_are_short():
    join = Join(frozenset("ab"), timeout_s=10.0, capacity=100, held_bytes=1000)
    for number, (stream, size) in enumerate([("small", 100), ("large", 700), ("small", 100), ("large", 700)]):
        join.add(message(number, stream), {"a": np.zeros(size, np.uint8)}, delivery(number), 0.0)
        for name in ("small", "large"):
            join.streams.of(name).last_run = 0
    assert [(one.message.stream, one.message.seq) for one in join.evict(0.0)] == [("large", 1)]


def test_a_part_left_over_from_a_lost_connection_does_not_wait_for_companions_that_were_settled():
    """Window 0 was answered, but only its part `a` acknowledged; `b` comes again, alone."""
    join = join_of(("a", "b"), timeout_s=30.0)
    join.add(message(0), {"b": np.zeros(1)}, delivery(1, duplicate=True), 0.0)
    join.add(message(7), {"a": np.zeros(1)}, delivery(2), 0.0)  # waits for its part b: not a leftover
    assert join.evict(20.0) == []
    for name in ("a", "b"):
        join.add(message(1), {name: np.zeros(1)}, delivery(3), 20.0)
    assert join.evict(21.0) == [] and join.evict(21.0 + REDELIVERED_S / 2) == []
    (leftover,) = join.evict(21.0 + REDELIVERED_S)
    assert leftover.state is WindowState.LEFTOVER and leftover.message.seq == 0 and len(join) == 1


def test_a_part_behind_complete_windows_waits_less_and_its_loss_is_not_played_down():
    join = join_of(("a", "b"), timeout_s=30.0)
    join.add(message(0), {"b": np.zeros(1)}, delivery(1), 0.0)
    for name in ("a", "b"):
        join.add(message(1), {name: np.zeros(1)}, delivery(2), 1.0)
    assert join.evict(1.0) == join.evict(1.0 + OVERTAKEN_S - 0.1) == []
    (passed,) = join.evict(1.0 + OVERTAKEN_S)
    assert passed.message.seq == 0 and passed.state is WindowState.SHELVED


def test_parts_behind_complete_windows_are_the_first_to_go_when_too_many_wait():
    join = join_of(("a", "b"), capacity=3)
    for seq in (5, 6):
        join.add(message(seq), {"b": np.zeros(1)}, delivery(seq), 0.0)
    for name in ("a", "b"):
        join.add(message(3), {name: np.zeros(1)}, delivery(3), 0.0)
    for seq in (0, 1):  # came after 5 and 6, but window 3 of their stream is complete
        join.add(message(seq), {"b": np.zeros(1)}, delivery(seq), 0.0)
    assert [one.message.seq for one in join.evict(0.0)] == [0] and len(join) == 3


def test_what_was_complete_is_known_again_by_its_capture_and_the_memory_is_bounded():
    join = join_of(("a", "b"))
    for seq in range(REMEMBERED + 50):
        for name, captured in (("a", 1.0), ("b", 2.0)):
            join.add(message(seq, captured=(captured,)), {name: np.zeros(1)}, delivery(seq), 0.0)
    seq = REMEMBERED + 20
    assert join.repeats(message(seq, captured=(2.0,)), ["b"], delivery(1))
    assert not join.repeats(message(seq, captured=(2.5,)), ["b"], delivery(1)), "a new run of the stream"
    assert not join.repeats(message(seq, captured=(2.0,)), ["b"], delivery(1, duplicate=True))
    assert not join.repeats(message(seq, captured=(2.0,)), ["a", "b"], delivery(1)), "needs no companion"
    assert not join.repeats(message(0, captured=(2.0,)), ["b"], delivery(1)) and len(join._run) <= REMEMBERED + 1


def test_a_part_that_came_again_still_joins_what_is_late():
    join = join_of(("a", "b"), timeout_s=30.0)
    join.add(message(0), {"b": np.zeros(1)}, delivery(1, duplicate=True), 0.0)
    join.add(message(0, stream="other"), {"a": np.zeros(1)}, delivery(2), 0.0)
    join.add(message(0, stream="other"), {"b": np.zeros(1)}, delivery(3), 0.0)  # another stream tells nothing
    assert join.evict(29.0) == []
    assert join.add(message(0), {"a": np.zeros(1)}, delivery(4), 29.0) is not None
