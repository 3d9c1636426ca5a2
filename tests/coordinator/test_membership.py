"""Who is there and who lives, by what nodes say and by what they do not say."""

from __future__ import annotations

import pytest

from har_edge.coordinator.membership import MAX_MEMBERS, Health, Membership
from har_edge.errors import MessageError
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.status import Heartbeat, NodeCapabilities, NodeStatus, State
from har_edge.timing import FORGET_NODE_S, NODE_LOST_S, RECONNECT_GRACE_S

CARD = NodeCapabilities(PROTOCOL, "m", "Linux", 4, 10**9, "litert", 50.0)


def status(state: State = State.READY, *, instance: str = "i1", started: float = 1.0, **more: object) -> NodeStatus:
    fields = {"node": "pi", "role": "node", "device": CARD} | more
    return NodeStatus(state=state, instance=instance, started=started, **fields)  # type: ignore[arg-type]


def beat(instance: str = "i1", number: int = 1) -> Heartbeat:
    return Heartbeat("pi", instance, number, 0.0)


@pytest.fixture
def membership() -> Membership:
    """One node that lives, heard at 100."""
    membership = Membership()
    assert membership.note_status("pi", status(), 100.0) == []
    (event,) = membership.note_heartbeat("pi", beat(), 100.0)
    assert (event.health, event.text) == (Health.LIVE, "node pi has joined: Linux, 4 cores, speed 50/s")
    return membership


def test_silence_is_a_loss_after_the_deadline_and_a_beat_brings_the_node_back(membership: Membership) -> None:
    membership.note_heartbeat("pi", beat(), 110.0)
    assert membership.tick(110.0 + NODE_LOST_S) == []
    (event,) = membership.tick(110.1 + NODE_LOST_S)
    assert event.text == "node pi is lost: no beat for 1.6 s" and membership.health("pi") is Health.LOST
    assert membership.live() == [] and membership.reports("pi") == ()
    assert [one.health for one in membership.note_heartbeat("pi", beat(), 120.0)] == [Health.LIVE]


def test_a_node_that_is_silent_again_and_again_has_to_be_heard_for_longer_and_longer(membership: Membership) -> None:
    join_other(membership)
    now, waits = 110.0, []
    for _ in range(4):
        membership.note_heartbeat("pi", beat(), now)
        began = now
        while membership.health("pi") is not Health.LIVE:
            now += 0.5
            membership.note_heartbeat("pi", beat(), now)
        waits.append(now - began)
        now += 2.0
        assert [one.health for one in membership.tick(now)] == [Health.LOST]
        now += 1.0
    assert waits == [0.0, 0.0, 2.0, 4.0]
    membership.note_heartbeat("pi", beat(), now + 61.0)
    assert membership.health("pi") is Health.LOST  # not on its first beat


def join_other(membership: Membership) -> None:
    """A second node that lives for ever."""
    membership.note_status("other", status(node="other"), 100.0)
    membership.note_heartbeat("other", Heartbeat("other", "i1", 1, 0.0), 100.0)
    membership.members["other"].deadline = float("inf")


def test_a_node_that_crashes_again_and_again_has_to_be_heard_for_longer_and_longer(membership: Membership) -> None:
    join_other(membership)
    now, waits = 110.0, []
    for number in range(2, 7):
        membership.note_status("pi", status(instance=f"i{number}", started=float(number)), now)
        began = now
        membership.note_heartbeat("pi", beat(f"i{number}"), now)
        while membership.health("pi") is not Health.LIVE:
            now += 0.5
            membership.note_heartbeat("pi", beat(f"i{number}"), now)
        waits.append(now - began)
        membership.note_status("pi", status(State.LOST, instance=f"i{number}", started=float(number)), now + 1.0)
        now += 1.5
        assert [one.health for one in membership.tick(now)] == [Health.LOST]
    assert waits == [0.0, 0.0, 2.0, 4.0, 8.0]
    membership.note_status("pi", status(instance="i9", started=9.0), now + 61.0)
    membership.note_heartbeat("pi", beat("i9"), now + 61.0)
    assert membership.health("pi") is Health.LIVE  # that was long ago


def test_a_crash_counts_when_the_next_process_comes_before_the_will_does(membership: Membership) -> None:
    join_other(membership)
    for number, health in ((2, Health.LIVE), (3, Health.LOST)):
        old = f"i{number - 1}"
        membership.note_status("pi", status(State.LOST, instance=old, started=number - 1.0), 100.0 + number)
        membership.note_status("pi", status(instance=f"i{number}", started=float(number)), 100.05 + number)
        membership.note_heartbeat("pi", beat(f"i{number}"), 100.1 + number)
        assert membership.health("pi") is health


