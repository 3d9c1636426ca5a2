"""Several brokers behind one bus: routes that change, brokers that vanish, sessions that another process takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Delivery, PollableBus, PublishOutcome, Session, SessionLease, TakenOver
from har_edge.mqtt.link import link_opener
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.mqtt.routed import HOME, RoutedBus


@dataclass(frozen=True)
class Table:
    """Routes by the first level of a topic; filters are listened to wherever a route leads."""

    targets: tuple[tuple[str, str], ...] = ()
    known: tuple[str, ...] = ()
    listening: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([one for _, one in self.targets if one != HOME] + list(self.listening)))

    def target(self, topic: str) -> str:
        return dict(self.targets).get(topic.partition("/")[0], HOME)

    def listens(self, text: str) -> tuple[str, ...]:
        return self.listening


@dataclass
class Site:
    """Brokers by name, a clock, and buses over them; connections are made at once, in this thread."""

    brokers: dict[str, MemoryBroker] = field(
        default_factory=lambda: {name: MemoryBroker() for name in (HOME, "a", "b")}
    )
    now: float = 100.0
    opened: list[str] = field(default_factory=list)

    def connect(self, name: str, session: Session) -> PollableBus:
        self.opened.append(name)
        return self.brokers[name].connect(session)

    def bus(self, table: Table, client_id: str = "stage", lease: SessionLease | None = None) -> RoutedBus:
        session = Session(client_id, expiry_s=60, lease=lease)
        home = self.brokers[HOME].connect
        return RoutedBus(
            home(session),
            link_opener(session, home, self.connect),
            table,
            start=lambda job: job(),
            clock=lambda: self.now,
        )

    def peer(self, broker: str, *filters: str) -> MemoryBus:
        bus = self.brokers[broker].connect(Session(f"peer-{broker}-{len(self.opened)}-{self.now}", expiry_s=60))
        bus.subscribe(filters)
        bus.poll(0)
        return bus

    def later(self, bus: Bus, seconds: float = 5.0) -> list[Delivery]:
        self.now += seconds
        return [*bus.poll(0), *bus.poll(0)]


def payloads(came: object) -> list[bytes]:
    return [one.payload for one in came]  # type: ignore[attr-defined]


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_topic_goes_to_the_broker_of_its_route_and_to_no_other(site: Site) -> None:
    home, a = site.peer(HOME, "#"), site.peer("a", "#")
    bus = site.bus(Table((("x", "a"),), ("a",)))
    bus.publish("x/1", b"far")
    bus.publish("y/1", b"home")
    assert bus.unsent == 2
    site.later(bus)
    assert (payloads(a.poll(0)), payloads(home.poll(0)), bus.unsent) == ([b"far"], [b"home"], 0)


def test_it_listens_at_home_and_at_the_brokers_that_its_routes_name(site: Site) -> None:
    bus = site.bus(Table(listening=("a",), known=("a", "b")))
    bus.subscribe(["t/+"])
    site.later(bus)
    for name in (HOME, "a", "b"):
        site.peer(name).publish("t/1", name.encode() or b"home")
    for broker in site.brokers.values():
        sender = broker.connect(Session("sender"))
        sender.publish("t/2", b"from " + (b"home" if broker is site.brokers[HOME] else b"a link"))
        sender.poll(0)
    assert sorted(payloads(site.later(bus))) == [b"from a link", b"from home"]
    assert site.opened == ["a"]


def test_deliveries_are_acknowledged_where_they_came_from(site: Site) -> None:
    bus = site.bus(Table(listening=("a",), known=("a",)))
    bus.subscribe(["t"])
    site.later(bus)
    for name in (HOME, "a"):
        sender = site.peer(name)
        for number in range(2):
            sender.publish("t", f"{name}{number}".encode())
        sender.poll(0)
    came = site.later(bus)
    assert len({one.token for one in came}) == 4
    for one in came:
        if one.payload != b"a1":
            bus.acknowledge(one)
    bus.poll(0)
    bus.close()
    again = site.bus(Table(listening=("a",), known=("a",)))
    again.subscribe(["t"])
    assert [(one.payload, one.duplicate) for one in site.later(again)] == [(b"a1", True)]


def test_what_a_lost_broker_has_not_acknowledged_is_published_again_when_it_is_back(site: Site) -> None:
    peer = site.peer("a", "#")
    bus = site.bus(Table((("x", "a"),), ("a",)))
    site.later(bus)
    site.brokers["a"].stop()
    outcomes: list[PublishOutcome] = []
    bus.publish("x/1", b"waits", on_outcome=outcomes.append)
    site.later(bus)
    site.later(bus)
    assert (bus.unsent, bus.connected, bus.unreachable, outcomes) == (1, False, ["a"], [])
    site.brokers["a"].start()
    site.later(bus)
    site.later(bus)
    assert (bus.unsent, bus.connected, bus.unreachable, outcomes) == (0, True, [], [PublishOutcome.ACKED])
    assert payloads(peer.poll(0)) == [b"waits"]
    assert bus.traffic.reconnects == 0


def test_what_waits_for_a_lost_broker_goes_elsewhere_with_the_routes(site: Site) -> None:
    home = site.peer(HOME, "#")
    bus = site.bus(Table((("x", "a"), ("y", "a")), ("a",)))
    site.later(bus)
    site.brokers["a"].stop()
    site.later(bus)
    outcomes: list[PublishOutcome] = []
    for number in range(3):
        bus.publish("xyx"[number] + "/1", str(number).encode(), on_outcome=outcomes.append)
    bus.reroute(Table((("y", "b"),), ("b",)))
    b = site.peer("b", "#")
    site.later(bus)
    assert (payloads(home.poll(0)), payloads(b.poll(0))) == ([b"0", b"2"], [b"1"])
    assert outcomes == [PublishOutcome.ACKED] * 3 and bus.unsent == 0


def test_a_broker_that_is_still_known_is_fetched_from_and_one_that_is_not_loses_the_session(site: Site) -> None:
    bus = site.bus(Table(listening=("a",), known=("a",)))
    bus.subscribe(["t"])
    site.later(bus)
    bus.reroute(Table(listening=("b",), known=("a", "b")))
    site.later(bus)
    for name in ("a", "b"):
        sender = site.peer(name)
        sender.publish("t", name.encode())
        sender.poll(0)
    assert sorted(payloads(site.later(bus))) == [b"a", b"b"]
    bus.reroute(Table(listening=("b",), known=("b",)))
    assert not site.brokers["a"].knows(Session("stage", expiry_s=60))
    assert site.brokers["b"].knows(Session("stage", expiry_s=60))


def test_closing_leaves_every_session_and_forgetting_ends_every_one(site: Site) -> None:
    session, table = Session("stage", expiry_s=60), Table(listening=("a", "b"), known=("a", "b"))
    for forget, kept in ((False, True), (True, False)):
        bus = site.bus(table)
        bus.subscribe(["t"])
        site.later(bus)
        bus.close(forget=forget)
        assert [broker.knows(session) for broker in site.brokers.values()] == [kept] * 3


def test_a_successor_takes_over_every_session_and_the_first_one_learns_it_at_any(site: Site) -> None:
    table = Table(listening=("a",), known=("a",))
    first = site.bus(table)
    first.subscribe(["t"])
    site.later(first)
    site.brokers["a"].connect(Session("stage", expiry_s=60))
    with pytest.raises(TakenOver):
        first.poll(0)


def test_a_link_that_was_cut_is_not_taken_back_from_who_has_the_lease(site: Site) -> None:
    holder = [b"first"]
    plan = site.peer(HOME)
    plan.publish("plan", b"second", retain=True)
    plan.poll(0)
    lease = SessionLease("plan", lambda delivery: delivery.payload != holder[0])
    with pytest.raises(TakenOver):  # at the first connection, too
        site.later(site.bus(Table(listening=("a",), known=("a",)), lease=lease))
    holder[0] = b"second"
    bus = site.bus(Table(listening=("a",), known=("a",)), lease=lease)
    site.later(bus)
    assert bus.connected
    holder[0] = b"first"
    links = list(site.brokers["a"]._accounts.values())
    links[0].bus.cut()  # type: ignore[union-attr]
    site.later(bus)
    with pytest.raises(TakenOver):
        site.later(bus)


def test_a_reconnection_at_home_makes_the_links_anew_so_that_what_a_loop_drops_comes_again(site: Site) -> None:
    bus = site.bus(Table(listening=("a",), known=("a",)))
    bus.subscribe(["t"])
    site.later(bus)
    sender = site.peer("a")
    sender.publish("t", b"held")
    sender.poll(0)
    assert [one.duplicate for one in site.later(bus)] == [False]
    site.brokers[HOME].stop()
    site.later(bus)
    site.brokers[HOME].start()
    came = [*site.later(bus), *site.later(bus)]
    assert bus.traffic.reconnects == 1
    assert [(one.payload, one.duplicate) for one in came] == [(b"held", True)]


def test_a_broker_that_was_never_there_is_tried_again_and_keeps_nobody_from_the_others(site: Site) -> None:
    home = site.peer(HOME, "#")
    site.brokers["a"].stop()
    bus = site.bus(Table((("x", "a"),), ("a",)))
    bus.publish("x/1", b"far")
    bus.publish("y/1", b"home")
    site.later(bus)
    assert payloads(home.poll(0)) == [b"home"]
    assert (bus.unreachable, bus.connected, bus.unsent) == (["a"], False, 1)
    site.brokers["a"].start()
    peer = site.peer("a", "#")
    site.later(bus)
    site.later(bus)
    assert payloads(peer.poll(0)) == [b"far"] and bus.connected


def test_it_reads_no_more_than_it_is_asked_for_over_all_brokers(site: Site) -> None:
    bus = site.bus(Table(listening=("a",), known=("a",)))
    bus.subscribe(["t"])
    site.later(bus)
    for name in (HOME, "a"):
        sender = site.peer(name)
        for _ in range(10):
            sender.publish("t", bytes(100))
        sender.poll(0)
    assert bus.poll(0, 0) == []
    came = list(bus.poll(0, 300))
    assert 3 <= len(came) <= 5
    while len(came) < 20:
        fresh = bus.poll(0, 300)
        assert fresh
        came += fresh
    assert bus.traffic.received == 20


def test_a_connection_that_comes_after_the_end_is_closed(site: Site) -> None:
    jobs: list[Callable[[], None]] = []
    session = Session("stage", expiry_s=60)
    bus = RoutedBus(
        site.brokers[HOME].connect(session),
        link_opener(session, site.brokers[HOME].connect, site.connect),
        Table(listening=("a",), known=("a",)),
        start=jobs.append,
    )
    bus.poll(0)
    bus.close()
    jobs[0]()
    (account,) = site.brokers["a"]._accounts.values()
    assert account.bus is None


def test_an_error_of_the_network_counts_as_a_broker_that_cannot_be_reached(site: Site) -> None:
    def connect(name: str, session: Session) -> PollableBus:
        raise OSError("no route to host")

    session = Session("stage")
    home = site.brokers[HOME].connect
    bus = RoutedBus(
        home(session),
        link_opener(session, home, connect),
        Table((("x", "a"),), ("a",)),
        start=lambda job: job(),
    )
    bus.poll(0)
    bus.poll(0)
    assert bus.unreachable == ["a"]
    with pytest.raises(BrokerError):
        site.brokers[HOME].stop()
        site.brokers[HOME].connect(session)
