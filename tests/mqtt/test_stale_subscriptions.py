"""Which topics a bus asks for, and the filters that may have brought another one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from har_edge.mqtt.broker.router import matches
from har_edge.mqtt.clients.stale_subscriptions import StaleSubscriptions, filters_for
from har_edge.protocol.topics import Topics

TOPICS = Topics("har", "test")


def test_every_filter_of_a_stage_is_among_those_that_are_left() -> None:
    assert TOPICS.window("+", "chest") in filters_for(TOPICS.window("anna", "chest"))
    assert TOPICS.activation(7, 2, "+") in filters_for(TOPICS.activation(7, 2, "anna"))
    assert TOPICS.result("+") in filters_for(TOPICS.result("anna"))
    assert TOPICS.status("+") in filters_for(TOPICS.status("stage-1"))


@given(st.lists(st.text("ab", max_size=2), min_size=1, max_size=6))
def test_each_filter_that_is_left_matches_the_topic(levels: list[str]) -> None:
    topic = "/".join(levels)
    assert all(matches(text, topic) for text in filters_for(topic)) and topic in filters_for(topic)


def test_only_what_nobody_asked_for_is_a_stray_and_each_filter_is_left_once() -> None:
    stale = StaleSubscriptions()
    stale.want(["$share/group/a/+", "b"])
    assert [stale.is_stale(topic) for topic in ("a/x", "b", "c", "a/x/y", "c")] == [False, False, True, True, True]
    assert stale.count == 3
    assert stale.leave("c") == ["c", "+"] and stale.leave("c") == []
    stale.want(["c"])
    assert stale.is_stale("c") is False


def test_a_filter_that_is_wanted_is_never_left() -> None:
    stale = StaleSubscriptions()
    stale.want(["x/+"])
    assert stale.is_stale("y/z") and "x/+" not in stale.leave("y/z")


LEVELS = st.lists(st.sampled_from(["a", "b", "$a", "+", ""]), min_size=1, max_size=4).map("/".join)
FILTERS = st.builds(lambda text, rest: text + rest, LEVELS, st.sampled_from(["", "/#"])) | st.just("#")


@given(st.lists(FILTERS, max_size=6), LEVELS.map(lambda text: text.replace("+", "c")))
def test_a_topic_is_wanted_where_a_filter_matches_it(filters: list[str], topic: str) -> None:
    stale = StaleSubscriptions()
    stale.want(filters)
    assert stale.is_stale(topic) is not any(matches(text, topic) for text in filters)
