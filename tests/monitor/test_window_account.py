"""What was sent beside what came: lost windows are known, the last ones too, and no others are called lost."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.monitor.window_account import LATE_S, MOST_NODES, MOST_RUNS, StreamAccount, WindowAccount
from har_edge.protocol.results import Result
from har_edge.protocol.status import NodeStatus, State, StreamCount
from har_edge.runtime.sensor.sent_counter import MOST_STREAMS, OTHERS, SentCounter

NOW = 1000.0


def said(
    sent: int,
    *,
    node: str = "sensor-arm",
    stream: str = "s",
    run: int = 1,
    began: float = 10.0,
    answered: int | None = None,
    lost: int = 0,
    state: State = State.READY,
) -> NodeStatus:
    streams = {stream: StreamCount(run, began, sent, answered, lost)}
    return NodeStatus(node, "sensor", state, f"i{run}", 1.0, streams=streams)


def result(captured: float, stream: str = "s") -> Result:
    return Result(stream, int(captured), "still", 1, 0.5, captured, captured + 1, 1)


def account(came: range, *statuses: NodeStatus, began: float = 0.0) -> WindowAccount:
    made = WindowAccount(began)
    for status in statuses:
        made.take_status(status, NOW)
    for number in came:
        made.take_result(result(10.0 + number))
    return made


def test_the_last_windows_are_missed_although_no_number_after_them_came() -> None:
    made = account(range(7), said(10, state=State.STOPPED))
    assert made.lost(NOW) == 0 and made.open_sentence(NOW) == "windows that have not come yet: 3 of 10 of s"
    assert made.left_sentence(NOW) == "windows that have not come and whose sensors have gone: 3 of 10 of s"
    made.close()
    assert made.open_sentence(NOW) == ""
    assert made.lost(NOW) == 3 and made.sentence(NOW) == "lost windows: 3 of 10 of s"


def test_a_stream_with_gaps_lacks_nothing_where_as_many_came_as_were_sent() -> None:
    made = WindowAccount(0.0)
    made.take_status(said(3), NOW)
    for captured in (10.0, 500.0, 731.5):
        made.take_result(result(captured))
    made.close()
    assert made.lost(NOW) == 0 and made.sentence(NOW) == ""


def test_results_that_came_before_the_status_count() -> None:
    made = account(range(5))
    made.take_status(said(5), NOW)
    made.close()
    assert made.lost(NOW) == 0


def test_sensors_of_the_same_stream_count_once_and_the_worst_tells() -> None:
    statuses = [said(10, node="sensor-arm"), said(10, node="sensor-chest"), said(9, node="sensor-ankle")]
    made = account(range(8), *statuses)
    made.close()
    assert made.lost(NOW) == 2
    assert made.figures(NOW) == [StreamAccount("s", 10, 8, 2, 0)]


def test_what_a_sensor_no_longer_awaits_is_lost_unless_it_came_here() -> None:
    assert account(range(8), said(10, answered=7, lost=3)).lost(NOW) == 2
    assert account(range(10), said(10, answered=7, lost=3)).lost(NOW) == 0


def test_of_a_sensor_that_began_before_us_only_its_own_word_counts() -> None:
    made = account(range(2), said(5000, answered=4990, lost=4), began=100.0)
    made.close()
    assert made.lost(NOW) == 4


def test_what_a_sensor_lost_that_had_ended_before_us_is_no_loss_of_ours() -> None:
    ended = said(8, answered=0, lost=8, state=State.STOPPED)
    made = account(range(2), ended, began=100.0)
    assert made.lost(NOW) == 0 and made.sentence(NOW) == "" and made.open_sentence(NOW) == ""
    made.take_status(said(9, run=2, began=200.0, answered=6, lost=3), NOW)  # its next run is ours
    assert made.lost(NOW) == 3
    alive = account(range(2), said(8, answered=4, lost=4), began=100.0)
    alive.take_status(said(8, answered=4, lost=4, state=State.STOPPED), NOW)
    assert alive.lost(NOW) == 4


def test_a_sensor_that_hears_no_answers_has_lost_what_did_not_come_within_a_minute() -> None:
    made = account(range(6), said(10))
    made.take_status(said(20), NOW + 30.0)
    assert made.lost(NOW + LATE_S - 0.1) == 0
    assert made.lost(NOW + LATE_S) == 4
    made.take_result(result(16.0))  # late, but it came
    assert made.lost(NOW + LATE_S) == 3


def test_a_new_run_ends_the_one_before_and_neither_is_given_what_came_of_the_other() -> None:
    made = account(range(6), said(8))
    made.take_status(said(4, run=2, began=50.0), NOW)
    for captured in (50.0, 51.0, 52.0, 53.0):
        made.take_result(result(captured))
    assert made.lost(NOW) == 2
    made.take_result(result(16.0))  # of the first run, late
    made.close()
    assert made.lost(NOW) == 1 and made.sentence(NOW) == "lost windows: 1 of 12 of s"


def test_a_last_will_says_nothing_of_windows() -> None:
    made = account(range(9), said(10))
    made.take_status(NodeStatus("sensor-arm", "sensor", State.LOST, "i1", 1.0), NOW)
    made.close()
    assert made.lost(NOW) == 1


def test_a_sensor_that_broke_off_is_named_until_it_is_back() -> None:
    will = NodeStatus("sensor-arm", "sensor", State.LOST, "i1", 1.0)
    made = account(range(10))
    made.take_status(will, NOW)
    assert made.broken_sentence() == ""  # it was gone before anybody counted here
    made.take_status(said(10), NOW)
    assert made.broken_sentence() == ""
    made.take_status(will, NOW)
    expected = "not known of sensors that broke off: whether the windows came that they sent last: sensor-arm"
    assert made.broken_sentence() == expected
    made.take_status(said(3, run=2, began=50.0), NOW)
    assert made.broken_sentence() == expected  # a new start says nothing of the windows of the one before
    made.take_status(said(12), NOW)
    assert made.broken_sentence() == ""


def test_sensors_that_end_on_purpose_and_other_nodes_did_not_break_off() -> None:
    made = account(range(10), said(10), said(10, state=State.STOPPED))
    for state in (State.READY, State.LOST):
        made.take_status(NodeStatus("stage-0", "stage", state, "i1", 1.0), NOW)
    assert made.broken_sentence() == ""


def test_streams_that_are_told_together_are_counted_together() -> None:
    counter = SentCounter(7, heard=False)
    for number in range(MOST_STREAMS + 2):
        assert counter.send(f"s{number}", 2, 10.0) == 0
        assert counter.send(f"s{number}", 1, 11.0) == 2
    counts = counter.counts()
    assert len(counts) == MOST_STREAMS + 1 and counts[OTHERS] == StreamCount(7, 10.0, 6, None, 0)
    made = WindowAccount(0.0)
    made.take_result(result(10.0, f"s{MOST_STREAMS}"))
    made.take_status(NodeStatus("n", "sensor", State.STOPPED, "i", 1.0, streams=counts), NOW)
    for number in range(MOST_STREAMS + 2):
        made.take_result(result(11.0, f"s{number}"))
        made.take_result(result(12.0, f"s{number}"))
        if number < MOST_STREAMS:
            made.take_result(result(13.0, f"s{number}"))
    made.close()
    assert made.lost(NOW) == 1 and made.sentence(NOW) == "lost windows: 1 of 6 of other streams"


def test_what_is_remembered_of_a_sensor_that_starts_again_and_again_is_bounded() -> None:
    made = WindowAccount(0.0)
    for run in range(100):
        made.take_status(said(1, run=run, began=10.0 + run), NOW)
    (figures,) = made.figures(NOW)
    assert figures.sent == MOST_RUNS


@pytest.mark.parametrize("role", ["stage", "node", "coordinator"])
def test_other_nodes_say_nothing_of_windows(role: str) -> None:
    made = WindowAccount(0.0)
    made.take_status(NodeStatus("x", role, State.READY, "i", 1.0), NOW)
    assert made.figures(NOW) == []


def numbered(number: int, run: int = 1, *, later: float = 0.0) -> Result:
    """Return the result of a window that says how many its sensor had sent before."""
    return msgspec.structs.replace(result(10.0 + number + later), sent=(run, number))


def test_results_tell_what_a_sensor_sent_after_its_last_status_that_broke_off() -> None:
    made = WindowAccount(0.0)
    made.take_status(said(4, answered=4), NOW)
    for number in (0, 1, 2, 3, 4, 7, 8):
        made.take_result(numbered(number))
    made.take_status(NodeStatus("sensor-arm", "sensor", State.LOST, "i1", 1.0), NOW)
    assert made.figures(NOW) == [StreamAccount("s", 9, 7, 0, 2, left=2)]
    assert made.figures(NOW + LATE_S) == [StreamAccount("s", 9, 7, 2, 0)]
    assert made.sentence(NOW + LATE_S) == "lost windows: 2 of 9 of s"
    made.take_result(numbered(5))
    assert made.lost(NOW + LATE_S) == 1


def test_a_living_sensor_still_sends_again_what_later_results_show_to_be_missing() -> None:
    made = WindowAccount(0.0)
    made.take_status(said(4, answered=4), NOW)
    for number in (0, 1, 2, 3, 8):
        made.take_result(numbered(number))
    assert made.figures(NOW + 10 * LATE_S) == [StreamAccount("s", 9, 5, 0, 4)] and made.left_sentence(NOW) == ""


def test_results_tell_of_a_sensor_of_which_no_status_came() -> None:
    """From the first result on: what was sent before that may be another watcher's."""
    made = WindowAccount(0.0)
    for number in (3, 4, 6, 2, 9):
        made.take_result(numbered(number))
    assert made.figures(NOW) == [StreamAccount("s", 7, 4, 0, 3)]
    assert made.lost(NOW + LATE_S) == 3
    made.take_status(said(12, state=State.STOPPED), NOW + LATE_S)
    assert made.figures(NOW + LATE_S) == [StreamAccount("s", 12, 5, 0, 7, left=7)]
    made.close()
    assert made.lost(NOW + LATE_S) == 7


def test_a_run_of_which_no_status_came_ends_when_its_sensor_begins_again() -> None:
    made = WindowAccount(0.0)
    for number in (0, 1, 4):
        made.take_result(numbered(number))
    for number in range(3):
        made.take_result(numbered(number, 2, later=50.0))
    made.close()
    assert made.figures(NOW) == [StreamAccount("s", 8, 6, 2, 0)]


def test_sensors_of_a_stream_that_tell_in_turns_lose_nothing_that_came() -> None:
    made = WindowAccount(0.0)
    for number in range(20):
        made.take_result(numbered(number, 1 + number // 3 % 2))
    made.close()
    assert made.lost(NOW) == 0


def test_what_results_tell_is_bounded() -> None:
    made = WindowAccount(0.0)
    for run in range(3 * MOST_RUNS):
        made.take_result(numbered(0, run, later=float(run)))
    for number in range(2 * MOST_NODES):
        made.take_result(msgspec.structs.replace(result(10.0, f"s{number}"), sent=(1, 0)))
    assert len(made.figures(NOW)) == MOST_NODES and made.figures(NOW)[0].sent == MOST_RUNS
