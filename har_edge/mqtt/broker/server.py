"""The embedded broker: MQTT 3.1.1 and 5 at QoS 0 and 1 over TCP, for one pipeline on machines without Mosquitto.

It keeps what the pipeline's guarantees need (mqtt/broker/router.py): sessions with unacknowledged messages, take-over,
retained messages, wills, shared subscriptions in turn, Receive Maximum, and "no matching subscriber". All state is in
memory and ends with the process. It has no users, no encryption and no QoS 2, one thread and one selector.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import selectors
import socket
import time
from collections.abc import Callable

from har_edge.mqtt.broker import codec
from har_edge.mqtt.broker.codec import V5, Connect, Packet, PacketType, Property, ProtocolViolation, Publish, ReasonCode
from har_edge.mqtt.broker.router import Router, SessionState
from har_edge.mqtt.bus import PublishOutcome, Session, Will

_log = logging.getLogger(__name__)
MAX_PACKET_BYTES = 64 * 1024 * 1024 + 4096
MAX_QUEUED_MESSAGES = 100_000  # of one session
MAX_QUEUED_BYTES = 128 * 1024 * 1024  # of one session
MAX_RETAINED_BYTES = 256 * 1024 * 1024
MAX_CONNECTIONS = 1000
# The session of a 3.1.1 client, which cannot ask for a time, stays so long; see persistent_client_expiration in
# mosquitto.conf.
SESSION_S = 7 * 24 * 3600
VERSION_TOPIC = "$SYS/broker/version"
_ALIASES = 64
_READ_BYTES = 256 * 1024
_OUT_BYTES = 1024 * 1024  # what is written ahead for a client that reads slowly; the rest stays in its session
_CONNECT_S = 10.0
_TURN_S = 0.5
_V311_REFUSALS = {ReasonCode.UNSUPPORTED_VERSION: 1, ReasonCode.IDENTIFIER_NOT_VALID: 2, ReasonCode.SERVER_BUSY: 3}
_PUBACKS = {
    PublishOutcome.ACKED: ReasonCode.SUCCESS,
    PublishOutcome.NO_SUBSCRIBERS: ReasonCode.NO_MATCHING_SUBSCRIBERS,
    PublishOutcome.REFUSED: ReasonCode.QUOTA_EXCEEDED,
}


class _Closed(Exception):
    """The connection ends; `will` says whether that is a loss."""

    def __init__(self, reason: str, *, will: bool = True) -> None:
        super().__init__(reason)
        self.will = will


class Connection:
    """One client: its socket, the bytes of an incomplete packet, and the bytes to write."""

    def __init__(self, server: Server, connection: socket.socket, now: float) -> None:
        self.server, self.socket = server, connection
        self.read, self.out = bytearray(), bytearray()
        self.version = 0
        self.account: SessionState | None = None
        self.keepalive_s, self.heard_at = 0.0, now
        self.aliases: dict[int, str] = {}
        self.writing = False

    @property
    def name(self) -> str:
        return self.account.session.client_id if self.account else "a client that has not said who it is"

    def take_over(self) -> None:
        """Record that another client owns the session now."""
        self.account = None
        if self.version == V5:
            self.out += codec.write_disconnect(ReasonCode.TAKEN_OVER)
        self.server.drop(self)

    def silent(self, now: float) -> bool:
        limit_s = 1.5 * self.keepalive_s if self.version else _CONNECT_S
        return bool(limit_s) and now - self.heard_at > limit_s


class Server:
    """Serves clients on a listening socket until told to stop."""

    def __init__(self, listener: socket.socket, version: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._listener = clock, listener
        self._router = Router(
            max_messages=MAX_QUEUED_MESSAGES, max_bytes=MAX_QUEUED_BYTES, max_retained_bytes=MAX_RETAINED_BYTES
        )
        self._router.route(VERSION_TOPIC, version.encode(), retain=True)
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._dirty: set[Connection] = set()  # who may have something to write
        self._refused: set[str] = set()  # who was told already that a session is full
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Serve until `stopped` returns True, which is asked twice a second; then notify the clients and close."""
        swept_at = self._clock()
        while not stopped():
            for key, events in self._selector.select(_TURN_S):
                if key.data is None:
                    self._accept()
                elif key.data in self._connections:
                    self._serve_one(key.data, events)
            self._write_all()
            if self._clock() - swept_at > _TURN_S:
                swept_at = self._clock()
                self._sweep(swept_at)
        for connection in list(self._connections):
            if connection.version == V5:
                connection.out += codec.write_disconnect(ReasonCode.SHUTTING_DOWN)
            self.drop(connection)
        self._selector.close()
        self._listener.close()

    # --- connections ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # gone again, or no more descriptors
            _log.warning("a client could not be accepted: %s", error)
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            _log.warning("a client was turned away: %d are connected", MAX_CONNECTIONS)
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Connection(self, connection, self._clock())
        self._connections.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def drop(self, connection: Connection) -> None:
        """Close a connection, after it has accepted what it can of the last bytes."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._dirty.discard(connection)
        self._selector.unregister(connection.socket)
        with contextlib.suppress(OSError):
            connection.socket.send(connection.out)
        connection.socket.close()

    def _lose(self, connection: Connection, reason: str, *, will: bool) -> None:
        account, connection.account = connection.account, None
        if will:
            _log.info("%s is gone: %s", account.session.client_id if account else "a client", reason)
        self.drop(connection)
        if account is not None and account.bus is connection:
            self._mark(self._router.detach(account, will=will, now=self._clock()))

    def _sweep(self, now: float) -> None:
        for connection in [one for one in self._connections if one.silent(now)]:
            self._lose(connection, "it has been silent for too long", will=True)
        for client_id in self._router.expire(now):
            _log.info("the session of %s has expired", client_id)

    def _serve_one(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._read(connection)
            self._dirty.add(connection)
        except _Closed as closed:
            self._lose(connection, str(closed), will=closed.will)
        except ProtocolViolation as wrong:
            _log.warning("%s is cut off: %s", connection.name, wrong)
            if connection.version == V5:
                connection.out += codec.write_disconnect(wrong.code)
            self._lose(connection, str(wrong), will=True)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, connection: Connection) -> None:
        try:
            piece = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise _Closed(str(error)) from None
        if not piece:
            raise _Closed("it closed the connection")
        connection.heard_at = self._clock()
        connection.read += piece
        if connection.account is None and connection.read[0] != PacketType.CONNECT << 4:
            raise ProtocolViolation("its first packet is not CONNECT", ReasonCode.PROTOCOL_ERROR)
        start = 0
        while (taken := codec.take_packet(connection.read, start, MAX_PACKET_BYTES)) is not None:
            packet, start = taken
            if connection not in self._connections:
                return
            self._handle(connection, packet)
        del connection.read[:start]

    def _handle(self, connection: Connection, packet: Packet) -> None:
        if connection.account is None:
            self._connect(connection, packet)
            return
        account, version = connection.account, connection.version
        if packet.kind == PacketType.PUBLISH:
            self._publish(connection, codec.read_publish(packet, version))
        elif packet.kind == PacketType.PUBACK:
            account.acknowledged(codec.Reader(packet.body).two())
        elif packet.kind == PacketType.SUBSCRIBE:
            self._subscribe(connection, account, packet)
        elif packet.kind == PacketType.UNSUBSCRIBE:
            packet_id, filters = codec.read_unsubscribe(packet, version)
            existed = self._router.unsubscribe(account, filters)
            codes = [ReasonCode.SUCCESS if one else ReasonCode.NO_SUBSCRIPTION_EXISTED for one in existed]
            connection.out += codec.write_unsuback(version, packet_id, list(map(int, codes)))
        elif packet.kind == PacketType.PINGREQ:
            connection.out += codec.write_packet(PacketType.PINGRESP << 4, b"")
        elif packet.kind == PacketType.DISCONNECT:
            code, expiry_s = codec.read_disconnect(packet, version)
            if expiry_s is not None:
                account.session = _with_expiry(account.session, expiry_s)
            raise _Closed("it disconnected", will=code == ReasonCode.WITH_WILL)
        else:
            raise ProtocolViolation(f"a packet of kind {packet.kind}", ReasonCode.PROTOCOL_ERROR)

    def _connect(self, connection: Connection, packet: Packet) -> None:
        try:
            said = codec.read_connect(packet)
        except ProtocolViolation as wrong:
            if wrong.code == ReasonCode.UNSUPPORTED_VERSION:
                connection.out += codec.write_connack(codec.V311, False, _V311_REFUSALS[wrong.code])
            raise
        connection.version, connection.keepalive_s = said.version, said.keepalive_s
        assigned = "" if said.client_id else f"auto-{secrets.token_hex(8)}"
        if assigned and said.version != V5 and not said.clean:
            connection.out += codec.write_connack(said.version, False, _V311_REFUSALS[ReasonCode.IDENTIFIER_NOT_VALID])
            raise _Closed("it wants a session without a client id")
        session = _session(said, said.client_id or assigned)
        present = self._router.knows(session) and not said.clean
        account = connection.account = self._router.attach(connection, session, clean=said.clean)
        self._mark_holders()
        properties = codec.write_property(Property.MAX_QOS, 1)
        properties += codec.write_property(Property.MAX_PACKET, MAX_PACKET_BYTES)
        properties += codec.write_property(Property.ALIAS_MAX, _ALIASES)
        properties += codec.write_property(Property.ASSIGNED_CLIENT, assigned) if assigned else b""
        connection.out += codec.write_connack(said.version, present, ReasonCode.SUCCESS, properties)
        _log.info("%s is connected, MQTT %s", account.session.client_id, "5" if said.version == V5 else "3.1.1")

    def _publish(self, connection: Connection, said: Publish) -> None:
        topic = said.topic
        if said.alias:
            if said.alias > _ALIASES or not (topic or said.alias in connection.aliases):
                raise ProtocolViolation(f"topic alias {said.alias} is not known", ReasonCode.ALIAS_INVALID)
            topic = connection.aliases[said.alias] = topic or connection.aliases[said.alias]
        outcome, takers = self._router.route(
            topic, said.payload, retain=said.retain, qos=said.qos, properties=said.properties
        )
        self._mark(takers)
        if outcome is PublishOutcome.REFUSED:
            self._tell_full(topic)
            if connection.version != V5 and said.qos:  # 3.1.1 has no word for it; it sends again once it is back
                raise _Closed(f"there is no room for its message on {topic}")
        if said.qos:
            connection.out += codec.write_puback(connection.version, said.packet_id, _PUBACKS[outcome])

    def _subscribe(self, connection: Connection, account: SessionState, packet: Packet) -> None:
        said = codec.read_subscribe(packet, connection.version)
        codes = []
        for text, qos, retained in said.filters:
            if not codec.is_filter(text):
                codes.append(int(ReasonCode.FILTER_INVALID))
                continue
            codes.append(qos)
            self._router.subscribe(account, [text], qos=qos, retained=retained)
        connection.out += codec.write_suback(connection.version, said.packet_id, codes)

    def _tell_full(self, topic: str) -> None:
        """Log once for each topic that a session has no room for it, because its client reads too slowly."""
        if topic not in self._refused and len(self._refused) < 1000:
            self._refused.add(topic)
            _log.warning(
                "a message on %s was refused: a session that wants it holds %d messages or %d bytes, or what is "
                "retained fills %d bytes; its publisher keeps it",
                topic,
                MAX_QUEUED_MESSAGES,
                MAX_QUEUED_BYTES,
                MAX_RETAINED_BYTES,
            )

    # --- writing ----------------------------------------------------------------------------------------------------

    def _mark(self, accounts: list[SessionState]) -> None:
        self._dirty.update(one.bus for one in accounts if isinstance(one.bus, Connection))

    def _mark_holders(self) -> None:
        """Mark every connection for writing: the will of a client that was taken over may have gone to any of them."""
        self._dirty.update(self._connections)

    def _write_all(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            try:
                self._write(connection)
            except _Closed as closed:
                self._lose(connection, str(closed), will=closed.will)

    def _write(self, connection: Connection) -> None:
        while connection in self._connections:
            self._fill(connection)
            if not connection.out:
                break
            try:
                sent = connection.socket.send(connection.out)
            except BlockingIOError:
                break
            except OSError as error:
                raise _Closed(str(error)) from None
            del connection.out[:sent]
        if len(connection.out) > 2 * MAX_PACKET_BYTES:
            raise _Closed("it does not read what it is sent")
        wants = bool(connection.out)
        if wants != connection.writing and connection in self._connections:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants else 0)
            self._selector.modify(connection.socket, events, connection)
            connection.writing = wants

    def _fill(self, connection: Connection) -> None:
        account = connection.account
        while account is not None and len(connection.out) < _OUT_BYTES and (stored := account.take()) is not None:
            connection.out += codec.write_publish(
                connection.version,
                stored.topic,
                stored.payload,
                stored.qos,
                stored.packet_id,
                retain=stored.retained,
                again=stored.sent,
                properties=stored.properties,
            )
            stored.sent = stored.qos > 0


def _session(said: Connect, client_id: str) -> Session:
    will = Will(said.will_topic, said.will_payload, said.will_retain) if said.has_will else None
    kept_s = 0 if said.clean else SESSION_S
    expiry_s = said.expiry_s if said.version == V5 else kept_s
    return Session(
        client_id,
        expiry_s=expiry_s,
        clean_start=said.clean,
        will=will,
        receive_max=said.receive_max,
        max_packet_bytes=said.max_packet_bytes,
    )


def _with_expiry(session: Session, expiry_s: int) -> Session:
    return Session(
        session.client_id,
        expiry_s=expiry_s,
        will=session.will,
        receive_max=session.receive_max,
        max_packet_bytes=session.max_packet_bytes,
    )
