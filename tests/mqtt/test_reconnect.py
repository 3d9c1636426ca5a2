"""Coming back: what is logged of a lost connection, and of a session that another process has taken."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import Bus, Session, SessionLease, TakenOver
from har_edge.mqtt.clients.reconnect import Reconnector
from har_edge.mqtt.clients.transport import FinalRefusal
from har_edge.mqtt.memory import MemoryBroker

LEASE = SessionLease("status", lambda delivery: delivery.payload == b"another")
LOST = "lost the broker at mqtt://box:1883: it closed the connection"
AGAIN = "connected to mqtt://box:1883 again"


@pytest.fixture(autouse=True)
def verbose(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.mqtt.clients.session_lease.LEASE_LOOK_S", 0.04)
    caplog.set_level(logging.INFO)


def lose(retained: bytes | None, connect: Callable[[], None], *, lease: SessionLease | None = LEASE) -> bool:
    """Lose a connection, and try once, when it is time, to come back to a broker that retains this status."""
    broker, now = MemoryBroker(), [0.0]
    if retained is None:
        broker.stop()
    else:
        bus = broker.connect(Session("writer"))
        bus.publish("status", retained, retain=True)
        bus.poll(0)

    def look(session: Session) -> Bus:
        return broker.connect(session)

    one = Reconnector(
        read_address("mqtt://box:1883"), Session("me", lease=lease), lambda: now[0], random.Random(1), look
    )
    one.opened()
    now[0] = 100.0
    one.lost("it closed the connection")
    now[0] = 200.0
    return one.attempt(0.0, connect)


def nothing() -> None:
    pass


def fail() -> None:
    raise BrokerError("no broker at box")


def refuse() -> None:
    raise FinalRefusal("wrong password")


def test_a_handover_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TakenOver):
        lose(b"another", nothing)
    assert caplog.messages == []  # whoever catches TakenOver says it


@pytest.mark.parametrize("lease", [LEASE, None], ids=["lease", "no lease"])
def test_a_loss_of_what_is_ours_is_said_once(lease: SessionLease | None, caplog: pytest.LogCaptureFixture) -> None:
    assert lose(b"mine", nothing, lease=lease)
    assert caplog.messages == [LOST, AGAIN] and {one.levelname for one in caplog.records} == {"WARNING"}


def test_a_broker_that_cannot_be_reached_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    assert not lose(None, nothing)
    assert caplog.messages == [LOST, "no broker in memory: it was stopped; start it; trying again"]
    caplog.clear()
    assert not lose(b"mine", fail)
    assert caplog.messages == [LOST, "no broker at box; trying again"]


def test_a_refusal_for_good_ends_it_after_the_loss_was_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FinalRefusal, match="wrong password"):
        lose(b"mine", refuse)
    assert caplog.messages == [LOST]
