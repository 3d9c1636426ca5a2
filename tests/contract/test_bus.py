"""One suite over every Bus: what the nodes rely on, whichever client carries it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from har_edge.errors import BrokerError
from har_edge.mqtt.broker.launcher import Mosquitto, RunningBroker
from har_edge.mqtt.bus import Bus, Delivery, PollableBus, PublishOutcome, Session, TakenOver, Will
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.mqtt.link import link_opener, start_thread
from har_edge.mqtt.memory import MemoryBroker
from har_edge.mqtt.routed import HOME, RoutedBus
from har_edge.protocol.leases import status_lease
from har_edge.protocol.status import NodeStatus, State, encode_status
from tests.contract.others import LACKS, OTHERS, Kind

_names = (f"t{random.SystemRandom().randrange(10**9)}-{count}" for count in itertools.count())


@dataclass
class World:
    """Opens buses of one kind and closes them all.

    `ways` leads to the nodes of the broker: clients go to them in turn, and come back to the same one, unless all
    of them know every session.
    """

    ways: Sequence[Callable[[Session], Bus]]
    shared_sessions: bool = False
    buses: list[Bus] = field(default_factory=list)
    _chosen: dict[str, int] = field(default_factory=dict)

    def bus(self, client_id: str | None = None, **options: object) -> Bus:
        session = Session(client_id or next(_names), **options)  # type: ignore[arg-type]
        way = len(self.buses) % len(self.ways)
        if not self.shared_sessions:
            way = self._chosen.setdefault(session.client_id, way)
        bus = self.ways[way](session)
        self.buses.append(bus)
        return bus


_SINGLE = ["memory", "mosquitto-paho", "mosquitto-native", "embedded-paho", "embedded-native"]
# Two brokers behind one bus: every other name goes through the second one.
_ROUTED = ["routed-memory", "routed-paho", "routed-native"]
_OWN = [*_SINGLE, *_ROUTED]


def reach(broker: RunningBroker, client: ClientLibrary, session: Session) -> PollableBus:
    return open_bus(broker.address, session, client)


class HalfAway:
    """Routes that send every other name to the broker "far", and listen to everything at both."""

    needed = known = ("far",)

    def target(self, topic: str) -> str:
        number = topic.partition("/")[0].rpartition("-")[2]
        return "far" if number.isdecimal() and int(number) % 2 else HOME

    def listens(self, text: str) -> tuple[str, ...]:
        return ("far",)


def routed(
    home: Callable[[Session], PollableBus],
    far: Callable[[Session], PollableBus],
    start: Callable[[Callable[[], None]], None] = start_thread,
) -> Callable[[Session], Bus]:
    """Return the way to two brokers."""

    def connect(session: Session) -> Bus:
        opener = link_opener(session, home, lambda _, beside: far(beside))
        return RoutedBus(home(session), opener, HalfAway(), start=start)

    return connect


@pytest.fixture(params=[*_OWN, *(pytest.param(kind, marks=pytest.mark.brokers, id=kind.value) for kind in OTHERS)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if isinstance(request.param, Kind):
        world = World(**request.getfixturevalue("other")(request.param))
        test = request.function.__name__
        for why in [lack.value for lack in LACKS[request.param] if test in lack.tests]:
            request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    elif request.param == "memory":
        world = World([MemoryBroker().connect])
    elif request.param == "routed-memory":
        home, far = MemoryBroker(), MemoryBroker()
        world = World([routed(home.connect, far.connect, start=lambda job: job())])
    elif request.param.startswith("routed-"):
        client = ClientLibrary(request.param.partition("-")[2])
        if client is ClientLibrary.NATIVE:
            pytest.importorskip("mqtt5")
        brokers: list[RunningBroker] = [request.getfixturevalue("mosquitto"), request.getfixturevalue("embedded")]
        here, there = (partial(reach, one, client) for one in brokers)
        world = World([routed(here, there)])
    else:
        name, client = request.param.split("-")
        broker: RunningBroker = request.getfixturevalue(name)
        if client == "native":
            pytest.importorskip("mqtt5")
        world = World([lambda session: open_bus(broker.address, session, ClientLibrary(client))])
    yield world
    for bus in world.buses:
        bus.close(forget=True)


def until(bus: Bus, done: Callable[[], object], others: tuple[Bus, ...] = (), seconds: float = 10.0) -> list[Delivery]:
    """Poll until something holds; return all that came meanwhile."""
    came: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s; came: {came}"
        came += bus.poll(0.02)
        for other in others:
            other.poll(0.0)
    return came


def collect(bus: Bus, count: int, others: tuple[Bus, ...] = ()) -> list[Delivery]:
    came: list[Delivery] = []
    deadline = time.monotonic() + 10
    while len(came) < count:
        assert time.monotonic() < deadline, f"{len(came)} of {count} came"
        came += bus.poll(0.02)
        for other in others:
            other.poll(0.0)
    return came


def ready(bus: Bus, *filters: str) -> Bus:
    bus.subscribe(filters)
    until(bus, lambda: bus.connected)
    return bus


def test_delivers_in_order_and_reports_safety(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(), f"{topic}/+"), world.bus()
    outcomes: list[PublishOutcome] = []
    for number in range(50):
        sender.publish(f"{topic}/a", str(number).encode(), on_outcome=outcomes.append)
    assert sender.unsent == 50
    came = collect(receiver, 50, (sender,))
    assert [int(delivery.payload) for delivery in came] == list(range(50))
    until(sender, lambda: len(outcomes) == 50)
    assert set(outcomes) == {PublishOutcome.ACKED} and sender.unsent == 0


def test_many_topics_arrive_under_their_names(world: World) -> None:
    """More topics than a broker gives aliases for, in turn."""
    base = next(_names)
    receiver, sender = ready(world.bus(), f"{base}/+"), world.bus()
    sent = [(f"{base}/{number % 15}", f"{number}".encode()) for number in range(60)]
    for topic, payload in sent:
        sender.publish(topic, payload)
    assert [(one.topic, one.payload) for one in collect(receiver, 60, (sender,))] == sent


def test_says_that_nobody_listens(world: World) -> None:
    sender = world.bus()
    outcomes: list[PublishOutcome] = []
    sender.publish(next(_names), b"x", on_outcome=outcomes.append)
    until(sender, lambda: outcomes)
    assert outcomes == [PublishOutcome.NO_SUBSCRIBERS]


def test_unacknowledged_deliveries_come_again_to_the_next_owner_of_the_session(world: World) -> None:
    topic, name = next(_names), next(_names)
    first, sender = ready(world.bus(name, expiry_s=60), topic), world.bus()
    for number in range(4):
        sender.publish(topic, str(number).encode())
    came = collect(first, 4, (sender,))
    first.acknowledge(came[0])
    first.acknowledge(came[1])
    first.poll(0.05)
    first.close()
    sender.publish(topic, b"4")
    until(sender, lambda: sender.unsent == 0)
    second = world.bus(name, expiry_s=60)
    again = collect(second, 3)
    assert [delivery.payload for delivery in again] == [b"2", b"3", b"4"]
    assert [delivery.duplicate for delivery in again] == [True, True, False]


def test_what_only_an_earlier_process_asked_for_is_put_away_and_its_subscription_ended(world: World) -> None:
    """A pipeline that was cut anew: the session is that of a stage that wanted other topics."""
    base, name = next(_names), next(_names)
    old = ready(world.bus(name, expiry_s=60), f"{base}/window/+/chest", f"{base}/act/1/0/+")
    old.close()
    sender = world.bus()
    for topic in ("window/anna/chest", "window/anna/arm", "act/1/0/anna"):
        sender.publish(f"{base}/{topic}", topic.encode())
    until(sender, lambda: sender.unsent == 0)
    new = ready(world.bus(name, expiry_s=60), f"{base}/window/+/arm")
    until(new, lambda: new.traffic.stale == 2)
    for _ in range(5):
        new.poll(0.02)
    for topic in ("window/anna/chest", "act/1/0/anna", "window/anna/arm"):
        sender.publish(f"{base}/{topic}", b"later")
    came = collect(new, 1, (sender,))
    assert [(one.topic, one.payload) for one in came] == [(f"{base}/window/anna/arm", b"later")]
    assert list(new.poll(0.2)) == [] and new.traffic.stale == 2
    for delivery in came:
        new.acknowledge(delivery)


def test_unsubscribing_ends_what_comes(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(), f"{topic}/+", f"{topic}-kept"), world.bus()
    receiver.unsubscribe([f"{topic}/+"])
    for _ in range(5):
        receiver.poll(0.05)
    sender.publish(f"{topic}/a", b"x")
    sender.publish(f"{topic}-kept", b"y")
    assert [one.payload for one in collect(receiver, 1, (sender,))] == [b"y"]
    assert list(receiver.poll(0.2)) == []


def test_acknowledgements_out_of_order_wait_for_the_earlier_ones(world: World) -> None:
    topic, name = next(_names), next(_names)
    first, sender = ready(world.bus(name, expiry_s=60), topic), world.bus()
    for number in range(3):
        sender.publish(topic, str(number).encode())
    came = collect(first, 3, (sender,))
    first.acknowledge(came[2])
    first.poll(0.05)
    first.close()
    second = world.bus(name, expiry_s=60)
    assert [delivery.payload for delivery in collect(second, 3)] == [b"0", b"1", b"2"]


def test_receive_max_bounds_what_is_under_way(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(receive_max=5), topic), world.bus()
    for number in range(12):
        sender.publish(topic, str(number).encode())
    until(sender, lambda: sender.unsent == 0)
    came = collect(receiver, 5)
    came += receiver.poll(0.2)
    assert len(came) == 5
    while len(came) < 12:
        for delivery in came[-5:]:
            receiver.acknowledge(delivery)
        came += collect(receiver, 1)
    assert [int(delivery.payload) for delivery in came] == list(range(12))


def test_a_second_client_takes_the_session_over(world: World) -> None:
    topic, name = next(_names), next(_names)
    status = f"har/v1/{name}/node/n/status"
    leases = [status_lease(status, f"{name}-{started}", float(started)) for started in (1, 2)]
    first, sender = ready(world.bus(name, expiry_s=60, lease=leases[0]), topic), world.bus()
    sender.publish(topic, b"held by the first")
    collect(first, 1, (sender,))
    second = world.bus(name, expiry_s=60, lease=leases[1])
    birth = NodeStatus(node="n", role="stage", state=State.READY, instance=f"{name}-2", started=2.0)
    sender.publish(status, encode_status(birth), retain=True)
    until(sender, lambda: sender.unsent == 0)
    with pytest.raises(TakenOver, match=name):
        until(first, lambda: False)
    assert [delivery.payload for delivery in collect(second, 1)] == [b"held by the first"]


def test_retained_messages_greet_and_the_will_is_kept(world: World) -> None:
    topic = next(_names)
    sender = world.bus(will=Will(topic, b"lost"))
    sender.publish(topic, b"ready", retain=True)
    until(sender, lambda: sender.unsent == 0)
    receiver = world.bus()
    receiver.subscribe([topic])
    came = collect(receiver, 1)
    assert (came[0].payload, came[0].retained) == (b"ready", True)
    receiver.acknowledge(came[0])
    sender.close()
    assert receiver.poll(0.2) == [] or receiver.poll(0.2) == ()
    sender.publish(topic, b"")


def test_a_filter_with_a_wildcard_is_greeted_by_what_is_retained(world: World) -> None:
    topic = next(_names)
    sender = world.bus()
    for node in ("a", "b"):
        sender.publish(f"{topic}/{node}/status", node.encode(), retain=True)
    until(sender, lambda: sender.unsent == 0)
    receiver = world.bus()
    receiver.subscribe([f"{topic}/+/status"])
    came = collect(receiver, 2)
    assert sorted((one.payload, one.retained) for one in came) == [(b"a", True), (b"b", True)]
    for node in ("a", "b"):
        sender.publish(f"{topic}/{node}/status", b"", retain=True)


def test_what_is_live_is_not_marked_as_retained(world: World) -> None:
    topic = next(_names)
    sender, receiver = world.bus(), world.bus()
    receiver.subscribe([topic])
    until(receiver, lambda: receiver.connected)
    sender.publish(topic, b"ready", retain=True)
    until(sender, lambda: sender.unsent == 0)
    assert [(one.payload, one.retained) for one in collect(receiver, 1)] == [(b"ready", False)]
    sender.publish(topic, b"", retain=True)


def share(world: World, topic: str, count: int = 2, **options: object) -> tuple[list[str], list[Bus]]:
    """Return the client ids and buses of the members of one group, who take turns at a topic."""
    names = [next(_names) for _ in range(count)]
    members = [ready(world.bus(name, expiry_s=60, **options), f"$share/turns/{topic}/+") for name in names]
    return names, members


def send(sender: Bus, topic: str, payloads: range) -> set[PublishOutcome]:
    """Publish numbers and return what became of them."""
    outcomes: list[PublishOutcome] = []
    for number in payloads:
        sender.publish(f"{topic}/a", b"%d" % number, on_outcome=outcomes.append)
    until(sender, lambda: len(outcomes) == len(payloads))
    return set(outcomes)


def numbers(came: list[Delivery]) -> list[int]:
    return [int(one.payload) for one in came]


def test_members_of_a_group_take_turns(world: World) -> None:
    topic = next(_names)
    _, members = share(world, topic, 3)
    watcher, sender = ready(world.bus(), f"{topic}/+"), world.bus()
    assert send(sender, topic, range(12)) == {PublishOutcome.ACKED}
    shares = [numbers(collect(member, 4)) for member in members]
    assert sorted(itertools.chain(*shares)) == list(range(12)) == numbers(collect(watcher, 12))
    assert all(one == list(range(one[0], 12, 3)) for one in shares)


def test_what_fell_to_a_member_that_vanished_waits_in_its_session(world: World) -> None:
    topic = next(_names)
    names, (stays, goes) = share(world, topic)
    sender = world.bus()
    assert send(sender, topic, range(4)) == {PublishOutcome.ACKED}
    held = collect(goes, 2)
    goes.acknowledge(held[0])
    goes.poll(0.05)
    goes.close()  # the session stays, with the message that was not acknowledged
    assert send(sender, topic, range(4, 8)) == {PublishOutcome.ACKED}
    mine = numbers(collect(stays, 4))
    assert list(stays.poll(0.2)) == []
    again = collect(world.bus(names[1], expiry_s=60), 3)
    assert numbers(again) == sorted(set(range(8)) - {*mine, int(held[0].payload)})
    assert [one.duplicate for one in again] == [True, False, False]


def test_a_group_is_heard_while_all_its_members_are_away(world: World) -> None:
    topic = next(_names)
    names, members = share(world, topic)
    sender = world.bus()
    for member in members:
        member.close()
    assert send(sender, topic, range(4)) == {PublishOutcome.ACKED}
    came = [numbers(collect(world.bus(name, expiry_s=60), 2)) for name in names]
    assert sorted(itertools.chain(*came)) == list(range(4))


def test_a_member_whose_session_ends_leaves_the_group(world: World) -> None:
    topic = next(_names)
    _, (stays, goes) = share(world, topic)
    sender = world.bus()
    goes.close(forget=True)
    assert send(sender, topic, range(4)) == {PublishOutcome.ACKED}
    assert numbers(collect(stays, 4)) == list(range(4))
    stays.close(forget=True)
    assert send(sender, topic, range(1)) == {PublishOutcome.NO_SUBSCRIBERS}


def test_a_member_of_a_group_is_sent_nothing_retained(world: World) -> None:
    topic = next(_names)
    sender = world.bus()
    sender.publish(f"{topic}/a", b"0", retain=True)
    until(sender, lambda: sender.unsent == 0)
    _, (member,) = share(world, topic, 1)
    assert send(sender, topic, range(1, 2)) == {PublishOutcome.ACKED}
    assert numbers(collect(member, 1)) == [1]
    sender.publish(f"{topic}/a", b"", retain=True)
    until(sender, lambda: sender.unsent == 0)


def test_large_and_empty_payloads_pass(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(), topic), world.bus()
    large = random.Random(0).randbytes(3_000_000)
    sender.publish(topic, large)
    sender.publish(topic, b"")
    assert [delivery.payload for delivery in collect(receiver, 2, (sender,))] == [large, b""]


def test_a_payload_above_the_limit_is_withheld_and_nothing_else_is_lost(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(max_packet_bytes=5000), topic), world.bus()
    for payload in (b"before", bytes(6000), b"after"):
        sender.publish(topic, payload)
    assert [delivery.payload for delivery in collect(receiver, 2, (sender,))] == [b"before", b"after"]


def test_reads_no_more_than_it_is_asked_for_and_nothing_is_lost(world: World) -> None:
    topic, size, most = next(_names), 10_000, 30_000
    receiver, sender = ready(world.bus(), topic), world.bus()
    for number in range(100):
        sender.publish(topic, number.to_bytes(4, "big") + bytes(size - 4))
    until(sender, lambda: not sender.unsent)
    assert [list(receiver.poll(0.01, 0)) for _ in range(10)] == [[]] * 10 and receiver.connected
    came: list[Delivery] = []
    deadline = time.monotonic() + 10
    while len(came) < 100:
        assert time.monotonic() < deadline, f"{len(came)} of 100 came"
        piece = receiver.poll(0.02, most)
        assert len(piece) * size <= most + size
        came += piece
    assert [int.from_bytes(one.payload[:4], "big") for one in came] == list(range(100))


def test_counts_traffic(world: World) -> None:
    topic = next(_names)
    receiver, sender = ready(world.bus(), topic), world.bus()
    before = receiver.traffic.received_bytes
    sender.publish(topic, bytes(1000))
    collect(receiver, 1, (sender,))
    until(sender, lambda: sender.unsent == 0)
    assert sender.traffic.published == receiver.traffic.received == 1
    assert sender.traffic.sent_bytes >= 1000 and receiver.traffic.received_bytes - before >= 1000


def test_the_native_client_names_a_topic_once(mosquitto: Mosquitto) -> None:
    pytest.importorskip("mqtt5")
    topic, payload, count = f"har/v1/pipeline/window/subject1/{next(_names)}", bytes(100), 40

    def sent_bytes(client: ClientLibrary) -> int:
        bus = open_bus(mosquitto.address, Session(next(_names)), client)
        before = bus.traffic.sent_bytes
        for _ in range(count):
            bus.publish(topic, payload)
        until(bus, lambda: bus.unsent == 0)
        after = bus.traffic.sent_bytes
        bus.close(forget=True)
        return after - before

    # The alias is a property of three bytes: its identifier and two of the number.
    saved = (count - 1) * (len(topic) - 3) - 3
    lengths_bytes = count - 1  # and a packet of up to 127 bytes says its length in one byte instead of two
    assert sent_bytes(ClientLibrary.PAHO) - sent_bytes(ClientLibrary.NATIVE) == saved + lengths_bytes


@pytest.mark.parametrize("client", [ClientLibrary.PAHO, ClientLibrary.NATIVE])
def test_an_unreachable_broker_is_named(client: ClientLibrary) -> None:
    from har_edge.mqtt.address import Address

    with pytest.raises(BrokerError, match=r"no broker at mqtt://127\.0\.0\.1:1: .*start one with `har-edge broker`"):
        open_bus(Address("127.0.0.1", 1), Session("x"), client)
