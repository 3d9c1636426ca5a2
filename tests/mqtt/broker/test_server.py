"""The embedded broker against bytes: what other clients send, what no client should, and its bounds."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from har_edge.mqtt.broker import codec
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, open_bus

TEXT = "é"


def string(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


def connect_bytes(version: int, client_id: str, *, clean: bool = True, properties: bytes = b"") -> bytes:
    block = bytes([len(properties)]) + properties if version == codec.V5 else b""
    body = string("MQTT") + bytes([version, 2 * clean, 0, 60]) + block + string(client_id)
    return codec.write_packet(0x10, body)


def publish_bytes(
    topic: str, payload: bytes, *, qos: int = 1, version: int = codec.V5, properties: bytes = b""
) -> bytes:
    packet_id = 7 if qos else 0
    return codec.write_publish(
        version, topic, payload, qos, packet_id, retain=False, again=False, properties=properties
    )


@pytest.fixture
def wire(embedded: EmbeddedBroker) -> Iterator[socket.socket]:
    with socket.create_connection((embedded.address.host, embedded.address.port), timeout=5) as connection:
        yield connection


def read(connection: socket.socket) -> tuple[int, bytes]:
    """Return first byte and body of the next packet."""
    data = bytearray()
    while True:
        taken = codec.take_packet(data, 0, 2**28)
        if taken is not None:
            assert taken[1] == len(data), "more came than one packet"
            return data[0], taken[0].body
        piece = connection.recv(1)
        assert piece, f"the broker closed after {bytes(data)!r}"
        data += piece


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (connect_bytes(3, "x"), b"\x20\x02\x00\x01"),
        (connect_bytes(6, "x"), b"\x20\x02\x00\x01"),
        (connect_bytes(4, "", clean=False), b"\x20\x02\x00\x02"),
        (codec.write_packet(0x10, string("MQIsdp") + b"\x03\x02\x00\x3c" + string("x")), b"\x20\x02\x00\x01"),
        (b"\xc0\x00", b""),  # PINGREQ first
        (b"\x10\xff\xff\xff\xff\x01", b""),  # a length of five bytes
        (b"\x10\xff\xff\xff\x7f", b""),  # 256 MiB
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_who_cannot_be_served_is_told_and_cut_off(wire: socket.socket, sent: bytes, answer: bytes) -> None:
    wire.sendall(sent)
    if answer:
        assert wire.recv(len(answer)) == answer
    assert closed(wire)


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (publish_bytes("a/+", b""), codec.ReasonCode.NAME_INVALID),
        (publish_bytes("", b""), codec.ReasonCode.NAME_INVALID),
        (publish_bytes("t", b"", qos=2), codec.ReasonCode.QOS_NOT_SUPPORTED),
        (publish_bytes("", b"", properties=b"\x23\x00\x05"), codec.ReasonCode.ALIAS_INVALID),
        (publish_bytes("t", b"", properties=b"\x23\xff\xff"), codec.ReasonCode.ALIAS_INVALID),
        (publish_bytes("t", b"", properties=b"\x7f"), codec.ReasonCode.MALFORMED),
        (b"\x32\x02\x00\x09", codec.ReasonCode.MALFORMED),
        (b"\x30\x05\x00\x02\xff\xfe\x00", codec.ReasonCode.MALFORMED),
        (b"\x82\x03\x00\x01\x00", codec.ReasonCode.PROTOCOL_ERROR),
        (connect_bytes(5, "again"), codec.ReasonCode.PROTOCOL_ERROR),
        (b"\x30\xff\xff\xff\x7f", codec.ReasonCode.TOO_LARGE),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_by_its_name(
    wire: socket.socket, packet: bytes, code: codec.ReasonCode
) -> None:
    wire.sendall(connect_bytes(5, "wrong"))
    assert read(wire)[0] == 0x20
    wire.sendall(packet)
    assert read(wire) == (0xE0, bytes([code]))
    assert closed(wire)


def test_connack_tells_what_is_taken(wire: socket.socket) -> None:
    wire.sendall(connect_bytes(5, ""))
    first, body = read(wire)
    reader = codec.Reader(body)
    assert (first, reader.byte(), reader.byte()) == (0x20, 0, 0)
    told = reader.properties().numbers
    assert told == {codec.Property.MAX_QOS: 1, codec.Property.MAX_PACKET: 64 * 1024 * 1024 + 4096, 0x22: 64}


def test_properties_of_a_message_travel_on(wire: socket.socket) -> None:
    passed = b"\x26" + string("key") + string(TEXT) + b"\x03" + string("text/plain")
    wire.sendall(connect_bytes(5, "both"))
    read(wire)
    wire.sendall(b"\x82\x09\x00\x01\x00\x00\x03p/t\x01"[:11])
    assert read(wire) == (0x90, b"\x00\x01\x00\x01")
    wire.sendall(publish_bytes("p/t", b"x", qos=0, properties=b"\x23\x00\x01" + passed))
    first, body = read(wire)
    reader = codec.Reader(body)
    assert (first, reader.text(), reader.properties().forwarded, reader.rest()) == (0x30, "p/t", passed, b"x")


def test_qos_0_needs_no_acknowledgement_and_reaches_a_subscriber_at_qos_1(
    embedded: EmbeddedBroker, wire: socket.socket
) -> None:
    bus = open_bus(embedded.address, Session("listens"), ClientLibrary.PAHO)
    bus.subscribe(["q/0"])
    while not bus.connected:
        bus.poll(0.05)
    wire.sendall(connect_bytes(4, "plain") + publish_bytes("q/0", b"x", qos=0, version=4))
    deadline, came = time.monotonic() + 5, []
    while not came:
        assert time.monotonic() < deadline
        came += bus.poll(0.05)
    assert came[0].payload == b"x"
    bus.close()


def test_an_unusable_filter_is_refused_and_the_others_are_granted(wire: socket.socket) -> None:
    wire.sendall(connect_bytes(5, "filters"))
    read(wire)
    filters = ["a/#/b", "ok/+", "$share/g", "$share/g/ok", "a+", ""]
    body = struct.pack("!H", 5) + b"\0" + b"".join(string(text) + b"\x02" for text in filters)
    wire.sendall(codec.write_packet(0x82, body))
    bad = codec.ReasonCode.FILTER_INVALID
    assert read(wire) == (0x90, struct.pack("!H", 5) + b"\0" + bytes([bad, 1, bad, 1, bad, bad]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=200))
def test_no_bytes_harm_it(embedded: EmbeddedBroker, garbage: bytes) -> None:
    where = (embedded.address.host, embedded.address.port)
    for before in (b"", connect_bytes(5, "garbage"), connect_bytes(4, "garbage")):
        with socket.create_connection(where, timeout=5) as connection:
            connection.sendall(before + garbage)
    with socket.create_connection(where, timeout=5) as connection:
        connection.sendall(connect_bytes(4, "sane") + b"\xc0\x00")
        assert connection.recv(4) == b"\x20\x02\x00\x00"
        assert connection.recv(2) == b"\xd0\x00"
    embedded.check()


def test_every_truncation_of_each_packet_waits_or_is_a_violation() -> None:
    packets = [
        connect_bytes(5, "x", properties=b"\x11\x00\x00\x00\x05"),
        publish_bytes("t", b"payload", properties=b"\x26" + string("k") + string("v")),
        codec.write_packet(0x82, b"\x00\x01\x00" + string("a/+") + b"\x01"),
    ]
    for packet in packets:
        for end in range(len(packet)):
            assert codec.take_packet(bytearray(packet[:end]), 0, 1000) is None
        taken = codec.take_packet(bytearray(packet), 0, 1000)
        assert taken is not None and taken[1] == len(packet)
        readers = {
            1: codec.read_connect,
            3: lambda one: codec.read_publish(one, 5),
            8: lambda one: codec.read_subscribe(one, 5),
        }
        kind, body = taken[0].kind, taken[0].body
        for end in range(len(body) - (7 if kind == 3 else 0)):
            with pytest.raises(codec.ProtocolViolation):
                readers[kind](codec.Packet(kind, taken[0].flags, body[:end]))
        readers[kind](taken[0])
