"""MQTT packets as a broker reads and writes them, 3.1.1 and 5, for the embedded broker: pure functions over bytes.

The codec checks what a client sends before it allocates memory for it. The clients have codecs of their own (paho,
mqtt5), which do not read a broker's packets or are not there on every platform. Source: OASIS, MQTT Version 5.0 (2019)
and MQTT Version 3.1.1 (2014); section numbers are those of 5.0.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

V311, V5 = 4, 5


class PacketType(enum.IntEnum):
    """Packet types (MQTT 5, section 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class ReasonCode(enum.IntEnum):
    """Reason codes that the embedded broker uses (MQTT 5, section 2.4)."""

    SUCCESS = 0x00
    WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    MALFORMED = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_VERSION = 0x84
    IDENTIFIER_NOT_VALID = 0x85
    SERVER_BUSY = 0x89
    SHUTTING_DOWN = 0x8B
    TAKEN_OVER = 0x8E
    FILTER_INVALID = 0x8F
    NAME_INVALID = 0x90
    ALIAS_INVALID = 0x94
    TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    QOS_NOT_SUPPORTED = 0x9B


class ProtocolViolation(Exception):
    """Bytes that break the protocol; `code` is the reason code of MQTT 5 for it."""

    def __init__(self, what: str, code: ReasonCode = ReasonCode.MALFORMED) -> None:
        super().__init__(what)
        self.code = code


class Property(enum.IntEnum):
    """Properties that the embedded broker reads or writes (MQTT 5, section 2.2.2.2)."""

    SESSION_EXPIRY = 0x11
    ASSIGNED_CLIENT = 0x12
    RECEIVE_MAX = 0x21
    ALIAS_MAX = 0x22
    ALIAS = 0x23
    MAX_QOS = 0x24
    MAX_PACKET = 0x27


_BYTE = frozenset({0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A})
_TWO = frozenset({0x13, 0x21, 0x22, 0x23})
_FOUR = frozenset({0x02, 0x11, 0x18, 0x27})
_VARIABLE = frozenset({0x0B})
_STRINGS = frozenset({0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F})  # and binary data, of the same form
_PAIRS = frozenset({0x26})
# A broker passes these on with a message (section 3.3.2.3): format, expiry, content type, response, correlation, user.
_FORWARDED = frozenset({0x01, 0x02, 0x03, 0x08, 0x09, 0x26})
_MAX_TOPIC = 4096


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet as it came: its type, the four flags of its first byte, and the bytes after the length."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Connect:
    """The content of a CONNECT packet; a number that the packet leaves out has its default of MQTT 5."""

    version: int
    client_id: str
    clean: bool
    keepalive_s: int
    will_topic: str = ""
    will_payload: bytes = b""
    will_retain: bool = False
    has_will: bool = False
    expiry_s: int = 0
    receive_max: int = 0xFFFF
    max_packet_bytes: int = 2**32
    alias_max: int = 0


@dataclass(frozen=True, slots=True)
class Publish:
    """The content of a PUBLISH packet; `alias` 0 stands for none, `properties` are the bytes to pass on."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int
    alias: int = 0
    properties: bytes = b""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Filters with the quality of service asked for, and whether retained messages are wanted."""

    packet_id: int
    filters: tuple[tuple[str, int, bool], ...]


def take_packet(buffer: bytearray, start: int, limit: int) -> tuple[Packet, int] | None:
    """Return the packet at `start` and the start of the next one, None while it is incomplete. Raises
    ProtocolViolation.
    """
    length, shift, place = 0, 0, start + 1
    while True:
        if place >= len(buffer):
            return None
        byte = buffer[place]
        length |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            break
        if shift > 21:
            raise ProtocolViolation("a length of more than four bytes")
    if place - start + length > limit:
        raise ProtocolViolation(
            f"a packet of {place - start + length} bytes; at most {limit} are taken", ReasonCode.TOO_LARGE
        )
    end = place + length
    if end > len(buffer):
        return None
    return Packet(buffer[start] >> 4, buffer[start] & 0x0F, bytes(memoryview(buffer)[place:end])), end


@dataclass(slots=True)
class Reader:
    """Reads one packet's body from the front."""

    data: bytes
    place: int = 0

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self.data):
            raise ProtocolViolation(f"a packet ends {end - len(self.data)} bytes too early")
        piece, self.place = self.data[self.place : end], end
        return piece

    def byte(self) -> int:
        return self.take(1)[0]

    def two(self) -> int:
        return int(struct.unpack("!H", self.take(2))[0])

    def four(self) -> int:
        return int(struct.unpack("!I", self.take(4))[0])

    def binary(self) -> bytes:
        return self.take(self.two())

    def text(self) -> str:
        try:
            text = self.binary().decode()
        except UnicodeDecodeError:
            raise ProtocolViolation("a string is not UTF-8") from None
        if "\0" in text:
            raise ProtocolViolation("a string holds a null character")
        return text

    def variable(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 21:
                raise ProtocolViolation("a number of more than four bytes")

    def properties(self) -> Properties:
        """Read a block of properties (section 2.2.2)."""
        end = self.variable() + self.place
        if end > len(self.data):
            raise ProtocolViolation("properties end behind their packet")
        found = Properties()
        while self.place < end:
            start, number = self.place, self.variable()
            if number in _BYTE:
                found.numbers[number] = self.byte()
            elif number in _TWO:
                found.numbers[number] = self.two()
            elif number in _FOUR:
                found.numbers[number] = self.four()
            elif number in _VARIABLE:
                self.variable()
            elif number in _STRINGS:
                self.binary()
            elif number in _PAIRS:
                self.binary()
                self.binary()
            else:
                raise ProtocolViolation(f"property {number} is none")
            if number in _FORWARDED:
                found.forwarded += self.data[start : self.place]
        if self.place != end:
            raise ProtocolViolation("properties do not end where they said")
        return found

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.place)


