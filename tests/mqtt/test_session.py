"""The session of both clients against scripted servers: what no well-behaved broker would show in time."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session, TakenOver
from har_edge.mqtt.clients import transport
from har_edge.mqtt.clients.transport import AckOrder, Backoff, FinalRefusal
from har_edge.mqtt.connect import ClientLibrary, open_bus

mqtt5 = pytest.importorskip("mqtt5")
from tests.mqtt.scripted import ClientConnection, Ended, ScriptedServer  # noqa: E402

ONCE = mqtt5.QoS.AT_LEAST_ONCE
Serve = Callable[..., ScriptedServer]
OpenBus = Callable[..., Bus]


@pytest.fixture(params=[ClientLibrary.PAHO, ClientLibrary.NATIVE], ids=lambda client: client.value)
def client(request: pytest.FixtureRequest) -> ClientLibrary:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def bus_to(client: ClientLibrary) -> OpenBus:
    def connect(address: Address, **options: object) -> Bus:
        return open_bus(address, Session("tester", **options), client)  # type: ignore[arg-type]

    return connect


def until(bus: Bus, done: Callable[[Sequence[Delivery]], object], seconds: float = 10.0) -> list[Delivery]:
    came: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while not done(came):
        assert time.monotonic() < deadline, f"not done after {seconds} s; came: {came[:9]}"
        came += bus.poll(0.02)
    return came


def numbered(number: int, **options: object) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket("t", str(number).encode(), qos=ONCE, packet_id=number, **options)


def acknowledge_all(peer: ClientConnection) -> None:
    peer.accept()
    while True:
        packet = peer.read()
        if isinstance(packet, mqtt5.PublishPacket):
            peer.send(mqtt5.PubAckPacket(packet.packet_id))


# --- connecting -------------------------------------------------------------------------------------------------------


def test_introduces_itself(serve: Serve, bus_to: OpenBus) -> None:
    seen: list[mqtt5.ConnectPacket] = []

    def script(peer: ClientConnection) -> None:
        seen.append(peer.accept())
        peer.idle()

    bus_to(serve(script).address, expiry_s=77, receive_max=9, max_packet_bytes=12345, keepalive_s=11).close()
    (connect,) = seen
    told = (connect.client_id, connect.session_expiry_interval, connect.receive_max, connect.max_packet_size)
    assert (*told, connect.keep_alive, connect.clean_start) == ("tester", 77, 9, 12345, 11, False)


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("BAD_USER_NAME_OR_PASSWORD", FinalRefusal, "bad user name or password; check the user, and the password in"),
        ("NOT_AUTHORIZED", FinalRefusal, "not authorized; check the user, and the password in HAR_EDGE_PASSWORD or"),
        ("CLIENT_ID_NOT_VALID", FinalRefusal, "client (id|identifier) not valid; see the broker's log"),
        ("SERVER_BUSY", BrokerError, "server busy; see the broker's log"),
    ],
)
def test_a_refusal_is_told_in_words(
    serve: Serve, bus_to: OpenBus, code: str, kind: type[BrokerError], text: str
) -> None:
    server = serve(lambda peer: peer.accept(reason_code=getattr(mqtt5.ConnAckReasonCode, code)) and None)
    with pytest.raises(BrokerError, match=text) as caught:
        bus_to(server.address)
    assert type(caught.value) is kind


def test_a_server_that_closes_at_once(serve: Serve, bus_to: OpenBus) -> None:
    started = time.monotonic()
    with pytest.raises(BrokerError, match=r"without an answer to CONNECT \(it may want mqtts://\); start one with"):
        bus_to(serve(lambda peer: None).address)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x20\xff\xff\xff\xff\xff",
        b"\x00\x00",
        b"\xd0\x00",
    ],
    ids=["http", "ssh", "length", "reserved", "ping"],
)
def test_a_server_that_answers_garbage(serve: Serve, bus_to: OpenBus, answer: bytes) -> None:
    def script(peer: ClientConnection) -> None:
        peer.send(answer)
        peer.connection.shutdown(1)
        peer.idle()

    with pytest.raises(BrokerError, match=r"no broker at mqtt://127\.0\.0\.1:"):
        bus_to(serve(script).address)


def test_a_server_that_never_answers(serve: Serve, bus_to: OpenBus, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("paho", "handshake"):
        monkeypatch.setattr(f"har_edge.mqtt.clients.{module}.CONNECT_TIMEOUT_S", 0.3)
    started = time.monotonic()
    with pytest.raises(BrokerError, match=r"no broker at .*(did not answer CONNECT|timed out)"):
        bus_to(serve(ClientConnection.idle).address)
    assert time.monotonic() - started < 2


def test_a_server_that_drips_is_given_up(serve: Serve, bus_to: OpenBus, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("paho", "handshake"):
        monkeypatch.setattr(f"har_edge.mqtt.clients.{module}.CONNECT_TIMEOUT_S", 0.5)

    def script(peer: ClientConnection) -> None:
        for byte in b"\x20\xff\x01" + bytes(100):
            peer.send(bytes([byte]))
            time.sleep(0.05)

    started = time.monotonic()
    with pytest.raises(BrokerError, match="no broker at"):
        bus_to(serve(script, ClientConnection.idle).address)
    assert time.monotonic() - started < 3


def test_connack_and_deliveries_may_come_byte_by_byte(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.expect(mqtt5.ConnectPacket)
        for byte in mqtt5.ConnAckPacket().write() + numbered(1).write() + numbered(2).write():
            peer.send(bytes([byte]))
            time.sleep(0.0005)
        peer.idle()

    bus = bus_to(serve(script).address)
    assert [delivery.payload for delivery in until(bus, lambda came: len(came) == 2)] == [b"1", b"2"]
    bus.close()


def test_deliveries_right_behind_connack_are_not_left_lying(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.expect(mqtt5.ConnectPacket)
        peer.send(mqtt5.ConnAckPacket(session_present=True), *(numbered(n) for n in range(1, 21)))
        peer.idle()

    bus = bus_to(serve(script).address)
    assert [int(delivery.payload) for delivery in until(bus, lambda came: len(came) == 20)] == list(range(1, 21))
    bus.close()


# --- a connection that dies -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mqtt5 panics at bad UTF-8
@pytest.mark.parametrize(
    "garbage",
    [
        b"\x32\x07\x00\x03t\xdd\xff\x00\x01",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x40\x01\x00",
        b"\x90\x02\x00\x01",
        b"\x0f\x00",
    ],
    ids=["topic not UTF-8", "length", "short PUBACK", "short SUBACK", "reserved"],
)
def test_garbage_costs_the_connection_not_the_client(serve: Serve, bus_to: OpenBus, garbage: bytes) -> None:
    def broken(peer: ClientConnection) -> None:
        peer.accept()
        peer.send(
            numbered(1), garbage, mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.UNSPECIFIED_ERROR)
        )
        peer.idle()

    def sound(peer: ClientConnection) -> None:
        peer.accept()
        peer.send(numbered(2))
        peer.idle()

    bus = bus_to(serve(broken, sound).address)
    came = until(bus, lambda came: any(delivery.payload == b"2" for delivery in came))
    assert bus.traffic.reconnects >= 1 and {delivery.payload for delivery in came} <= {b"1", b"2"}
    bus.close()


@pytest.mark.parametrize(
    ("sends", "most", "widened"), [(90_000, 212_992, True), (90_000, 150_000, False), (9, 212_992, False)]
)
def test_the_kernel_takes_two_of_the_largest_messages_at_once_where_it_may(
    serve: Serve,
    bus_to: OpenBus,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sends: int,
    most: int,
    *,
    widened: bool,
) -> None:
    (tmp_path / "wmem_max").write_text(f"{most}\n")
    monkeypatch.setattr(transport, "_WMEM_MAX", tmp_path / "wmem_max")
    bus = bus_to(serve(acknowledge_all).address, sends_bytes=sends)
    (connection,) = bus.waits().readers  # type: ignore[attr-defined]
    got = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert (got == 4 * sends) is widened, "Linux doubles what is asked for (socket(7))"
    bus.close()


@pytest.mark.parametrize("size", [0, 100, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_the_head_of_a_packet_says_how_large_it_is(size: int) -> None:
    import mqtt5

    from har_edge.mqtt.clients.packets import first_bytes

    packet = mqtt5.PublishPacket("t", bytes(size)).write()
    head = next(count for count in range(7) if first_bytes(bytearray(packet[:count])))
    assert first_bytes(bytearray(packet[:head])) == first_bytes(bytearray(packet)) == len(packet)
    assert first_bytes(bytearray(b"\x30\x80\x80\x80\x80\x01")) == 0  # no length of MQTT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_packets_incomplete_or_malformed(data: bytes) -> None:
    from har_edge.mqtt.clients.packets import MalformedPacket, take_packets

    packets, size, wrong = take_packets(memoryview(data))
    assert 0 <= size <= len(data) and (wrong is None or isinstance(wrong, MalformedPacket))
    assert size or not packets


@pytest.mark.slow
def test_a_silent_server_is_noticed_by_keepalive(
    serve: Serve, bus_to: OpenBus, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(peer: ClientConnection) -> None:
        peer.accept()
        peer.idle()

    def sound(peer: ClientConnection) -> None:
        peer.accept()
        peer.expect(mqtt5.DisconnectPacket)

    bus = bus_to(serve(silent, sound).address, keepalive_s=1)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        until(bus, lambda _: bus.traffic.reconnects)
    assert 1.0 <= time.monotonic() - started < 6
    assert "lost the broker at mqtt://127.0.0.1:" in caplog.text
    bus.close()


@pytest.mark.slow
def test_the_servers_keepalive_counts(serve: Serve, bus_to: OpenBus) -> None:
    pings: list[float] = []

    def script(peer: ClientConnection) -> None:
        peer.accept(server_keep_alive=1)
        while True:
            if isinstance(peer.read(), mqtt5.PingReqPacket):
                pings.append(time.monotonic())
                peer.send(mqtt5.PingRespPacket())

    bus = bus_to(serve(script).address, keepalive_s=60)
    until(bus, lambda _: len(pings) >= 2, seconds=4)
    assert bus.traffic.reconnects == 0
    bus.close()


@pytest.mark.slow
def test_keepalive_zero_switches_it_off(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.accept(server_keep_alive=0)
        peer.expect(mqtt5.DisconnectPacket)

    bus = bus_to(serve(script).address, keepalive_s=1)
    started = time.monotonic()
    while time.monotonic() - started < 2:
        bus.poll(0.2)
    assert bus.traffic.reconnects == 0
    bus.close()


def test_a_taken_over_session_ends_the_client(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.accept()
        peer.expect(mqtt5.PublishPacket)
        peer.send(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER))

    bus = bus_to(serve(script).address)
    bus.publish("t", b"")
    with pytest.raises(TakenOver, match="tester"):
        until(bus, lambda _: False)
    bus.close()


def test_a_refused_subscription_is_told(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.accept()
        subscribe = peer.expect(mqtt5.SubscribePacket)
        codes = [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE, mqtt5.SubAckReasonCode.NOT_AUTHORIZED]
        peer.send(mqtt5.SubAckPacket(subscribe.packet_id, codes))
        peer.idle()

    bus = bus_to(serve(script).address)
    bus.subscribe(["open", "har/v1/p/result/+"])
    with pytest.raises(
        BrokerError, match=r"refused the subscription to har/v1/p/result/\+: not authorized; check what"
    ):
        until(bus, lambda _: False)
    bus.close()


# --- publishing -------------------------------------------------------------------------------------------------------


def test_receipts(serve: Serve, bus_to: OpenBus) -> None:
    names = ("SUCCESS", "NO_MATCHING_SUBSCRIBERS", "NOT_AUTHORIZED", "SUCCESS")
    codes = [getattr(mqtt5.PubAckReasonCode, name) for name in names]

    def script(peer: ClientConnection) -> None:
        peer.accept()
        for code in codes:
            peer.send(mqtt5.PubAckPacket(peer.expect(mqtt5.PublishPacket).packet_id, reason_code=code))
        peer.send(mqtt5.PubAckPacket(999))  # never asked for: ignored
        peer.idle()

    bus, outcomes = bus_to(serve(script).address), list[PublishOutcome]()
    for _ in codes:
        bus.publish("t", b"", on_outcome=outcomes.append)
    assert bus.unsent == 4
    until(bus, lambda _: len(outcomes) == 4)
    assert (
        outcomes == [PublishOutcome.ACKED, PublishOutcome.NO_SUBSCRIBERS, PublishOutcome.REFUSED, PublishOutcome.ACKED]
        and bus.unsent == 0
    )
    bus.close()


def test_an_error_in_a_receipt_is_not_mistaken_for_a_broken_packet(serve: Serve, bus_to: OpenBus) -> None:
    bus = bus_to(serve(acknowledge_all).address)

    def fail(_: PublishOutcome) -> None:
        raise IndexError("a defect in a node")

    bus.publish("t", b"", on_outcome=fail)
    with pytest.raises(IndexError, match="a defect in a node"):
        until(bus, lambda _: False, seconds=2)
    bus.close()


def test_the_brokers_receive_maximum_is_kept_also_when_resending(serve: Serve, bus_to: OpenBus) -> None:
    seen: list[tuple[int, int, bool, bytes]] = []

    def play(peer: ClientConnection, connection: int, acknowledged: int) -> None:
        peer.accept(receive_max=5, session_present=connection > 0)
        open_ids: list[int] = []
        while acknowledged:
            packet = peer.expect(mqtt5.PublishPacket)
            seen.append((connection, packet.packet_id, packet.duplicate, packet.payload))
            open_ids.append(packet.packet_id)
            assert len(open_ids) <= 5, "more in flight than the broker admits"
            if len(open_ids) == 5 or int(packet.payload) == 39:
                peer.connection.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    peer.read()
                peer.connection.settimeout(10)
                while open_ids and acknowledged:
                    acknowledged -= 1
                    peer.send(mqtt5.PubAckPacket(open_ids.pop(0)))
        if connection:
            peer.idle()

    server = serve(lambda peer: play(peer, 0, 12), lambda peer: play(peer, 1, 28))
    bus, outcomes = bus_to(server.address), list[int]()
    for number in range(40):
        bus.publish("t", str(number).encode(), on_outcome=lambda _, number=number: outcomes.append(number))
    until(bus, lambda _: bus.unsent == 0)
    assert outcomes == list(range(40))
    first, second = ([entry for entry in seen if entry[0] == connection] for connection in (0, 1))
    assert not any(duplicate for _, _, duplicate, _ in first)
    assert [int(payload) for *_, payload in second] == list(range(12, 40))
    doubled = [duplicate for _, _, duplicate, _ in second]
    assert 3 <= doubled.index(False) <= 5 and not any(doubled[doubled.index(False) :])
    assert [entry[1] for entry in first[12:]] == [entry[1] for entry in second[: len(first) - 12]], "same packet ids"
    bus.close()


def test_publishing_while_disconnected_waits(serve: Serve, bus_to: OpenBus) -> None:
    got: list[bytes] = []

    def deaf(peer: ClientConnection) -> None:
        peer.accept()

    def sound(peer: ClientConnection) -> None:
        peer.accept()
        while len(got) < 3:
            packet = peer.expect(mqtt5.PublishPacket)
            got.append(packet.payload)
            peer.send(mqtt5.PubAckPacket(packet.packet_id))
        peer.idle()

    bus = bus_to(serve(deaf, sound).address)
    until(bus, lambda _: not bus.connected)
    for payload in (b"1", b"2", b"3"):
        bus.publish("t", payload)
    assert bus.unsent == 3
    until(bus, lambda _: bus.unsent == 0)
    assert got == [b"1", b"2", b"3"] and bus.traffic.reconnects == 1
    bus.close()


@pytest.mark.parametrize("present", [True, False])
def test_it_is_counted_when_the_broker_has_forgotten_this_client(serve: Serve, bus_to: OpenBus, present: bool) -> None:
    def here(peer: ClientConnection) -> None:
        peer.accept(session_present=present)
        peer.idle()

    bus = bus_to(serve(lambda peer: peer.accept() and None, here).address, expiry_s=60)
    until(bus, lambda _: bus.traffic.reconnects and bus.connected)
    assert bus.traffic.forgotten == (0 if present else 1)
    bus.close()


def test_packet_ids_wrap_around_one_that_is_still_in_flight(serve: Serve) -> None:
    """70,000 messages with the very first never acknowledged: its number must not be used again."""
    count, held = 70_000, threading.Event()
    ids: list[int] = []

    def script(peer: ClientConnection) -> None:
        peer.accept()
        waiting: list[bytes] = []
        for number in range(count):
            packet = peer.expect(mqtt5.PublishPacket)
            ids.append(packet.packet_id)
            if number:
                waiting.append(mqtt5.PubAckPacket(packet.packet_id).write())
            if len(waiting) >= 256 or number == count - 1:
                peer.send(*waiting)
                waiting.clear()
        held.wait(10)
        peer.send(mqtt5.PubAckPacket(ids[0]))
        peer.idle()

    bus = open_bus(serve(script).address, Session("tester"), ClientLibrary.NATIVE)
    for number in range(count):
        bus.publish("t", b"")
        if number % 512 == 0:
            bus.poll(0)
    until(bus, lambda _: bus.unsent == 1, seconds=30)
    assert len(ids) == count and ids.count(ids[0]) == 1 and 0 not in ids and max(ids) == 65535
    held.set()
    until(bus, lambda _: bus.unsent == 0)
    bus.close()


def test_paho_skips_a_packet_id_that_is_still_in_flight(serve: Serve) -> None:
    got: list[tuple[int, bytes]] = []

    def script(peer: ClientConnection) -> None:
        peer.accept()
        for _ in range(3):
            packet = peer.expect(mqtt5.PublishPacket)
            got.append((packet.packet_id, packet.payload))
        for packet_id, _ in got:
            peer.send(mqtt5.PubAckPacket(packet_id))
        peer.idle()

    bus = open_bus(serve(script).address, Session("tester"), ClientLibrary.PAHO)
    bus.publish("t", b"a")
    bus._client._last_mid -= 1  # type: ignore[attr-defined]  # as if 65,535 messages had passed meanwhile
    outcomes: list[PublishOutcome] = []
    for payload in (b"b", b"c"):
        bus.publish("t", payload, on_outcome=outcomes.append)
    until(bus, lambda _: bus.unsent == 0)
    assert [payload for _, payload in got] == [b"a", b"b", b"c"] and len({packet_id for packet_id, _ in got}) == 3
    assert outcomes == [PublishOutcome.ACKED, PublishOutcome.ACKED]
    bus.close()


def test_what_the_broker_cannot_take_is_refused_here(
    serve: Serve, bus_to: OpenBus, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def script(peer: ClientConnection) -> None:
        peer.accept(max_packet_size=2000)
        while True:
            packet = peer.expect(mqtt5.PublishPacket)
            sizes.append(len(packet.write()))
            peer.send(mqtt5.PubAckPacket(packet.packet_id))

    bus, outcomes = bus_to(serve(script).address), list[PublishOutcome]()
    fits = 2000 - len(mqtt5.PublishPacket("t", bytes(1900), qos=ONCE, packet_id=1).write()) + 1900
    for size in (10, fits, fits + 1, 20):
        bus.publish("t", bytes(size), on_outcome=outcomes.append)
    assert outcomes == []  # only poll calls on_outcome
    until(bus, lambda _: len(outcomes) == 4)
    assert sorted(outcomes, key=lambda outcome: outcome.name) == [*[PublishOutcome.ACKED] * 3, PublishOutcome.TOO_LARGE]
    assert max(sizes) == 2000 and bus.traffic.reconnects == 0 and bus.unsent == 0
    assert "makes a packet of 2001 bytes; the broker takes at most 2000; raise max_packet_size" in caplog.text
    bus.close()


def test_topics_are_named_once_a_connection_and_no_oftener_than_the_broker_permits(serve: Serve) -> None:
    pytest.importorskip("mqtt5")
    seen: list[list[tuple[str, int | None]]] = [[], []]

    def play(peer: ClientConnection, connection: int) -> None:
        peer.accept(topic_alias_max=2, max_packet_size=200, session_present=connection > 0)
        for number in range(8):
            packet = peer.expect(mqtt5.PublishPacket)
            seen[connection].append((packet.topic, packet.topic_alias))
            if connection or number < 6:
                peer.send(mqtt5.PubAckPacket(packet.packet_id))
        if connection:
            peer.idle()

    server = serve(lambda peer: play(peer, 0), lambda peer: play(peer, 1))
    bus, outcomes = open_bus(server.address, Session("tester"), ClientLibrary.NATIVE), list[PublishOutcome]()
    bus.publish(
        "large", bytes(300), on_outcome=outcomes.append
    )  # never goes out, so the broker does not learn its alias
    for topic in ("a", "a", "b", "c", "b", "a", "c", "b"):  # the last two are in flight when the connection is lost
        bus.publish(topic, b"x", on_outcome=outcomes.append)
    until(bus, lambda _: bus.traffic.reconnects == 1)
    for topic in ("a", "a", "b", "c", "c", "b"):
        bus.publish(topic, b"x", on_outcome=outcomes.append)
    until(bus, lambda _: bus.unsent == 0)
    assert seen[0] == [("a", 1), ("", 1), ("b", 2), ("c", None), ("", 2), ("", 1), ("c", None), ("", 2)]
    assert seen[1] == [("c", 1), ("b", 2), ("a", None), ("a", None), ("", 2), ("", 1), ("", 1), ("", 2)]
    assert outcomes.count(PublishOutcome.ACKED) == 14 and outcomes.count(PublishOutcome.TOO_LARGE) == 1
    bus.close()


def test_a_very_large_payload_passes_a_slow_reader(serve: Serve, bus_to: OpenBus) -> None:
    large, got = random.Random(1).randbytes(8_000_000), list[bytes]()

    def script(peer: ClientConnection) -> None:
        peer.connection.setsockopt(1, 8, 65536)  # SOL_SOCKET, SO_RCVBUF
        peer.accept()
        for _ in range(3):
            packet = peer.expect(mqtt5.PublishPacket)
            got.append(packet.payload)
            peer.send(mqtt5.PubAckPacket(packet.packet_id))
        peer.idle()

    bus = bus_to(serve(script).address)
    for payload in (b"before", large, b"after"):
        bus.publish("t", payload)
    until(bus, lambda _: bus.unsent == 0, seconds=30)
    assert got == [b"before", large, b"after"]
    bus.close()


# --- acknowledging ----------------------------------------------------------------------------------------------------


def test_acknowledges_in_order_and_each_once(serve: Serve, bus_to: OpenBus) -> None:
    acknowledged: list[int] = []

    def script(peer: ClientConnection) -> None:
        peer.accept()
        peer.send(*(numbered(n) for n in range(1, 6)))
        while len(acknowledged) < 5:
            acknowledged.append(peer.expect(mqtt5.PubAckPacket).packet_id)
        peer.send(numbered(1))  # the number is free again, and another message has it
        peer.connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.read()
        peer.connection.settimeout(10)
        acknowledged.append(peer.expect(mqtt5.PubAckPacket).packet_id)
        peer.idle()

    bus = bus_to(serve(script).address)
    came = until(bus, lambda came: len(came) == 5)
    for delivery in (came[4], came[4], came[2], came[0], came[1], came[3], came[0], came[1]):
        bus.acknowledge(delivery)
    (last,) = until(bus, lambda came: came)
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        bus.poll(0.05)
    assert acknowledged == [1, 2, 3, 4, 5]
    bus.acknowledge(last)
    until(bus, lambda _: len(acknowledged) == 6)
    bus.close()


def test_stale_acknowledgements_stay_here(serve: Serve, bus_to: OpenBus) -> None:
    acknowledged: list[int] = []

    def first(peer: ClientConnection) -> None:
        peer.accept()
        peer.send(numbered(1))

    def second(peer: ClientConnection) -> None:
        peer.accept(session_present=True)
        peer.send(numbered(1, duplicate=True))
        acknowledged.append(peer.expect(mqtt5.PubAckPacket).packet_id)
        peer.idle()

    bus = bus_to(serve(first, second).address, expiry_s=60)
    came = until(bus, lambda came: len(came) == 2)
    assert [delivery.duplicate for delivery in came] == [False, True]
    bus.acknowledge(came[0])
    bus.poll(0.1)
    assert acknowledged == []
    bus.acknowledge(came[1])
    until(bus, lambda _: acknowledged == [1])
    bus.close()


def test_qos_0_deliveries_need_no_acknowledgement(serve: Serve, bus_to: OpenBus) -> None:
    def script(peer: ClientConnection) -> None:
        peer.accept()
        peer.send(mqtt5.PublishPacket("t", b"zero"), numbered(1))
        assert peer.expect(mqtt5.PubAckPacket).packet_id == 1
        peer.idle()

    bus = bus_to(serve(script).address)
    came = until(bus, lambda came: len(came) == 2)
    for delivery in came:
        bus.acknowledge(delivery)
    bus.poll(0.05)
    bus.close()


# --- closing ----------------------------------------------------------------------------------------------------------


def test_closing_flushes_says_goodbye_and_is_idempotent(serve: Serve, bus_to: OpenBus) -> None:
    seen: list[object] = []

    def script(peer: ClientConnection) -> None:
        peer.accept()
        packet = peer.expect(mqtt5.PublishPacket)
        peer.send(numbered(1), mqtt5.PubAckPacket(packet.packet_id))
        seen.append(peer.expect(mqtt5.DisconnectPacket))

    bus, outcomes = bus_to(serve(script).address, expiry_s=60), list[PublishOutcome]()
    bus.publish("t", b"last words", on_outcome=outcomes.append)
    bus.close(forget=True)
    bus.close()
    assert outcomes == [PublishOutcome.ACKED] and bus.connected is False
    for _ in range(100):
        if seen:
            break
        time.sleep(0.01)
    assert [packet.session_expiry_interval for packet in seen] == [0]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_closing_towards_a_frozen_broker_does_not_hang(serve: Serve, bus_to: OpenBus) -> None:
    thaw = threading.Event()

    def script(peer: ClientConnection) -> None:
        peer.accept()
        thaw.wait(20)
        raise Ended

    bus = bus_to(serve(script).address)
    for _ in range(8):
        bus.publish("t", bytes(4_000_000))
    started, before = time.monotonic(), time.process_time()
    bus.close()
    assert time.monotonic() - started < 4 and time.process_time() - before < 1
    thaw.set()


# --- the parts --------------------------------------------------------------------------------------------------------


def test_backoff_is_jittered_doubles_and_is_capped() -> None:
    backoff = Backoff(random.Random(0), base_s=0.1, cap_s=5.0)
    bounds = [min(5.0, 0.1 * 2**attempt) for attempt in range(40)]
    waits = [backoff.next_s() for _ in bounds]
    assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert max(waits[8:]) > 2.5 and len(set(waits)) == len(waits)


def test_backoff_starts_anew_only_after_a_connection_that_lasted() -> None:
    backoff = Backoff(random.Random(0), base_s=0.1, cap_s=5.0)
    for _ in range(20):
        backoff.next_s()
        backoff.ended(0.1)
    assert max(backoff.next_s() for _ in range(20)) > 1
    backoff.ended(60)
    assert backoff.next_s() <= 0.1


@given(st.permutations(range(12)), st.integers(1, 12))
def test_ack_order_releases_exactly_the_settled_prefix(order: list[int], settled: int) -> None:
    acks, released = AckOrder(), list[int]()
    for packet_id in range(12):
        acks.arrived(packet_id)
    for count, packet_id in enumerate(order[:settled], 1):
        released += acks.done(packet_id)
        done = set(order[:count])
        assert released == [i for i in range(12) if all(earlier in done for earlier in range(i + 1))]
