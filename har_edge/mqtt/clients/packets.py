"""MQTT 5 packets from and to bytes, by the mqtt5 library, with its errors and reason codes in words."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import mqtt5

from har_edge.mqtt.bus import OnOutcome, PublishOutcome
from har_edge.mqtt.clients.transport import read_share

QOS = mqtt5.QoS.AT_LEAST_ONCE
# Larger pieces are written as they are: a copy to join them with their neighbours would cost more.
LARGE_BYTES = 16 * 1024


class MalformedPacket(Exception):
    """Bytes that are no MQTT 5 packet."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish, kept until the broker has it."""

    topic: str
    payload: bytes
    retain: bool
    on_outcome: OnOutcome | None


def write_publish(
    publication: Publication, packet_id: int, topic: str, alias: int | None, *, duplicate: bool
) -> list[bytes]:
    """Return the bytes of a PUBLISH packet in pieces, under the given topic name; a large payload is not copied."""
    payload = publication.payload
    apart = len(payload) >= LARGE_BYTES
    packet = mqtt5.PublishPacket(
        topic,
        b"" if apart else payload,
        qos=QOS,
        retain=publication.retain,
        packet_id=packet_id,
        duplicate=duplicate,
        topic_alias=alias,
    ).write()
    return [_lengthened(packet, len(payload)), payload] if apart else [packet]


def retain_handling(text: str) -> mqtt5.RetainHandling:
    """Return which retained messages a subscription asks for: none for a member of a shared subscription.

    A member must get none anyway (MQTT 5, section 4.8.2), but Mosquitto 2.0.11 sends retained messages to some members.
    """
    return mqtt5.RetainHandling.SEND_ALWAYS if read_share(text) is None else mqtt5.RetainHandling.SEND_NEVER


def _lengthened(packet: bytes, count: int) -> bytes:
    """Return the packet with a remaining length that counts `count` more bytes (MQTT 5, sections 1.5.5 and 2.1.4)."""
    end = 1
    while packet[end] & 0x80:
        end += 1
    rest = packet[end + 1 :]
    head, remaining = bytearray(packet[:1]), len(rest) + count
    while remaining >= 0x80:
        head.append(remaining & 0x7F | 0x80)
        remaining >>= 7
    head.append(remaining)
    return bytes(head) + rest


def read_packet(data: memoryview) -> tuple[mqtt5.Packet, int] | None:
    """Return the first packet in the data and its size, None while it is incomplete; raises MalformedPacket."""
    try:
        return mqtt5.read(data)
    except IndexError:
        return None
    except BaseException as error:
        raise _malformed(error) from None


def take_packets(view: memoryview) -> tuple[list[mqtt5.Packet | UnlistedPubAck], int, MalformedPacket | None]:
    """Return all complete packets at the front of these bytes, how many bytes they have, and the error in the bytes
    after them, if any.
    """
    packets: list[mqtt5.Packet | UnlistedPubAck] = []
    start, end, wrong = 0, len(view), None
    while start < end and wrong is None:
        try:  # around the loop: this is the hot path
            while start < end:
                packet, size = mqtt5.read(view[start:] if start else view)
                packets.append(packet)
                start += size
        except IndexError:
            break  # the rest of this packet is still on its way
        except BaseException as error:
            odd = _odd_puback(view[start:])
            if odd is None:
                wrong = _malformed(error)
            else:
                packets.append(odd[0])
                start += odd[1]
    return packets, start, wrong


@dataclass(frozen=True, slots=True)
class UnlistedPubAck:
    """A PUBACK with a reason code that section 3.4.2.1 does not list: Mosquitto says 0x95 for a size."""

    packet_id: int
    code: int


def _odd_puback(view: memoryview) -> tuple[UnlistedPubAck, int] | None:
    """Return a complete PUBACK with a failure code that the library does not know, None for anything else."""
    whole = len(view) >= 5 and view[0] == 0x40 and 3 <= view[1] < 0x80 and len(view) >= 2 + view[1]
    if not whole or view[4] < 0x80:
        return None
    return UnlistedPubAck(view[2] << 8 | view[3], view[4]), 2 + view[1]


def first_bytes(buffer: bytes | bytearray | memoryview) -> int:
    """Return the size in bytes of the first packet in a buffer (section 1.5.5), 0 while its head is incomplete."""
    remaining = 0
    for place, byte in enumerate(buffer[1:5]):
        remaining |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return 2 + place + remaining
    return 0


def _malformed(error: BaseException) -> MalformedPacket:
    """Return what the library's error says about the bytes. Raise the error again when it has another cause.

    The library's native code panics on strings that are not UTF-8, and a panic is no Exception.
    """
    if isinstance(error, ValueError):
        return MalformedPacket(str(error))
    if type(error).__name__ == "PanicException":
        return MalformedPacket("a string is not UTF-8")
    raise error


def reason_text(code: enum.IntEnum) -> str:
    """Return a reason code as a person reads it."""
    return code.name.lower().replace("_", " ")


def outcome_of(code: mqtt5.PubAckReasonCode) -> PublishOutcome:
    """Return what became of a message, as its PUBACK says."""
    if code == mqtt5.PubAckReasonCode.SUCCESS:
        return PublishOutcome.ACKED
    return (
        PublishOutcome.NO_SUBSCRIBERS
        if code == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
        else PublishOutcome.REFUSED
    )


def would_block(error: OSError) -> bool:
    """Return whether a socket has nothing to read or no room to write now. TLS errors go by class name, without import
    ssl.
    """
    return isinstance(error, BlockingIOError) or type(error).__name__ in {"SSLWantReadError", "SSLWantWriteError"}