@dataclass(slots=True)
class Properties:
    """Numbers by property, and the bytes of the properties to pass on."""

    numbers: dict[int, int] = field(default_factory=dict)
    forwarded: bytes = b""


def read_connect(packet: Packet) -> Connect:
    """Read CONNECT (section 3.1). Raises ProtocolViolation, with UNSUPPORTED_VERSION for another protocol."""
    reader = Reader(packet.body)
    name, version = reader.text(), reader.byte()
    if name != "MQTT" or version not in (V311, V5):
        raise ProtocolViolation(
            f"protocol {name!r} {version}; 3.1.1 and 5 are spoken here", ReasonCode.UNSUPPORTED_VERSION
        )
    flags, keepalive_s = reader.byte(), reader.two()
    told = reader.properties().numbers if version == V5 else {}
    client_id = reader.text()
    will_topic, will_payload = "", b""
    if flags & 0x04:
        if version == V5:
            reader.properties()
        will_topic, will_payload = check_topic(reader.text()), reader.binary()
    if told.get(Property.RECEIVE_MAX) == 0 or told.get(Property.MAX_PACKET) == 0:
        raise ProtocolViolation("Receive Maximum or Maximum Packet Size is 0", ReasonCode.PROTOCOL_ERROR)
    return Connect(
        version,
        client_id,
        clean=bool(flags & 0x02),
        keepalive_s=keepalive_s,
        will_topic=will_topic,
        will_payload=will_payload,
        will_retain=bool(flags & 0x20),
        has_will=bool(flags & 0x04),
        expiry_s=told.get(Property.SESSION_EXPIRY, 0),
        receive_max=told.get(Property.RECEIVE_MAX, 0xFFFF),
        max_packet_bytes=told.get(Property.MAX_PACKET, 2**32),
        alias_max=told.get(Property.ALIAS_MAX, 0),
    )


def check_topic(topic: str) -> str:
    """Return a topic that a message may have (section 4.7)."""
    if not topic or len(topic) > _MAX_TOPIC or "+" in topic or "#" in topic:
        raise ProtocolViolation(
            f"topic {topic[:80]!r}; expected 1 to {_MAX_TOPIC} characters, none of them + or #", ReasonCode.NAME_INVALID
        )
    return topic


def read_publish(packet: Packet, version: int) -> Publish:
    """Read PUBLISH (section 3.3). Raises ProtocolViolation, for quality of service 2 as well."""
    reader, qos = Reader(packet.body), packet.flags >> 1 & 3
    if qos > 1:
        raise ProtocolViolation("a message at QoS 2; 0 and 1 are taken", ReasonCode.QOS_NOT_SUPPORTED)
    topic, packet_id = reader.text(), reader.two() if qos else 0
    found = reader.properties() if version == V5 else Properties()
    alias = found.numbers.get(Property.ALIAS, 0)
    if topic or not alias:
        check_topic(topic)
    if qos and not packet_id:
        raise ProtocolViolation("packet identifier 0")
    return Publish(topic, reader.rest(), qos, bool(packet.flags & 1), packet_id, alias, found.forwarded)


