"""MQTT 5 bus on the mqtt5 codec: native code reads and writes packets, whole socket buffers at a time.

mqtt5, a maintained library with a Rust core, turns bytes into packets and back. This module keeps the session:
connection, acknowledgements, resending, keep-alive (MQTT 5, sections 4.1, 4.4, 3.1.2.10). It has one thread and no
callbacks from elsewhere. It moves many packets in each system call, which makes it several times faster than paho.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import time
from collections.abc import Callable, Sequence

import mqtt5

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import BusTraffic, Delivery, OnOutcome, PublishOutcome, Session, TakenOver, Waits
from har_edge.mqtt.clients.byte_queues import READ_BYTES, ReadBuffer, WriteQueue
from har_edge.mqtt.clients.handshake import perform_handshake
from har_edge.mqtt.clients.packets import (
    QOS,
    Publication,
    UnlistedPubAck,
    first_bytes,
    outcome_of,
    reason_text,
    retain_handling,
    take_packets,
)
from har_edge.mqtt.clients.publications import PublicationQueue
from har_edge.mqtt.clients.reconnect import Reconnector
from har_edge.mqtt.clients.stale_subscriptions import StaleSubscriptions
from har_edge.mqtt.clients.transport import (
    AckOrder,
    limit_below_need,
    open_socket,
    publish_bytes,
    refused_as_large,
    stale_message,
    widen_send_buffer,
)
from har_edge.timing import CLOSE_TIMEOUT_S

_log = logging.getLogger(__name__)
_READ_A_POLL = 8 * READ_BYTES
# The kernel wakes this process for a large packet when so many bytes are there. Without it, a slow link would wake the
# process for every segment, hundreds of times a packet. The bound is low enough that a slow link does not seem dead.
_WAKE_BYTES = 64 * 1024
_LINGER_S = 0.5
_FAILURE = 0x80


class _ConnectionLost(Exception):
    """The connection has ended; the bus reconnects."""


class NativeBus:
    """A Bus over one MQTT 5 connection; mqtt/bus.py states the contract.

    `connect` opens the first connection. `poll` opens later ones, after jittered waits.
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
        self._reconnector = Reconnector(address, session, clock, rng or random.Random(), self._connect_beside)
        self._traffic = BusTraffic()
        self._socket: socket.socket | None = None
        self._generation = 0
        self._filters: list[str] = []
        self._read, self._write, self._wake_bytes = ReadBuffer(), WriteQueue(), 1
        self._subscribing: dict[int, tuple[str, ...]] = {}
        self._publications = PublicationQueue(self._write, self._subscribing)
        self._keepalive_s, self._session_present = session.keepalive_s, False  # from CONNACK
        self._acks = AckOrder()
        self._leftover = False  # bytes that came along with CONNACK
        self._stale = StaleSubscriptions()
        self._heard_at = self._spoke_at = 0.0
        self._clean = session.clean_start

    @property
    def traffic(self) -> BusTraffic:
        return self._traffic

    @property
    def unsent(self) -> int:
        return len(self._publications)

    @property
    def connected(self) -> bool:
        return self._socket is not None and not self._subscribing

    @property
    def open(self) -> bool:
        return self._socket is not None

    def waits(self) -> Waits | None:
        if self._leftover or self._publications.refused or self._decrypted():
            return None
        sockets = () if self._socket is None else (self._socket,)
        return Waits(sockets, sockets if self._write else ())

    def connect(self) -> None:
        """Connect for the first time. Raises BrokerError when there is no broker or it refuses."""
        self._open()

    def subscribe(self, filters: Sequence[str]) -> None:
        self._filters += filters
        self._stale.want(filters)
        if self._socket is not None:
            self._send_subscribe(tuple(filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._filters = [text for text in self._filters if text not in filters]
        if self._socket is not None:
            self._write.append(mqtt5.UnsubscribePacket(self._publications.take_id(), list(filters)).write())

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        self._traffic.published += 1
        self._publications.append(Publication(topic, payload, retain, on_outcome))
        self._send_waiting()

    def acknowledge(self, delivery: Delivery) -> None:
        generation, packet_id = delivery.token
        if generation != self._generation or self._socket is None:
            return
        self._write.extend(mqtt5.PubAckPacket(ready).write() for ready in self._acks.done(packet_id))

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        if self._socket is None and not self._reopen(timeout_s):
            return ()
        deliveries: list[Delivery] = []
        try:
            self._flush()
            if most_bytes == 0:
                self._heard_at = self._clock()  # a client that reads nothing cannot know that the broker is silent
            elif self._wait(timeout_s):
                self._receive(deliveries, min(most_bytes or _READ_A_POLL, _READ_A_POLL))
            self._keep_alive()
            self._send_waiting()
            self._flush()
            self._publications.settle()
        except _ConnectionLost as loss:
            self._drop(str(loss))
        except TakenOver:
            self._shut()
            raise
        return deliveries

    def close(self, *, forget: bool = False) -> None:
        if self._socket is None:
            return
        deadline = self._clock() + CLOSE_TIMEOUT_S
        try:
            while (self._publications.open or self._write) and self._clock() < deadline:
                self._flush()
                if (self._publications.in_flight or self._write) and self._wait(0.05):
                    self._receive([])  # what comes now stays unacknowledged, so the broker keeps it
                self._send_waiting()
            self._publications.settle()
            expiry = 0 if forget else self._session.expiry_s
            self._write.append(mqtt5.DisconnectPacket(session_expiry_interval=expiry).write())
            self._flush()
            self._linger(self._clock() + _LINGER_S)
        except (_ConnectionLost, TakenOver, BrokerError, OSError) as loss:
            _log.info("closing a lost connection: %s", loss)
        finally:
            self._shut()

    def _linger(self, deadline: float) -> None:
        """Read until the broker has closed: closing with unread data would reset the connection before DISCONNECT
        arrives.
        """
        connection = self._socket
        assert connection is not None
        while not self._write and (left_s := deadline - self._clock()) > 0:
            if not (select.select([connection], [], [], left_s)[0] and self._read_piece() != 0):
                return
            self._read.clear()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        connection = open_socket(self._address)
        try:
            welcome = perform_handshake(connection, self._address, self._session, clean=self._clean, clock=self._clock)
        except BrokerError:
            connection.close()
            raise
        if welcome.max_packet_bytes < self._session.sends_bytes:
            connection.close()
            raise limit_below_need(self._address, welcome.max_packet_bytes, self._session.sends_bytes)
        widen_send_buffer(connection, self._session.sends_bytes)
        connection.setblocking(False)
        self._socket, self._clean, self._wake_bytes = connection, False, 1
        self._read.put(welcome.rest)
        self._leftover = bool(welcome.rest)
        self._traffic.sent_bytes += welcome.sent_bytes
        self._traffic.received_bytes += welcome.received_bytes
        self._keepalive_s, self._session_present = welcome.keepalive_s, welcome.session_present
        self._publications.connected(
            receive_max=welcome.receive_max,
            packet_bytes=welcome.max_packet_bytes,
            alias_max=welcome.topic_alias_max,
            session_present=welcome.session_present,
        )
        self._generation += 1
        self._heard_at = self._spoke_at = self._clock()
        self._reconnector.opened()
        self._acks.clear()
        self._subscribing.clear()
        if self._filters:
            self._send_subscribe(tuple(self._filters))
        self._send_waiting()

    def _connect_beside(self, session: Session) -> NativeBus:
        bus = NativeBus(self._address, session)
        bus.connect()
        return bus

    def _reopen(self, timeout_s: float) -> bool:
        if not self._reconnector.attempt(timeout_s, self._open):
            return False
        self._traffic.reconnects += 1
        self._traffic.forgotten += not self._session_present
        return True

    def _drop(self, reason: str) -> None:
        self._shut()
        self._reconnector.lost(reason)

    def _shut(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._read.clear()
        self._write.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_subscribe(self, filters: tuple[str, ...]) -> None:
        packet_id = self._publications.take_id()
        self._subscribing[packet_id] = filters
        # A delivery shall carry the retain flag only where the message was stored; mqtt5's default is the flag "as
        # published" (MQTT 5, section 3.8.3.1).
        topics = [
            mqtt5.TopicFilter(text, max_qos=QOS, retain_as_published=False, retain_handling=retain_handling(text))
            for text in filters
        ]
        self._write.append(mqtt5.SubscribePacket(packet_id, topics).write())

    def _send_waiting(self) -> None:
        if self._socket is not None:
            self._publications.send()

    def _flush(self) -> None:
        """Write as much as the socket accepts, many packets in each system call."""
        if not self._write or self._socket is None:
            return
        try:
            sent = self._write.flush(self._socket, tls=self._address.tls)
        except OSError as error:
            raise _ConnectionLost(f"cannot send: {error}") from None
        if sent:
            self._traffic.sent_bytes += sent
            self._spoke_at = self._clock()

    # --- receiving --------------------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> bool:
        """Wait until there is something to read, or until the timeout; return whether there is."""
        connection = self._socket
        assert connection is not None
        here = self._leftover or self._decrypted()
        if here:
            timeout_s = 0.0
        elif self._keepalive_s:
            timeout_s = min(timeout_s, self._keepalive_s / 4)
        readable, writable, _ = select.select([connection], [connection] if self._write else [], [], timeout_s)
        if writable:
            self._flush()
            if not readable and timeout_s:
                readable, _, _ = select.select([connection], [], [], 0 if self._write else timeout_s)
        return bool(readable or here)

    def _decrypted(self) -> bool:
        """Return whether TLS holds decrypted bytes, which `select` does not see."""
        pending = getattr(self._socket, "pending", None)
        return pending is not None and pending() > 0

    def _receive(self, deliveries: list[Delivery], most_bytes: int = _READ_A_POLL) -> None:
        read, before = self._traffic.received_bytes, self._traffic.received_bytes
        while self._socket is not None and read - before < most_bytes:
            size = self._read_piece(most_bytes - (read - before))
            read = self._traffic.received_bytes
            self._parse(deliveries)
            if size == 0:
                raise _ConnectionLost("it closed the connection")
            # TLS gives a record of 16 KiB at a time, so there a short piece does not mean that this was all.
            if size is None or not (self._read.more or self._address.tls):
                return

    def _read_piece(self, most_bytes: int = READ_BYTES) -> int | None:
        """Read once into the buffer and return the number of bytes: None when none are there yet, 0 at the end."""
        assert self._socket is not None
        try:
            size = self._read.read(self._socket, most_bytes)
        except OSError as error:
            raise _ConnectionLost(f"cannot receive: {error}") from None
        if size:
            self._traffic.received_bytes += size
            self._heard_at = self._clock()
        return size

    def _parse(self, deliveries: list[Delivery]) -> None:
        self._leftover = False
        view = self._read.view
        missing = first_bytes(view) - len(view)
        if 0 < missing < self._session.max_packet_bytes:  # of a large packet only a part is here
            self._wake_at(min(missing, _WAKE_BYTES))
            return
        self._wake_at(1)
        packets, size, wrong = take_packets(view)
        self._read.take(size)
        for packet in packets:
            self._handle(packet, deliveries)
        if wrong is not None:
            raise _ConnectionLost(f"it sent a malformed packet: {wrong}")
        if len(self._read) > self._session.max_packet_bytes:
            raise _ConnectionLost(f"it is sending a packet of more than {self._session.max_packet_bytes} bytes")

    def _wake_at(self, size: int) -> None:
        """Let `select` report the socket as readable when it holds so many bytes (socket(7), SO_RCVLOWAT)."""
        if size != self._wake_bytes and self._socket is not None and not self._address.tls:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._wake_bytes = size

    def _handle(self, packet: mqtt5.Packet | UnlistedPubAck, deliveries: list[Delivery]) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            self._traffic.received += 1
            packet_id = packet.packet_id or 0
            if packet.qos == QOS:
                self._acks.arrived(packet_id)
            token = (self._generation if packet.qos == QOS else 0, packet_id)
            delivery = Delivery(packet.topic, packet.payload or b"", token, packet.retain, packet.duplicate)
            if self._session.expiry_s and self._filters and self._stale.is_stale(packet.topic):
                self._put_away(delivery)
            else:
                deliveries.append(delivery)
        elif isinstance(packet, mqtt5.PubAckPacket):
            publication = self._publications.acknowledged(packet.packet_id)
            if publication is not None and publication.on_outcome is not None:
                publication.on_outcome(outcome_of(packet.reason_code))
        elif isinstance(packet, UnlistedPubAck):
            self._refuse(self._publications.acknowledged(packet.packet_id), packet.code)
        elif isinstance(packet, mqtt5.SubAckPacket):
            filters = self._subscribing.pop(packet.packet_id, ())
            for text, code in zip(filters, packet.reason_codes, strict=False):
                if int(code) >= _FAILURE:
                    raise BrokerError(
                        f"the broker at {self._address.url} refused the subscription to {text}: {reason_text(code)}; "
                        "check what its access list permits this user"
                    )
        elif isinstance(packet, mqtt5.DisconnectPacket):
            taken = packet.reason_code == mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER
            if taken and self._session.lease is None:  # else the lease says whether whoever took it may have it
                raise TakenOver(self._session.client_id)
            raise _ConnectionLost(f"it disconnected this client: {reason_text(packet.reason_code)}")

    def _put_away(self, delivery: Delivery) -> None:
        """Acknowledge a message that only an earlier process of this session asked for, and end that subscription."""
        self._traffic.stale += 1
        self.acknowledge(delivery)
        left = self._stale.leave(delivery.topic)
        if left:
            _log.warning("%s", stale_message(delivery.topic))
            self.unsubscribe(left)

    def _refuse(self, publication: Publication | None, code: int) -> None:
        """Report the outcome of a message that the broker refused with an unlisted code; no retry helps against its
        size.
        """
        if publication is None:
            return
        large = code == mqtt5.ConnAckReasonCode.PACKET_TOO_LARGE
        if large:
            size = publish_bytes(publication.topic, publication.payload)
            _log.error("%s", refused_as_large(publication.topic, size))
        if publication.on_outcome is not None:
            publication.on_outcome(PublishOutcome.TOO_LARGE if large else PublishOutcome.REFUSED)

    def _keep_alive(self) -> None:
        now, keepalive_s = self._clock(), self._keepalive_s
        if not keepalive_s:
            return
        if now - self._heard_at > 1.5 * keepalive_s:
            raise _ConnectionLost(f"it has been silent for {now - self._heard_at:.0f} s")
        if now - self._spoke_at > keepalive_s / 2:
            self._write.append(mqtt5.PingReqPacket().write())
            self._spoke_at = now
