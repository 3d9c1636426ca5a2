"""MQTT 5 bus on the mqtt5 codec: packets are read and written in native code, whole socket buffers at a time.

mqtt5 (a maintained library with a Rust core) turns bytes into packets and back; this module keeps the session:
connection, acknowledgements, resending, keep-alive (MQTT 5, sections 4.1, 4.4, 3.1.2.10). One thread, no callbacks
from elsewhere. Reading and writing many packets a system call is what makes it several times faster than paho.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mqtt5

from har_edge.errors import BrokerError
from har_edge.messaging.address import Address
from har_edge.messaging.bus import Delivery, OnReceipt, Receipt, Session, TakenOver, Traffic
from har_edge.messaging.link import (
    CONNECT_TIMEOUT_S,
    AckOrder,
    Backoff,
    FinalRefusal,
    open_socket,
    refused,
    unreachable,
)
from har_edge.messaging.status import GRACE_S, taken_by_younger

_log = logging.getLogger(__name__)
_QOS = mqtt5.QoS.AT_LEAST_ONCE
_READ_BYTES = 256 * 1024
_READS_A_POLL = 8
_MAX_PACKET_ID = 65535
_CLOSE_TIMEOUT_S = 2.0
_FAILURE = 0x80
_CREDENTIALS = frozenset({0x86, 0x87})  # bad user name or password, not authorized
# Refusals that waiting may mend: server unavailable, server busy, connection rate exceeded. All others end the client.
_PASSING = frozenset({0x88, 0x89, 0x9F})


@dataclass(slots=True)
class _Publication:
    topic: str
    payload: bytes
    retain: bool
    receipt: OnReceipt | None
    sent_once: bool = False


class _Lost(Exception):
    """The connection is gone; reconnect."""


class NativeBus:
    """A Bus over one MQTT 5 connection; see messaging/bus.py for the contract.

    The first connection is made by `connect`; later ones by `poll`, with jittered waits.
    """

    def __init__(
        self,
        address: Address,
        session: Session,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._address, self._session, self._clock = address, session, clock
        self._backoff = Backoff(rng or random.Random())
        self._traffic = Traffic()
        self._socket: socket.socket | None = None
        self._generation = 0
        self._filters: list[str] = []
        self._read = bytearray()
        self._write: deque[bytes | memoryview] = deque()
        self._waiting: deque[_Publication] = deque()
        self._inflight: dict[int, _Publication] = {}
        self._next_id = 0
        self._send_quota = _MAX_PACKET_ID
        self._acks = AckOrder()
        self._leftover = False  # bytes that came along with CONNACK
        self._subscribing: dict[int, tuple[str, ...]] = {}
        self._heard_at = self._spoke_at = self._retry_at = 0.0
        self._clean = session.clean_start

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def unsent(self) -> int:
        return len(self._waiting) + len(self._inflight)

    @property
    def connected(self) -> bool:
        return self._socket is not None and not self._subscribing

    def connect(self) -> None:
        """Connect for the first time; raises BrokerError when there is no broker or it refuses."""
        self._open()

    def subscribe(self, filters: Sequence[str]) -> None:
        self._filters += filters
        if self._socket is not None:
            self._send_subscribe(tuple(filters))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, receipt: OnReceipt | None = None) -> None:
        self._traffic.published += 1
        self._waiting.append(_Publication(topic, payload, retain, receipt))
        self._send_waiting()

    def acknowledge(self, delivery: Delivery) -> None:
        generation, packet_id = delivery.token
        if generation != self._generation or self._socket is None:
            return
        self._write.extend(mqtt5.PubAckPacket(ready).write() for ready in self._acks.done(packet_id))

    def poll(self, timeout_s: float) -> Sequence[Delivery]:
        if self._socket is None and not self._reopen(timeout_s):
            return ()
        deliveries: list[Delivery] = []
        try:
            self._flush()
            if self._wait(timeout_s):
                self._receive(deliveries)
            self._keep_alive()
            self._send_waiting()
            self._flush()
        except _Lost as loss:
            self._drop(str(loss))
        except TakenOver:
            self._shut()
            raise
        return deliveries

    def close(self, *, forget: bool = False) -> None:
        if self._socket is None:
            return
        deadline = self._clock() + _CLOSE_TIMEOUT_S
        try:
            while (self.unsent or self._write) and self._clock() < deadline:
                self._flush()
                if self._wait(0.05):
                    self._receive([])  # what comes now stays unacknowledged, so the broker keeps it
                self._send_waiting()
            expiry = 0 if forget else self._session.expiry_s
            self._write.append(mqtt5.DisconnectPacket(session_expiry_interval=expiry).write())
            self._flush()
        except (_Lost, TakenOver, BrokerError) as loss:
            _log.info("closing a lost connection: %s", loss)
        finally:
            self._shut()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        connection = open_socket(self._address)
        try:
            present = self._handshake(connection)
        except (OSError, ValueError, IndexError) as error:
            connection.close()
            raise BrokerError(unreachable(self._address, error)) from None
        except BrokerError:
            connection.close()
            raise
        connection.setblocking(False)
        self._socket, self._clean = connection, False
        self._generation += 1
        self._heard_at = self._spoke_at = self._clock()
        self._acks.clear()
        self._subscribing.clear()
        self._backoff.reset()
        if self._filters:
            self._send_subscribe(tuple(self._filters))
        for packet_id, publication in self._inflight.items():
            self._send_publish(packet_id, publication, duplicate=present and publication.sent_once)
        self._send_waiting()

    def _handshake(self, connection: socket.socket) -> bool:
        """Send CONNECT, await CONNACK; return whether the broker kept the session."""
        session, will = self._session, self._session.will
        connect = mqtt5.ConnectPacket(
            session.client_id,
            username=self._address.username,
            password=self._address.password.encode() if self._address.password is not None else None,
            clean_start=self._clean,
            will=mqtt5.Will(will.topic, payload=will.payload, qos=_QOS, retain=True) if will else None,
            keep_alive=session.keepalive_s,
            session_expiry_interval=session.expiry_s,
            receive_max=session.receive_max,
            max_packet_size=session.max_packet_bytes,
        ).write()
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.sendall(connect)
        self._traffic.sent_bytes += len(connect)
        received = bytearray()
        self._read.clear()
        while True:
            piece = connection.recv(_READ_BYTES)
            if not piece:
                raise BrokerError(unreachable(self._address, "it closed the connection without an answer to CONNECT"))
            received += piece
            try:
                with memoryview(received) as view:
                    packet, size = mqtt5.read(view)
                break
            except IndexError:
                continue
        self._traffic.received_bytes += size
        self._read += received[size:]
        self._leftover = bool(self._read)
        if not isinstance(packet, mqtt5.ConnAckPacket):
            raise BrokerError(unreachable(self._address, f"{type(packet).__name__} came instead of CONNACK"))
        code = packet.reason_code
        if code != mqtt5.ConnAckReasonCode.SUCCESS:
            text = refused(self._address, _words(code), credentials=int(code) in _CREDENTIALS)
            raise BrokerError(text) if int(code) in _PASSING else FinalRefusal(text)
        self._send_quota = packet.receive_max
        return packet.session_present

    def _connect_beside(self, session: Session) -> NativeBus:
        bus = NativeBus(self._address, session)
        bus.connect()
        return bus

    def _reopen(self, timeout_s: float) -> bool:
        wait_s = self._retry_at - self._clock()
        if wait_s > 0:
            select.select([], [], [], min(wait_s, timeout_s))
            return False
        try:
            if self._session.claim is not None and taken_by_younger(self._session.claim, self._connect_beside):
                raise TakenOver(self._session.client_id)
            self._open()
        except FinalRefusal:
            raise
        except BrokerError as error:
            self._retry_at = self._clock() + self._backoff.next_s()
            _log.warning("%s; trying again", error)
            return False
        self._traffic.reconnects += 1
        _log.warning("connected to %s again", self._address.url)
        return True

    def _drop(self, reason: str) -> None:
        _log.warning("lost the broker at %s: %s", self._address.url, reason)
        self._shut()
        grace_s = GRACE_S if self._session.claim is not None else 0.0
        self._retry_at = self._clock() + max(grace_s, self._backoff.next_s())

    def _shut(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._read.clear()
        self._write.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_subscribe(self, filters: tuple[str, ...]) -> None:
        packet_id = self._take_id()
        self._subscribing[packet_id] = filters
        topics = [mqtt5.TopicFilter(text, max_qos=_QOS) for text in filters]
        self._write.append(mqtt5.SubscribePacket(packet_id, topics).write())

    def _send_waiting(self) -> None:
        while self._waiting and self._socket is not None and len(self._inflight) < self._send_quota:
            publication = self._waiting.popleft()
            packet_id = self._take_id()
            self._inflight[packet_id] = publication
            self._send_publish(packet_id, publication, duplicate=False)

    def _send_publish(self, packet_id: int, publication: _Publication, *, duplicate: bool) -> None:
        publication.sent_once = True
        packet = mqtt5.PublishPacket(
            publication.topic,
            publication.payload,
            qos=_QOS,
            retain=publication.retain,
            packet_id=packet_id,
            duplicate=duplicate,
        )
        self._write.append(packet.write())

    def _take_id(self) -> int:
        while True:
            self._next_id = self._next_id % _MAX_PACKET_ID + 1
            if self._next_id not in self._inflight and self._next_id not in self._subscribing:
                return self._next_id

    def _flush(self) -> None:
        """Write as much as the socket takes, many packets a system call."""
        while self._write and self._socket is not None:
            data = self._write[0] if len(self._write) == 1 else b"".join(self._write)
            self._write.clear()
            try:
                sent = self._socket.send(data)
            except OSError as error:
                if not _would_block(error):
                    raise _Lost(f"cannot send: {error}") from None
                sent = 0
            self._traffic.sent_bytes += sent
            self._spoke_at = self._clock()
            if sent < len(data):
                self._write.append(memoryview(data)[sent:])
                return

    # --- receiving --------------------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or the timeout; True when there is."""
        connection = self._socket
        assert connection is not None
        pending = getattr(connection, "pending", None)  # what TLS has decrypted already
        if self._leftover or (pending is not None and pending()):
            timeout_s = 0.0
        timeout_s = min(timeout_s, self._session.keepalive_s / 4)
        readable, writable, _ = select.select([connection], [connection] if self._write else [], [], timeout_s)
        if writable:
            self._flush()
            if not readable and timeout_s:
                readable, _, _ = select.select([connection], [], [], 0 if self._write else timeout_s)
        return bool(readable or self._leftover or (pending is not None and pending()))

    def _receive(self, deliveries: list[Delivery]) -> None:
        for _ in range(_READS_A_POLL):
            if self._socket is None:
                return
            try:
                piece = self._socket.recv(_READ_BYTES)
            except OSError as error:
                if not _would_block(error):
                    raise _Lost(f"cannot receive: {error}") from None
                piece = None
            if piece == b"":
                self._parse(deliveries)
                raise _Lost("it closed the connection")
            if piece:
                self._traffic.received_bytes += len(piece)
                self._heard_at = self._clock()
                self._read += piece
            self._parse(deliveries)
            if piece is None or len(piece) < _READ_BYTES:
                return

    def _parse(self, deliveries: list[Delivery]) -> None:
        start, end, self._leftover = 0, len(self._read), False
        try:
            with memoryview(self._read) as view:
                while start < end:
                    with view[start:] as rest:
                        packet, size = mqtt5.read(rest)
                    start += size
                    self._handle(packet, deliveries)
        except IndexError:
            pass  # the rest of this packet is still on its way
        except ValueError as error:
            raise _Lost(f"it sent a malformed packet: {error}") from None
        finally:
            del self._read[:start]
        if len(self._read) > self._session.max_packet_bytes:
            raise _Lost(f"it is sending a packet of more than {self._session.max_packet_bytes} bytes")

    def _handle(self, packet: mqtt5.Packet, deliveries: list[Delivery]) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            self._traffic.received += 1
            packet_id = packet.packet_id or 0
            if packet.qos == _QOS:
                self._acks.arrived(packet_id)
            token = (self._generation if packet.qos == _QOS else 0, packet_id)
            deliveries.append(Delivery(packet.topic, packet.payload or b"", token, packet.retain, packet.duplicate))
        elif isinstance(packet, mqtt5.PubAckPacket):
            publication = self._inflight.pop(packet.packet_id, None)
            if publication is not None and publication.receipt is not None:
                publication.receipt(_receipt(packet.reason_code))
        elif isinstance(packet, mqtt5.SubAckPacket):
            filters = self._subscribing.pop(packet.packet_id, ())
            for text, code in zip(filters, packet.reason_codes, strict=False):
                if int(code) >= _FAILURE:
                    raise BrokerError(
                        f"the broker at {self._address.url} refused the subscription to {text}: {_words(code)}; "
                        "check what its access list permits this user"
                    )
        elif isinstance(packet, mqtt5.DisconnectPacket):
            if packet.reason_code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER:
                raise TakenOver(self._session.client_id)
            raise _Lost(f"it disconnected this client: {_words(packet.reason_code)}")

    def _keep_alive(self) -> None:
        now, keepalive_s = self._clock(), self._session.keepalive_s
        if now - self._heard_at > 1.5 * keepalive_s:
            raise _Lost(f"it has been silent for {now - self._heard_at:.0f} s")
        if now - max(self._spoke_at, self._heard_at - keepalive_s) > keepalive_s / 2:
            self._write.append(mqtt5.PingReqPacket().write())
            self._spoke_at = now


def _would_block(error: OSError) -> bool:
    # TLS has its own words for "not now"; named by class, so that a bus without TLS need not import ssl.
    return isinstance(error, BlockingIOError) or type(error).__name__ in {"SSLWantReadError", "SSLWantWriteError"}


def _words(code: object) -> str:
    return str(code).rpartition(".")[2].lower().replace("_", " ")


def _receipt(code: mqtt5.PubAckReasonCode) -> Receipt:
    if code == mqtt5.PubAckReasonCode.SUCCESS:
        return Receipt.SAFE
    return Receipt.UNHEARD if code == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS else Receipt.REFUSED