def read_subscribe(packet: Packet, version: int) -> Subscribe:
    """Read SUBSCRIBE (section 3.8)."""
    reader = Reader(packet.body)
    packet_id = reader.two()
    if version == V5:
        reader.properties()
    filters = []
    while reader.place < len(packet.body):
        text, options = reader.text(), reader.byte()
        # Retain handling 1 (only where the subscription is new) is answered like 0: more than was asked for.
        filters.append((text, min(options & 3, 1), options >> 4 & 3 != 2))
    if packet.flags != 2 or not filters:
        raise ProtocolViolation("SUBSCRIBE without a filter, or with wrong flags", ReasonCode.PROTOCOL_ERROR)
    return Subscribe(packet_id, tuple(filters))


def read_unsubscribe(packet: Packet, version: int) -> tuple[int, list[str]]:
    """Read UNSUBSCRIBE (section 3.10)."""
    reader = Reader(packet.body)
    packet_id = reader.two()
    if version == V5:
        reader.properties()
    filters = []
    while reader.place < len(packet.body):
        filters.append(reader.text())
    if packet.flags != 2 or not filters:
        raise ProtocolViolation("UNSUBSCRIBE without a filter, or with wrong flags", ReasonCode.PROTOCOL_ERROR)
    return packet_id, filters


def read_disconnect(packet: Packet, version: int) -> tuple[int, int | None]:
    """Read DISCONNECT (section 3.14): the reason code, and the session expiry in seconds if it is there."""
    if version == V311 or not packet.body:
        return ReasonCode.SUCCESS, None
    reader = Reader(packet.body)
    code = reader.byte()
    told = reader.properties().numbers if len(packet.body) > 1 else {}
    return code, told.get(Property.SESSION_EXPIRY)


def is_filter(text: str) -> bool:
    """Return whether a text is a topic filter (section 4.7.1) or `$share/<group>/<filter>`."""
    if text.startswith("$share/"):
        _, group, *rest = text.split("/")
        return bool(group) and not set("+#") & set(group) and is_filter("/".join(rest))
    levels = text.split("/")
    whole = all(level in ("+", "#") or not set("+#") & set(level) for level in levels)
    return bool(text) and len(text) <= _MAX_TOPIC and whole and "#" not in levels[:-1]


def write_packet(first: int, body: bytes) -> bytes:
    """Return the bytes of a packet with this first byte and body."""
    head, length = bytearray([first]), len(body)
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def _block(properties: bytes) -> bytes:
    return write_packet(0, properties)[1:]


def write_connack(version: int, present: bool, code: int, properties: bytes = b"") -> bytes:
    """Write CONNACK (section 3.2)."""
    body = bytes([present, code]) + (_block(properties) if version == V5 else b"")
    return write_packet(PacketType.CONNACK << 4, body)


def write_property(name: Property, value: int | str) -> bytes:
    """Write one property."""
    if isinstance(value, str):
        return bytes([name]) + struct.pack("!H", len(value.encode())) + value.encode()
    form = "!B" if name in _BYTE else "!H" if name in _TWO else "!I"
    return bytes([name]) + struct.pack(form, value)


def write_publish(
    version: int, topic: str, payload: bytes, qos: int, packet_id: int, *, retain: bool, again: bool, properties: bytes
) -> bytes:
    """Write PUBLISH (section 3.3)."""
    name = topic.encode()
    head = struct.pack("!H", len(name)) + name + (struct.pack("!H", packet_id) if qos else b"")
    head += _block(properties) if version == V5 else b""
    return write_packet(PacketType.PUBLISH << 4 | again << 3 | qos << 1 | retain, head + payload)


def write_puback(version: int, packet_id: int, code: int = ReasonCode.SUCCESS) -> bytes:
    """Write PUBACK (section 3.4)."""
    told = bytes([code]) if version == V5 and code else b""
    return write_packet(PacketType.PUBACK << 4, struct.pack("!H", packet_id) + told)


def write_suback(version: int, packet_id: int, codes: list[int]) -> bytes:
    """Write SUBACK (section 3.9); MQTT 3.1.1 knows one failure code only."""
    told = [code if version == V5 or code < 0x80 else 0x80 for code in codes]
    return write_packet(PacketType.SUBACK << 4, struct.pack("!H", packet_id) + b"\0" * (version == V5) + bytes(told))


def write_unsuback(version: int, packet_id: int, codes: list[int]) -> bytes:
    """Write UNSUBACK (section 3.11), which has no reason codes before MQTT 5."""
    told = b"\0" + bytes(codes) if version == V5 else b""
    return write_packet(PacketType.UNSUBACK << 4, struct.pack("!H", packet_id) + told)


def write_disconnect(code: int) -> bytes:
    """Write DISCONNECT (section 3.14); a broker sends it with MQTT 5 only."""
    return write_packet(PacketType.DISCONNECT << 4, bytes([code]))
