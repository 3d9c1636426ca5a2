"""Sources that nobody sends are named once, by stream, when its results do not come."""

from __future__ import annotations

from har_edge.monitor.missing_sources import LATE_S, MOST_STREAMS, MissingSources
from har_edge.protocol.status import NodeStatus, State, StreamCount

WANTED = ("chest", "ankle", "arm")


def sensor(
    *sources: str, streams: tuple[str, ...] = ("anna",), state: State = State.READY, sent: int = 5
) -> NodeStatus:
    counts = {stream: StreamCount(1, 2.0, sent) for stream in streams}
    name = "-".join(["sensor", *sources])
    return NodeStatus(name, "sensor", state, "i", 1.0, streams=counts, sources=sources)


def missing(*statuses: NodeStatus) -> MissingSources:
    made = MissingSources(WANTED)
    for status in statuses:
        made.take_status(status, 100.0)
    return made


SAID = "no result of anna comes: no sensor at work sends ankle, arm of it; waiting"


def test_it_is_said_once_and_not_too_early() -> None:
    seen = missing(sensor("chest"))
    assert seen.tell(100.0 + LATE_S - 0.1) == []
    assert seen.tell(100.0 + LATE_S) == [SAID]
    assert seen.tell(1000.0) == []


def test_what_changes_is_said_again_and_what_is_complete_not() -> None:
    seen = missing(sensor("chest"))
    assert seen.tell(200.0) == [SAID]
    seen.take_status(sensor("ankle"), 200.0)
    assert seen.tell(200.0) == []  # it may bring the rest
    assert seen.tell(210.0) == ["no result of anna comes: no sensor at work sends arm of it; waiting"]
    seen.take_status(sensor("arm"), 220.0)
    assert seen.tell(300.0) == []
    seen.take_status(sensor("arm", state=State.LOST), 300.0)
    assert seen.tell(300.0) == []  # that was said


def test_it_counts_from_the_first_window_of_a_sensor_and_not_from_its_start() -> None:
    seen = missing(sensor("chest"))
    assert seen.tell(200.0) == [SAID]
    seen.take_status(sensor("ankle", streams=()), 300.0)
    seen.take_status(sensor("ankle", sent=0), 301.0)
    seen.take_status(sensor("ankle"), 302.0)
    assert seen.tell(302.0 + LATE_S - 0.1) == []
    assert seen.tell(302.0 + LATE_S) == ["no result of anna comes: no sensor at work sends arm of it; waiting"]


def test_results_put_it_off() -> None:
    seen = missing(sensor("chest"))
    seen.take_result("anna", 150.0)
    seen.take_result("nobody", 150.0)
    assert seen.tell(150.0 + LATE_S - 0.1) == [] and seen.tell(150.0 + LATE_S) == [SAID]


def test_streams_that_lack_the_same_are_one_line() -> None:
    streams = tuple(f"s{number}" for number in range(10))
    assert missing(sensor("chest", "arm", streams=streams)).tell(200.0) == [
        "no results of s0, s1, s2, s3, s4, s5, s6, s7 and 2 more come: no sensors at work send ankle of them; waiting"
    ]


def test_nothing_is_said_of_sensors_that_do_not_say_their_sources_or_have_sent_nothing() -> None:
    assert missing(sensor()).tell(200.0) == [] and missing(sensor("chest", sent=0)).tell(200.0) == []
    assert missing(sensor("chest"), sensor()).tell(200.0) == []  # the older one may send the rest
    assert (
        MissingSources().tell(0.0) == []
        and missing(NodeStatus("stage-0", "stage", State.READY, "i", 1.0)).tell(200.0) == []
    )


def test_what_others_say_is_bounded() -> None:
    seen = MissingSources(WANTED)
    for number in range(MOST_STREAMS // 64 + 2):
        streams = tuple(f"n{number}-{k}" for k in range(64))
        seen.take_status(sensor("chest", streams=streams), 100.0)
    assert len(seen._since) == MOST_STREAMS and seen.tell(200.0) == []