def test_silence_that_ends_with_the_will_is_one_loss(membership: Membership) -> None:
    join_other(membership)
    assert len(membership.tick(110.0)) == 1
    membership.note_status("pi", status(State.LOST), 120.0)
    assert membership.tick(120.5) == []
    membership.note_status("pi", status(instance="i2", started=2.0), 121.0)
    assert [one.health for one in membership.note_heartbeat("pi", beat("i2"), 121.0)] == [Health.LIVE]


def test_a_node_on_trial_is_better_than_none(membership: Membership) -> None:
    for now in (110.0, 120.0):
        assert len(membership.tick(now)) == 1
        assert [one.health for one in membership.note_heartbeat("pi", beat(), now + 1.0)] == [Health.LIVE]


def test_who_was_blind_gives_everybody_time(membership: Membership) -> None:
    membership.extend_deadlines(120.0)
    assert membership.tick(120.0) == [] and [one.health for one in membership.tick(120.1)] == [Health.LOST]


def test_time_in_which_nobody_listened_does_not_count(membership: Membership) -> None:
    membership.note_heartbeat("pi", beat(), 110.0)
    membership.shift_deadlines(0.9)
    assert membership.tick(110.8 + NODE_LOST_S) == [] and len(membership.tick(111.0 + NODE_LOST_S)) == 1


def test_the_will_is_believed_and_later_beats_only_with_a_new_status(membership: Membership) -> None:
    assert membership.note_status("pi", status(State.LOST), 100.9) == [] and membership.tick(100.95) == []
    (event,) = membership.tick(101.0)
    assert event.text == "node pi is lost: the broker lost its connection"
    assert membership.note_heartbeat("pi", beat(), 101.1) == []  # on its way when the connection broke
    membership.note_status("pi", status(), 102.0)
    assert [one.health for one in membership.note_heartbeat("pi", beat(), 102.1)] == [Health.LIVE]


def test_a_will_is_void_when_our_own_connection_goes_or_the_node_comes_back(membership: Membership) -> None:
    membership.extend_deadlines(200.0)
    membership.note_status("pi", status(State.LOST), 101.0)
    membership.discard_pending_wills()
    assert membership.tick(102.0) == [] and membership.health("pi") is Health.LIVE
    membership.note_status("pi", status(State.LOST), 103.0)
    membership.note_status("pi", status(), 103.05)
    assert membership.tick(104.0) == [] and membership.health("pi") is Health.LIVE


def test_a_retained_will_waits_for_the_grace_and_one_that_comes_now_does_not(membership: Membership) -> None:
    membership.extend_deadlines(104.0)
    membership.note_status("pi", status(State.LOST), 101.0, retained=True)
    assert membership.tick(103.9) == []
    membership.note_status("pi", status(State.LOST), 103.2)
    assert len(membership.tick(103.4)) == 1


def test_the_last_word_of_an_older_process_counts_for_nothing(membership: Membership) -> None:
    membership.note_status("pi", status(instance="i2", started=2.0), 101.0)
    assert membership.health("pi") is Health.NEW and membership.note_heartbeat("pi", beat("i1"), 101.1) == []
    membership.note_status("pi", status(State.LOST), 101.2)
    assert membership.tick(101.4) == [] and membership.health("pi") is Health.NEW
    assert [one.health for one in membership.note_heartbeat("pi", beat("i2"), 101.3)] == [Health.LIVE]


def test_a_node_whose_clock_was_set_back_is_taken_when_the_older_process_is_lost(membership: Membership) -> None:
    membership.note_status("pi", status(State.LOST), 101.0)
    assert len(membership.tick(101.2)) == 1
    membership.note_status("pi", status(instance="i2", started=0.5), 102.0)
    assert [one.health for one in membership.note_heartbeat("pi", beat("i2"), 102.1)] == [Health.LIVE]


def test_a_node_that_says_hello_and_never_beats_is_lost() -> None:
    membership = Membership()
    membership.note_status("pi", status(), 100.0)
    membership.expect(["gone", "pi"], 100.0)
    assert membership.live() == []
    found = membership.tick(100.1 + RECONNECT_GRACE_S)
    assert {event.text for event in found} == {f"node {name} is lost: it was never heard" for name in ("pi", "gone")}


