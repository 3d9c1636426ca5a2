"""How the capacity of a join is shared among streams."""

from har_edge.runtime.stage.stream_quota import ACTIVE_S, NEW_S, StreamQuota


def grant(room, stream, now):
    room.note(stream, now)
    return room.grant()


def test_the_capacity_is_shared_among_the_streams_that_are_answered():
    room = StreamQuota(64)
    assert [grant(room, stream, 0.0) for stream in "aabca"] == [64, 64, 32, 21, 21]


def test_a_stream_that_ended_gives_its_share_back():
    room = StreamQuota(64)
    for now in range(5):
        room.note("a", float(now)), room.note("b", float(now))
    for now in range(5, 200):
        granted = grant(room, "a", float(now))
        assert granted == (32 if now <= 4 + ACTIVE_S or (granted == 32 and now <= 4 + NEW_S) else 64)
    assert granted == 64


def test_streams_that_are_answered_seldom_keep_their_shares():
    """A slow pipeline: one answer a second for twenty streams, so that each has one in twenty seconds."""
    room = StreamQuota(100)
    granted = [grant(room, f"s{number % 20}", float(number)) for number in range(400)]
    assert set(granted[20:]) == {5}


def test_messages_that_follow_each_other_do_not_make_a_stream_a_quick_one():
    room = StreamQuota(100)
    for number in range(400):
        for part in range(6):
            room.note(f"s{number % 20}", number + part / 100)
    assert room.grant() == 5


def test_more_streams_than_the_join_holds_have_one_message_each_and_memory_is_bounded():
    room = StreamQuota(8)
    assert [grant(room, f"s{number}", 0.0) for number in range(1000)][8:] == [1] * 992
    assert len(room._active) <= 8
