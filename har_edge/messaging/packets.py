"""MQTT 5 packets from and to bytes, by the mqtt5 library: what it may raise, and its reason codes in words."""

from __future__ import annotations

import enum

import mqtt5

from har_edge.messaging.bus import Receipt


class Malformed(Exception):
    """Bytes that are no MQTT 5 packet."""


def read_packet(data: memoryview) -> tuple[mqtt5.Packet, int] | None:
    """Return the first packet in the data and its size, None while it is incomplete; raises Malformed."""
    try:
        return mqtt5.read(data)
    except IndexError:
        return None
    except BaseException as error:
        raise _malformed(error) from None


def take_packets(buffer: bytearray) -> tuple[list[mqtt5.Packet], Malformed | None]:
    """Take all whole packets off the front of a buffer; also return what is wrong with the bytes after them."""
    packets, start, wrong = [], 0, None
    with memoryview(buffer) as view:
        end = len(view)
        try:  # around the loop: this is the hot path
            while start < end:
                with view[start:] as rest:
                    packet, size = mqtt5.read(rest)
                packets.append(packet)
                start += size
        except IndexError:
            pass  # the rest of this packet is still on its way
        except BaseException as error:
            wrong = _malformed(error)
    del buffer[:start]
    return packets, wrong


def first_bytes(buffer: bytearray) -> int:
    """Return the size of the first packet in a buffer, as its head says (MQTT 5, section 1.5.5); 0: not known yet."""
    remaining = 0
    for place, byte in enumerate(buffer[1:5]):
        remaining |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return 2 + place + remaining
    return 0


def _malformed(error: BaseException) -> Malformed:
    """Return what an error of the library says of the bytes; raise it again when it says nothing of them.

    Its native code panics on strings that are not UTF-8, and a panic is no Exception.
    """
    if isinstance(error, ValueError):
        return Malformed(str(error))
    if type(error).__name__ == "PanicException":
        return Malformed("a string is not UTF-8")
    raise error


def words(code: enum.IntEnum) -> str:
    """Return a reason code as a person reads it."""
    return code.name.lower().replace("_", " ")


def receipt_of(code: mqtt5.PubAckReasonCode) -> Receipt:
    """Return what a PUBACK says became of the message."""
    if code == mqtt5.PubAckReasonCode.SUCCESS:
        return Receipt.SAFE
    return Receipt.UNHEARD if code == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS else Receipt.REFUSED


def would_block(error: OSError) -> bool:
    """Tell whether a socket says `not now`; TLS's words go by class name, so that nobody need import ssl."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in {"SSLWantReadError", "SSLWantWriteError"}