@pytest.mark.parametrize(
    ("said", "health", "text"),
    [
        (status(State.DRAINING), Health.LEAVING, "node pi wants to leave"),
        (status(State.STOPPED), Health.GONE, "node pi has stopped"),
        (None, Health.GONE, "node pi is gone: its status was removed"),
        (
            status(device=NodeCapabilities(7, "m", "Linux", 1, 1, "", 1.0)),
            Health.UNFIT,
            "node pi cannot be used: it speaks protocol 7, expected 1; install the same version of har-edge there",
        ),
    ],
)
def test_what_a_node_says_of_itself(membership: Membership, said: NodeStatus | None, health: Health, text: str) -> None:
    (event,) = membership.note_status("pi", said, 101.0)
    assert (event.health, event.text) == (health, text)
    assert membership.health("pi") is health and membership.live() == []


def test_sensors_are_known_by_the_epoch_they_send_to() -> None:
    membership = Membership()
    for name, epoch in (("s1", 7), ("s2", 8), ("static", 0)):
        membership.note_status(name, status(node=name, role="sensor", device=None, epoch=epoch), 1.0)
    membership.note_status("watcher", status(node="watcher", role="watch", device=None, epoch=7), 1.0)
    assert membership.behind(8) == ["s1"] and membership.members == {}
    membership.note_status("s1", status(State.LOST, node="s1", role="sensor", device=None), 2.0)
    assert membership.behind(8) == []


def test_the_number_of_nodes_is_bounded() -> None:
    membership = Membership()
    membership.expect([f"n{number}" for number in range(MAX_MEMBERS)], 1.0)
    membership.expect([f"m{number}" for number in range(2)], 1.0)  # nobody can be forgotten for these
    assert len(membership.members) == MAX_MEMBERS and membership.health("m0") is Health.GONE
    with pytest.raises(MessageError, match="the 257th; at most 256 are watched"):
        membership.note_status("pi", status(), 1.0)


def test_who_has_been_lost_longest_makes_room_unless_a_plan_names_it() -> None:
    membership = Membership()
    names = [f"n{number}" for number in range(MAX_MEMBERS)]
    for number, name in enumerate(names):
        membership.note_status(name, status(node=name), 100.0)
        membership.note_status(name, status(State.LOST, node=name), 100.0 + (number + 9) % MAX_MEMBERS)
        membership.members[name].deadline = float("inf")
    for tick in range(MAX_MEMBERS):
        membership.tick(100.5 + tick)
    first, second = names[MAX_MEMBERS - 9], names[MAX_MEMBERS - 8]
    membership.note_status("late", status(State.LOST, node="late"), 400.0)
    assert "late" not in membership.members and first in membership.members
    membership.named = {first}
    membership.note_status("pi", status(), 400.0)
    membership.note_heartbeat("pi", beat(), 400.1)
    assert membership.health("pi") is Health.LIVE and len(membership.members) == MAX_MEMBERS
    assert first in membership.members and second not in membership.members


@pytest.mark.parametrize("state", [State.STOPPED, State.LOST])
@pytest.mark.parametrize("more", [{}, {"role": "sensor", "device": None}], ids=["node", "sensor"])
def test_who_has_long_been_gone_is_stale_once(state: State, more: dict[str, object]) -> None:
    membership = Membership()
    membership.note_status("pi", status(**more), 100.0)
    assert membership.stale(1e6) == []
    membership.note_status("pi", status(state, **more), 200.0)
    membership.note_status("pi", status(state, **more), 300.0)  # said again by the broker
    assert membership.stale(200.0 + FORGET_NODE_S) == []
    assert membership.stale(200.1 + FORGET_NODE_S) == ["pi"] and membership.stale(1e6) == []


def test_who_lives_is_never_stale(membership: Membership) -> None:
    membership.note_status("pi", status(State.LOST), 200.0)
    membership.note_status("pi", status(), 300.0)
    assert membership.stale(1e6) == []
    membership.note_heartbeat("pi", beat(), 300.1)
    membership.note_status("pi", status(State.STOPPED, instance="i0", started=0.5), 400.0)
    membership.note_heartbeat("pi", beat(), 400.1)  # that was the last word of an older process of this name
    assert membership.stale(1e6) == []
    assert membership.tick(500.0) != []
    assert membership.stale(1e6) == []  # it is silent, but the broker does not say that it is lost


def test_time_without_a_connection_makes_nobody_stale(membership: Membership) -> None:
    membership.note_status("pi", status(State.LOST), 200.0)
    membership.extend_deadlines(3000.0)
    assert membership.stale(3000.0 + FORGET_NODE_S) == [] and membership.stale(3000.1 + FORGET_NODE_S) == ["pi"]


def test_a_status_that_somebody_else_removed_is_not_stale(membership: Membership) -> None:
    membership.note_status("pi", status(State.LOST), 200.0)
    membership.note_status("pi", None, 300.0)
    assert membership.stale(1e6) == []
