"""The broker in memory: filters, and what the contract suite cannot show (stops, crashes)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import PublishOutcome, Session, TakenOver, Will
from har_edge.mqtt.clients.transport import read_share
from har_edge.mqtt.connect import open_bus
from har_edge.mqtt.memory import MemoryBroker, matches

# MQTT 5, section 4.7: the examples of the specification, and the edges.
FILTERS = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "sport/tennis", True),
    ("#", "/", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+", "finance", True),
    ("+/tennis/#", "sport/tennis", True),
    ("+/+/#", "a", False),
    ("a/b", "a/b", True),
    ("a/b", "A/b", False),
    ("a/b", "a/b/", False),
    ("a/b/", "a/b", False),
    ("a//b", "a//b", True),
    ("a/+/b", "a//b", True),
    ("#", "$SYS/uptime", False),
    ("+/uptime", "$SYS/uptime", False),
    ("$SYS/#", "$SYS/uptime", True),
    ("$SYS/+", "$SYS/uptime", True),
    ("a/#", "a/$b", True),
]


@pytest.mark.parametrize(("pattern", "topic", "expected"), FILTERS)
def test_filters(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


level = st.sampled_from(["a", "b", "", "+"])


@given(st.lists(level, min_size=1, max_size=4), st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4))
def test_filters_against_paho(wanted: list[str], levels: list[str]) -> None:
    """paho carries a matcher of its own: the oracle."""
    from paho.mqtt.client import topic_matches_sub

    for pattern in ("/".join(wanted), "/".join([*wanted, "#"])):
        assert matches(pattern, "/".join(levels)) is topic_matches_sub(pattern, "/".join(levels))


SHARES = [
    ("$share/turns/a/+", ("turns", "a/+")),
    ("$share/turns/#", ("turns", "#")),
    ("$share/turns//a", ("turns", "/a")),
    ("$share/turns", None),
    ("$share/turns/", None),
    ("$share//a", None),
    ("$shared/turns/a", None),
    ("share/turns/a", None),
]


@pytest.mark.parametrize(("pattern", "expected"), SHARES)
def test_shared_subscriptions(pattern: str, expected: tuple[str, str] | None) -> None:
    assert read_share(pattern) == expected


def test_mosquitto_agrees(mosquitto: Mosquitto) -> None:
    receiver, sender = (open_bus(mosquitto.address, Session(name)) for name in ("filters-r", "filters-s"))
    prefix = "filters"
    cases = [case for case in FILTERS if not case[1].startswith("$") and not case[1].startswith("/")]
    for pattern, topic, expected in cases:
        outcomes: list[PublishOutcome] = []
        one = open_bus(mosquitto.address, Session("filters-one"))
        one.subscribe([f"{prefix}/{pattern}"])
        while not one.connected:
            one.poll(0.01)
        sender.publish(f"{prefix}/{topic}", b"", on_outcome=outcomes.append)
        while not outcomes:
            sender.poll(0.01)
        assert (outcomes[0] is PublishOutcome.ACKED) is expected, (pattern, topic)
        one.close(forget=True)
    receiver.close()
    sender.close()


def test_a_stopped_broker_keeps_sessions() -> None:
    broker = MemoryBroker()
    receiver, sender = broker.connect(Session("r", expiry_s=60)), broker.connect(Session("s"))
    receiver.subscribe(["t"])
    sender.publish("t", b"1")
    sender.poll(0)
    (first,) = receiver.poll(0)
    broker.stop()
    sender.publish("t", b"2")
    assert sender.poll(0) == () and receiver.poll(0) == () and not receiver.connected and sender.unsent == 1
    receiver.acknowledge(first)  # stale by the time it matters
    with pytest.raises(BrokerError, match="no broker in memory: it was stopped; start it"):
        broker.connect(Session("x"))
    broker.start()
    sender.poll(0)
    assert [(d.payload, d.duplicate) for d in receiver.poll(0)] == [(b"1", True), (b"2", False)]
    assert (sender.traffic.reconnects, receiver.traffic.reconnects) == (1, 1)


def test_a_crash_publishes_the_will_a_goodbye_does_not() -> None:
    broker = MemoryBroker()
    watcher = broker.connect(Session("w"))
    watcher.subscribe(["status/+"])
    for name in ("crashes", "leaves"):
        bus = broker.connect(Session(name, will=Will(f"status/{name}", b"lost")))
        bus.crash() if name == "crashes" else bus.close()
    assert [(d.topic, d.payload) for d in watcher.poll(0)] == [("status/crashes", b"lost")]
    late = broker.connect(Session("late"))
    late.subscribe(["status/+"])
    assert [(d.payload, d.retained) for d in late.poll(0)] == [(b"lost", True)]


def test_a_session_without_expiry_ends_with_its_connection() -> None:
    broker = MemoryBroker()
    bus, sender = broker.connect(Session("r")), broker.connect(Session("s"))
    bus.subscribe(["t"])
    bus.close()
    outcomes: list[PublishOutcome] = []
    sender.publish("t", b"", on_outcome=outcomes.append)
    sender.poll(0)
    assert outcomes == [PublishOutcome.NO_SUBSCRIBERS]


def test_clean_start_forgets_what_was_queued() -> None:
    broker = MemoryBroker()
    first, sender = broker.connect(Session("r", expiry_s=60)), broker.connect(Session("s"))
    first.subscribe(["t"])
    first.close()
    sender.publish("t", b"")
    sender.poll(0)
    assert broker.connect(Session("r", expiry_s=60, clean_start=True)).poll(0) == []


def test_the_loser_of_a_session_is_told() -> None:
    broker = MemoryBroker()
    first = broker.connect(Session("same"))
    broker.connect(Session("same"))
    with pytest.raises(TakenOver, match="same"):
        first.poll(0)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_client_learns_whether_a_broker_that_was_away_still_knows_it(keeps: bool) -> None:
    broker = MemoryBroker()
    receiver = broker.connect(Session("r", expiry_s=60))
    receiver.subscribe(["t"])
    broker.stop()
    if not keeps:
        broker.forget()
    broker.start()
    receiver.poll(0)
    assert (receiver.traffic.reconnects, receiver.traffic.forgotten) == (1, 0 if keeps else 1)
