"""Who is there and who lives, by what nodes say and by what they do not say."""

from __future__ import annotations

import pytest

from har_edge.coordinator.membership import GRACE_S, LOST_AFTER_S, MAX_PEERS, STALE_S, Health, Registry
from har_edge.errors import MessageError
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.status import Beat, DeviceCard, NodeStatus, State, encode_beat, encode_status

CARD = DeviceCard(PROTOCOL, "m", "Linux", 4, 10**9, "litert", 50.0)


def status(state: State = State.READY, *, instance: str = "i1", started: float = 1.0, **more: object) -> bytes:
    fields = {"node": "pi", "role": "node", "device": CARD} | more
    return encode_status(NodeStatus(state=state, instance=instance, started=started, **fields))  # type: ignore[arg-type]


def beat(instance: str = "i1", number: int = 1) -> bytes:
    return encode_beat(Beat("pi", instance, number, 0.0))


@pytest.fixture
def registry() -> Registry:
    """One node that lives, heard at 100."""
    registry = Registry()
    assert registry.note_status("pi", status(), 100.0) == []
    (event,) = registry.note_beat("pi", beat(), 100.0)
    assert (event.health, event.text) == (Health.LIVE, "node pi has joined: Linux, 4 cores, speed 50/s")
    return registry


def test_silence_is_a_loss_after_the_deadline_and_a_beat_brings_the_node_back(registry: Registry) -> None:
    registry.note_beat("pi", beat(), 110.0)
    assert registry.tick(110.0 + LOST_AFTER_S) == []
    (event,) = registry.tick(110.1 + LOST_AFTER_S)
    assert event.text == "node pi is lost: no beat for 1.6 s" and registry.health("pi") is Health.LOST
    assert registry.live() == [] and registry.reports("pi") == ()
    assert [one.health for one in registry.note_beat("pi", beat(), 120.0)] == [Health.LIVE]


def test_a_node_that_is_silent_again_and_again_has_to_be_heard_for_longer_and_longer(registry: Registry) -> None:
    join_other(registry)
    now, waits = 110.0, []
    for _ in range(4):
        registry.note_beat("pi", beat(), now)
        began = now
        while registry.health("pi") is not Health.LIVE:
            now += 0.5
            registry.note_beat("pi", beat(), now)
        waits.append(now - began)
        now += 2.0
        assert [one.health for one in registry.tick(now)] == [Health.LOST]
        now += 1.0
    assert waits == [0.0, 0.0, 2.0, 4.0]
    registry.note_beat("pi", beat(), now + 61.0)
    assert registry.health("pi") is Health.LOST  # not on its first beat


def join_other(registry: Registry) -> None:
    """A second node that lives for ever."""
    registry.note_status("other", status(node="other"), 100.0)
    registry.note_beat("other", encode_beat(Beat("other", "i1", 1, 0.0)), 100.0)
    registry.peers["other"].deadline = float("inf")


def test_a_node_that_crashes_again_and_again_has_to_be_heard_for_longer_and_longer(registry: Registry) -> None:
    join_other(registry)
    now, waits = 110.0, []
    for number in range(2, 7):
        registry.note_status("pi", status(instance=f"i{number}", started=float(number)), now)
        began = now
        registry.note_beat("pi", beat(f"i{number}"), now)
        while registry.health("pi") is not Health.LIVE:
            now += 0.5
            registry.note_beat("pi", beat(f"i{number}"), now)
        waits.append(now - began)
        registry.note_status("pi", status(State.LOST, instance=f"i{number}", started=float(number)), now + 1.0)
        now += 1.5
        assert [one.health for one in registry.tick(now)] == [Health.LOST]
    assert waits == [0.0, 0.0, 2.0, 4.0, 8.0]
    registry.note_status("pi", status(instance="i9", started=9.0), now + 61.0)
    registry.note_beat("pi", beat("i9"), now + 61.0)
    assert registry.health("pi") is Health.LIVE  # that was long ago


def test_a_crash_counts_when_the_next_process_comes_before_the_will_does(registry: Registry) -> None:
    join_other(registry)
    for number, health in ((2, Health.LIVE), (3, Health.LOST)):
        old = f"i{number - 1}"
        registry.note_status("pi", status(State.LOST, instance=old, started=number - 1.0), 100.0 + number)
        registry.note_status("pi", status(instance=f"i{number}", started=float(number)), 100.05 + number)
        registry.note_beat("pi", beat(f"i{number}"), 100.1 + number)
        assert registry.health("pi") is health


