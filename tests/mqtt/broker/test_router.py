"""What a broker keeps: bounds, numbers of packets, the end of sessions. The contract suite shows the rest."""

from __future__ import annotations

from har_edge.mqtt.broker.router import Router
from har_edge.mqtt.bus import PublishOutcome, Session, Will


class Client:
    def __init__(self) -> None:
        self.gone = False

    def take_over(self) -> None:
        self.gone = True


def test_a_message_for_which_a_session_has_no_room_is_refused_for_all() -> None:
    router = Router(max_messages=3)
    slow, quick = (router.attach(Client(), Session(name, expiry_s=9), clean=False) for name in ("slow", "quick"))
    for one in (slow, quick):
        router.subscribe(one, ["t"])
    for number in range(3):
        assert router.route("t", b"%d" % number, retain=False)[0] is PublishOutcome.ACKED
        assert quick.take() is not None
    assert router.route("t", b"3", retain=False) == (PublishOutcome.REFUSED, [])
    assert (len(slow.queue), len(quick.queue)) == (3, 0)
    assert slow.take() is not None
    assert router.route("t", b"3", retain=False)[0] is PublishOutcome.ACKED


def test_bytes_that_are_not_acknowledged_count() -> None:
    router = Router(max_bytes=10)
    one = router.attach(Client(), Session("one", expiry_s=9), clean=False)
    router.subscribe(one, ["t"])
    assert router.route("t", bytes(10), retain=False)[0] is PublishOutcome.ACKED
    taken = one.take()
    assert taken is not None and router.route("t", b"x", retain=False)[0] is PublishOutcome.REFUSED
    one.acknowledged(taken.packet_id)
    assert one.queued_bytes == 0 and router.route("t", b"x", retain=False)[0] is PublishOutcome.ACKED


def test_retained_bytes_are_bounded_and_given_back() -> None:
    router = Router(max_retained_bytes=10)
    assert router.route("a", bytes(8), retain=True)[0] is PublishOutcome.NO_SUBSCRIBERS
    assert router.route("b", bytes(3), retain=True)[0] is PublishOutcome.REFUSED
    assert router.route("a", bytes(2), retain=True)[0] is PublishOutcome.NO_SUBSCRIBERS  # in place of the eight
    assert router.route("b", bytes(8), retain=True)[0] is PublishOutcome.NO_SUBSCRIBERS
    assert router.route("b", b"", retain=True)[0] is PublishOutcome.NO_SUBSCRIBERS
    assert router.route("c", bytes(8), retain=True)[0] is PublishOutcome.NO_SUBSCRIBERS


def test_what_comes_again_keeps_its_number_and_nothing_else_gets_it() -> None:
    router = Router()
    session = Session("one", expiry_s=9)
    one = router.attach(Client(), session, clean=False)
    router.subscribe(one, ["t"])
    for number in range(4):
        router.route("t", b"%d" % number, retain=False)
    sent = [one.take() for _ in range(2)]
    router.detach(one, will=False)
    again = router.attach(Client(), session, clean=False)
    came = [again.take() for _ in range(4)]
    assert [m.packet_id for m in came if m] == [1, 2, 3, 4]
    assert [m.payload for m in came if m] == [b"0", b"1", b"2", b"3"]
    assert came[:2] == sent


def test_a_session_ends_when_its_time_is_over_and_not_before() -> None:
    router = Router()
    one = router.attach(Client(), Session("one", expiry_s=10), clean=False)
    router.subscribe(one, ["t"])
    router.detach(one, will=False, now=100.0)
    assert router.expire(109.0) == [] and router.route("t", b"", retain=False)[0] is PublishOutcome.ACKED
    assert router.expire(110.0) == ["one"] and router.route("t", b"", retain=False)[0] is PublishOutcome.NO_SUBSCRIBERS
    back = router.attach(Client(), Session("one", expiry_s=10), clean=False)
    assert back.take() is None and router.expire(1e9) == []


def test_unsubscribing_says_what_there_was_and_ends_a_turn() -> None:
    router = Router()
    members = [router.attach(Client(), Session(name, expiry_s=9), clean=False) for name in ("a", "b")]
    for one in members:
        router.subscribe(one, ["$share/g/t", "u"])
    assert router.unsubscribe(members[0], ["$share/g/t", "never", "u"]) == [True, False, True]
    for _ in range(3):
        assert router.route("t", b"", retain=False) == (PublishOutcome.ACKED, [members[1]])
    assert router.route("u", b"", retain=False)[1] == [members[1]]


def test_a_will_that_is_not_to_be_retained_is_not() -> None:
    router = Router()
    ears = router.attach(Client(), Session("ears"), clean=False)
    router.subscribe(ears, ["w/+"])
    for retain in (True, False):
        one = router.attach(Client(), Session("one", will=Will(f"w/{retain}", b"x", retain)), clean=False)
        assert router.detach(one, will=True) == [ears]
    late = router.attach(Client(), Session("late"), clean=False)
    router.subscribe(late, ["w/+"])
    greeting = late.take()
    assert greeting is not None and greeting.topic == "w/True" and late.take() is None
