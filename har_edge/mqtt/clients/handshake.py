"""The first two packets of an MQTT 5 connection: CONNECT from the client, CONNACK from the broker."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import mqtt5

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Session
from har_edge.mqtt.clients.packets import MalformedPacket, read_packet, reason_text
from har_edge.mqtt.clients.transport import NO_LIMIT, other_version, refusal, unanswered, unreachable
from har_edge.timing import CONNECT_TIMEOUT_S

_READ_BYTES = 65536
# The CONNACK of MQTT 3.1.1 has two bytes and no properties (section 3.2). A 3.1.1 broker refuses MQTT 5 with it.
_OLDER_CONNACK = b"\x20\x02"


@dataclass(frozen=True, slots=True)
class ConnackProperties:
    """The content of CONNACK (MQTT 5, section 3.2.2.3), and the bytes that followed it.

    `receive_max` bounds the messages that this client may have in flight, `max_packet_bytes` the size of one packet,
    and `topic_alias_max` the number of aliases. `keepalive_s` 0 stands for no keep-alive.
    """

    session_present: bool
    receive_max: int
    max_packet_bytes: int
    keepalive_s: int
    topic_alias_max: int
    rest: bytes
    sent_bytes: int
    received_bytes: int


def connect_packet(address: Address, session: Session, *, clean: bool) -> bytes:
    """Return the bytes of CONNECT."""
    will = session.will
    return mqtt5.ConnectPacket(
        session.client_id,
        username=address.username,
        password=address.password.encode() if address.password is not None else None,
        clean_start=clean,
        will=mqtt5.Will(will.topic, payload=will.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, retain=True) if will else None,
        keep_alive=session.keepalive_s,
        session_expiry_interval=session.expiry_s,
        receive_max=session.receive_max,
        max_packet_size=session.max_packet_bytes,
    ).write()


def perform_handshake(
    connection: socket.socket,
    address: Address,
    session: Session,
    *,
    clean: bool,
    clock: Callable[[], float] = time.monotonic,
) -> ConnackProperties:
    """Send CONNECT and return what CONNACK says.

    Raises FinalRefusal when the broker refuses this client for good, BrokerError when a later attempt may succeed.
    """
    request = connect_packet(address, session, clean=clean)
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.sendall(request)
        packet, received, size = _first_packet(connection, address, clock)
    except ConnectionError:
        raise unanswered(address) from None
    except TimeoutError:
        raise unanswered(address, closed=False) from None
    except (OSError, MalformedPacket) as error:
        raise BrokerError(unreachable(address, error)) from None
    if not isinstance(packet, mqtt5.ConnAckPacket):
        raise BrokerError(unreachable(address, f"{type(packet).__name__} came instead of CONNACK"))
    code = packet.reason_code
    if code != mqtt5.ConnAckReasonCode.SUCCESS:
        raise refusal(address, int(code), reason_text(code))
    asked = packet.server_keep_alive
    return ConnackProperties(
        session_present=packet.session_present,
        receive_max=packet.receive_max,
        max_packet_bytes=packet.max_packet_size or NO_LIMIT,
        keepalive_s=session.keepalive_s if asked is None else asked,
        topic_alias_max=packet.topic_alias_max or 0,
        rest=bytes(received[size:]),
        sent_bytes=len(request),
        received_bytes=len(received),
    )


def _first_packet(
    connection: socket.socket, address: Address, clock: Callable[[], float]
) -> tuple[mqtt5.Packet, bytearray, int]:
    """Wait for one packet. Return it, all bytes that came, and the size of the packet in bytes."""
    deadline, received = clock() + CONNECT_TIMEOUT_S, bytearray()
    while True:
        connection.settimeout(max(0.001, deadline - clock()))
        piece = connection.recv(_READ_BYTES)
        if not piece:
            raise unanswered(address)
        received += piece
        if received.startswith(_OLDER_CONNACK):
            raise other_version(address)
        with memoryview(received) as view:
            answer = read_packet(view)
        if answer is not None:
            return answer[0], received, answer[1]