def test_silence_that_ends_with_the_will_is_one_loss(registry: Registry) -> None:
    join_other(registry)
    assert len(registry.tick(110.0)) == 1
    registry.note_status("pi", status(State.LOST), 120.0)
    assert registry.tick(120.5) == []
    registry.note_status("pi", status(instance="i2", started=2.0), 121.0)
    assert [one.health for one in registry.note_beat("pi", beat("i2"), 121.0)] == [Health.LIVE]


def test_a_node_on_trial_is_better_than_none(registry: Registry) -> None:
    for now in (110.0, 120.0):
        assert len(registry.tick(now)) == 1
        assert [one.health for one in registry.note_beat("pi", beat(), now + 1.0)] == [Health.LIVE]


def test_who_was_blind_gives_everybody_time(registry: Registry) -> None:
    registry.pardon(120.0)
    assert registry.tick(120.0) == [] and [one.health for one in registry.tick(120.1)] == [Health.LOST]


def test_time_in_which_nobody_listened_does_not_count(registry: Registry) -> None:
    registry.note_beat("pi", beat(), 110.0)
    registry.delay(0.9)
    assert registry.tick(110.8 + LOST_AFTER_S) == [] and len(registry.tick(111.0 + LOST_AFTER_S)) == 1


def test_the_will_is_believed_and_later_beats_only_with_a_new_status(registry: Registry) -> None:
    assert registry.note_status("pi", status(State.LOST), 100.9) == [] and registry.tick(100.95) == []
    (event,) = registry.tick(101.0)
    assert event.text == "node pi is lost: the broker lost its connection"
    assert registry.note_beat("pi", beat(), 101.1) == []  # on its way when the connection broke
    registry.note_status("pi", status(), 102.0)
    assert [one.health for one in registry.note_beat("pi", beat(), 102.1)] == [Health.LIVE]


def test_a_will_is_void_when_our_own_connection_goes_or_the_node_comes_back(registry: Registry) -> None:
    registry.pardon(200.0)
    registry.note_status("pi", status(State.LOST), 101.0)
    registry.void()
    assert registry.tick(102.0) == [] and registry.health("pi") is Health.LIVE
    registry.note_status("pi", status(State.LOST), 103.0)
    registry.note_status("pi", status(), 103.05)
    assert registry.tick(104.0) == [] and registry.health("pi") is Health.LIVE


def test_a_retained_will_waits_for_the_grace_and_one_that_comes_now_does_not(registry: Registry) -> None:
    registry.pardon(104.0)
    registry.note_status("pi", status(State.LOST), 101.0, retained=True)
    assert registry.tick(103.9) == []
    registry.note_status("pi", status(State.LOST), 103.2)
    assert len(registry.tick(103.4)) == 1


def test_the_last_word_of_an_older_process_counts_for_nothing(registry: Registry) -> None:
    registry.note_status("pi", status(instance="i2", started=2.0), 101.0)
    assert registry.health("pi") is Health.NEW and registry.note_beat("pi", beat("i1"), 101.1) == []
    registry.note_status("pi", status(State.LOST), 101.2)
    assert registry.tick(101.4) == [] and registry.health("pi") is Health.NEW
    assert [one.health for one in registry.note_beat("pi", beat("i2"), 101.3)] == [Health.LIVE]


def test_a_node_whose_clock_was_set_back_is_taken_when_the_older_process_is_lost(registry: Registry) -> None:
    registry.note_status("pi", status(State.LOST), 101.0)
    assert len(registry.tick(101.2)) == 1
    registry.note_status("pi", status(instance="i2", started=0.5), 102.0)
    assert [one.health for one in registry.note_beat("pi", beat("i2"), 102.1)] == [Health.LIVE]


def test_a_node_that_says_hello_and_never_beats_is_lost() -> None:
    registry = Registry()
    registry.note_status("pi", status(), 100.0)
    registry.expect(["gone", "pi"], 100.0)
    assert registry.live() == []
    found = registry.tick(100.1 + GRACE_S)
    assert {event.text for event in found} == {f"node {name} is lost: it was never heard" for name in ("pi", "gone")}


@pytest.mark.parametrize(
    ("payload", "health", "text"),
    [
        (status(State.DRAINING), Health.LEAVING, "node pi wants to leave"),
        (status(State.STOPPED), Health.GONE, "node pi has stopped"),
        (b"", Health.GONE, "node pi is gone: its status was removed"),
        (
            status(device=DeviceCard(7, "m", "Linux", 1, 1, "", 1.0)),
            Health.UNFIT,
            "node pi cannot be used: it speaks protocol 7, expected 1; install the same version of har-edge there",
        ),
    ],
)
def test_what_a_node_says_of_itself(registry: Registry, payload: bytes, health: Health, text: str) -> None:
    (event,) = registry.note_status("pi", payload, 101.0)
    assert (event.health, event.text) == (health, text)
    assert registry.health("pi") is health and registry.live() == []


def test_sensors_are_known_by_the_epoch_they_send_to() -> None:
    registry = Registry()
    for name, epoch in (("s1", 7), ("s2", 8), ("static", 0)):
        registry.note_status(name, status(node=name, role="sensor", device=None, epoch=epoch), 1.0)
    registry.note_status("watcher", status(node="watcher", role="watch", device=None, epoch=7), 1.0)
    assert registry.behind(8) == ["s1"] and registry.peers == {}
    registry.note_status("s1", status(State.LOST, node="s1", role="sensor", device=None), 2.0)
    assert registry.behind(8) == []


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"\xff", "what came from pi is no status"),
        (b"[" * 9000, "what came from pi is no status"),
        (b"1" * 300_000, "a status of 300000 bytes came from pi; expected at most 262144"),
        (status(node="other"), "a status of 'other' came on the topic of 'pi'; expected its own"),
    ],
)
def test_what_is_no_status_is_refused(payload: bytes, text: str) -> None:
    with pytest.raises(MessageError) as caught:
        Registry().note_status("pi", payload, 1.0)
    assert text in str(caught.value)


def test_the_number_of_nodes_is_bounded() -> None:
    registry = Registry()
    registry.expect([f"n{number}" for number in range(MAX_PEERS)], 1.0)
    registry.expect([f"m{number}" for number in range(2)], 1.0)  # nobody can be forgotten for these
    assert len(registry.peers) == MAX_PEERS and registry.health("m0") is Health.GONE
    with pytest.raises(MessageError, match="the 257th; at most 256 are watched"):
        registry.note_status("pi", status(), 1.0)


def test_who_has_been_lost_longest_makes_room_unless_a_plan_names_it() -> None:
    registry = Registry()
    names = [f"n{number}" for number in range(MAX_PEERS)]
    for number, name in enumerate(names):
        registry.note_status(name, status(node=name), 100.0)
        registry.note_status(name, status(State.LOST, node=name), 100.0 + (number + 9) % MAX_PEERS)
        registry.peers[name].deadline = float("inf")
    for tick in range(MAX_PEERS):
        registry.tick(100.5 + tick)
    first, second = names[MAX_PEERS - 9], names[MAX_PEERS - 8]
    registry.note_status("late", status(State.LOST, node="late"), 400.0)
    assert "late" not in registry.peers and first in registry.peers
    registry.named = {first}
    registry.note_status("pi", status(), 400.0)
    registry.note_beat("pi", beat(), 400.1)
    assert registry.health("pi") is Health.LIVE and len(registry.peers) == MAX_PEERS
    assert first in registry.peers and second not in registry.peers


@pytest.mark.parametrize("state", [State.STOPPED, State.LOST])
@pytest.mark.parametrize("more", [{}, {"role": "sensor", "device": None}], ids=["node", "sensor"])
def test_who_has_long_been_gone_is_stale_once(state: State, more: dict[str, object]) -> None:
    registry = Registry()
    registry.note_status("pi", status(**more), 100.0)
    assert registry.stale(1e6) == []
    registry.note_status("pi", status(state, **more), 200.0)
    registry.note_status("pi", status(state, **more), 300.0)  # said again by the broker
    assert registry.stale(200.0 + STALE_S) == []
    assert registry.stale(200.1 + STALE_S) == ["pi"] and registry.stale(1e6) == []


def test_who_lives_is_never_stale(registry: Registry) -> None:
    registry.note_status("pi", status(State.LOST), 200.0)
    registry.note_status("pi", status(), 300.0)
    assert registry.stale(1e6) == []
    registry.note_beat("pi", beat(), 300.1)
    registry.note_status("pi", status(State.STOPPED, instance="i0", started=0.5), 400.0)
    registry.note_beat("pi", beat(), 400.1)  # that was the last word of an older process of this name
    assert registry.stale(1e6) == []
    assert registry.tick(500.0) != []
    assert registry.stale(1e6) == []  # it is silent, but the broker does not say that it is lost


def test_time_without_a_connection_makes_nobody_stale(registry: Registry) -> None:
    registry.note_status("pi", status(State.LOST), 200.0)
    registry.pardon(3000.0)
    assert registry.stale(3000.0 + STALE_S) == [] and registry.stale(3000.1 + STALE_S) == ["pi"]


def test_a_status_that_somebody_else_removed_is_not_stale(registry: Registry) -> None:
    registry.note_status("pi", status(State.LOST), 200.0)
    registry.note_status("pi", b"", 300.0)
    assert registry.stale(1e6) == []
