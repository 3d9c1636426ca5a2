"""MQTT 5 bus on paho-mqtt 2, driven from one thread, without a background loop or waits on locks.

paho keeps the session and resends. This module turns its callbacks into the return value of `poll`. It runs wherever
Python does. paho counts no bytes, so the module computes them from packet sizes (MQTT 5, section 2.1).
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
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import BusTraffic, Delivery, OnOutcome, PublishOutcome, Session, TakenOver, Waits
from har_edge.mqtt.clients.reconnect import Reconnector
from har_edge.mqtt.clients.stale_subscriptions import StaleSubscriptions
from har_edge.mqtt.clients.tolerant import TOO_LARGE, TolerantClient
from har_edge.mqtt.clients.transport import (
    NO_LIMIT,
    AckOrder,
    ConsecutiveLosses,
    cut_off_by_size,
    limit_below_need,
    publish_bytes,
    read_share,
    refusal,
    refused_as_large,
    stale_message,
    tls_context,
    too_large,
    unanswered,
    unreachable,
    widen_send_buffer,
)
from har_edge.timing import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S

_log = logging.getLogger(__name__)
_QOS = 1
_ACK_BYTES = 4
_MAX_IN_FLIGHT = 0xFFFF - 256  # the other packet ids are for subscriptions
_NO_MATCHING_SUBSCRIBERS = 0x10
_FAILURE = 0x80
_TAKEN_OVER = 0x8E


@dataclass(frozen=True, slots=True)
class _Message:
    """A message to publish, kept until the broker has it."""

    topic: str
    payload: bytes
    retain: bool
    on_outcome: OnOutcome | None

    @property
    def size(self) -> int:
        return publish_bytes(self.topic, self.payload)


class PahoBus:
    """A Bus over one paho client; mqtt/bus.py states the contract.

    `connect` opens the first connection. `poll` opens later ones, after jittered waits.
    """

    def __init__(
        self,
        address: Address,
        session: Session,
        *,
        mqtt5: bool = True,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._address, self._session, self._clock, self._mqtt5 = address, session, clock, mqtt5
        self._reconnector = Reconnector(address, session, clock, rng or random.Random(), self._connect_beside)
        self._traffic = BusTraffic()
        self._filters: list[str] = []
        self._stale = StaleSubscriptions()
        self._subscribing: dict[int, tuple[str, ...]] = {}
        self._under_way: dict[int, _Message] = {}
        self._waiting: deque[_Message] = deque()
        self._settled: deque[tuple[OnOutcome | None, PublishOutcome]] = deque()
        self._losses = ConsecutiveLosses()
        self._send_quota, self._send_limit = _MAX_IN_FLIGHT, NO_LIMIT
        self._arrived: list[Delivery] = []
        self._acks = AckOrder()
        self._session_present = False
        self._generation = 0
        self._accepted = False
        self._failure: Exception | None = None
        self._clean = session.clean_start
        self._client = self._make_client()

    @property
    def traffic(self) -> BusTraffic:
        return self._traffic

    @property
    def unsent(self) -> int:
        return len(self._waiting) + len(self._under_way) + len(self._settled)

    @property
    def connected(self) -> bool:
        return self._accepted and not self._subscribing

    @property
    def open(self) -> bool:
        return self._accepted

    def waits(self) -> Waits | None:
        sockets = tuple(self._sockets()) if self._accepted else ()
        if self._settled or any(getattr(one, "pending", int)() for one in sockets):
            return None
        return Waits(sockets, sockets if self._client.want_write() else ())

    def connect(self) -> None:
        """Connect for the first time. Raises BrokerError when there is no broker or it refuses."""
        self._open()

    def subscribe(self, filters: Sequence[str]) -> None:
        self._filters += filters
        self._stale.want(filters)
        if self._accepted:
            self._send_subscribe(tuple(filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._filters = [text for text in self._filters if text not in filters]
        for one in [list(filters)] if self._mqtt5 else [[text] for text in filters]:  # as with SUBSCRIBE
            self._client.unsubscribe(one)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        self._traffic.published += 1
        self._waiting.append(_Message(topic, payload, retain, on_outcome))
        self._send_waiting()

    def acknowledge(self, delivery: Delivery) -> None:
        generation, packet_id = delivery.token
        if generation == self._generation and self._accepted:
            for ready in self._acks.done(packet_id):
                self._client.ack(ready, _QOS)
                self._traffic.sent_bytes += _ACK_BYTES

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        if not self._accepted and not self._reopen(timeout_s):
            return ()
        self._turn(timeout_s, most_bytes)
        self._raise_failure()
        self._settle()
        arrived, self._arrived = self._arrived, []
        return [delivery for delivery in arrived if self._is_ours(delivery)]

    def close(self, *, forget: bool = False) -> None:
        deadline = self._clock() + CLOSE_TIMEOUT_S
        while self._accepted and (self.unsent or self._client.want_write()) and self._clock() < deadline:
            self._turn(0.05)
            self._settle()
        if self._accepted:
            self._accepted = False  # from here on a lost connection is what we want
            properties = None
            if self._mqtt5:
                properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = 0 if forget else self._session.expiry_s
            self._client.disconnect(properties=properties)
            while self._client.socket() is not None and self._client.want_write() and self._clock() < deadline:
                self._client.loop_write()
                select.select([], self._sockets(), [], 0.05)
        for connection in self._sockets():  # the broker does not read: nothing but closing is left
            connection.close()
        if forget and not self._mqtt5 and not self._is_short:
            self._end_session()

    @property
    def _is_short(self) -> bool:
        """Return whether a session ends with its connection, where the broker knows no time between that and never."""
        return self._session.transient or not self._session.expiry_s

    def _end_session(self) -> None:
        """End the session at the broker. Before MQTT 5, only a new connection with a clean session does that."""
        try:
            self._connect_beside(Session(self._session.client_id, clean_start=True)).close()
        except BrokerError as error:
            _log.warning("the session of %s stays at the broker: %s", self._session.client_id, error)

    def _sockets(self) -> list[socket.socket]:
        connection = self._client.socket()
        return [connection] if isinstance(connection, socket.socket) else []

    # --- connecting -------------------------------------------------------------------------------------------------

    def _make_client(self) -> TolerantClient:
        client = TolerantClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._session.client_id,
            protocol=mqtt.MQTTv5 if self._mqtt5 else mqtt.MQTTv311,
            # Before MQTT 5 a session lasts or ends with the connection, as this says.
            clean_session=None if self._mqtt5 else self._clean or self._is_short,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages = 0  # no bound of paho's own: _send_waiting keeps the broker's
        context = tls_context(self._address)
        if context is not None:
            client.tls_set_context(context)
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        will = self._session.will
        if will is not None:
            client.will_set(will.topic, will.payload, _QOS, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        # With a writer registered, paho queues packets instead of writing each at once; _turn writes them.
        client.on_socket_register_write = lambda *_: None
        return client

    def _open(self) -> None:
        options: dict[str, Any] = {}
        if self._mqtt5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._session.expiry_s
            properties.ReceiveMaximum = self._session.receive_max
            properties.MaximumPacketSize = self._session.max_packet_bytes
            options = {"clean_start": self._clean, "properties": properties}
        try:
            self._client.connect(
                self._address.host,
                self._address.port,
                self._session.keepalive_s,
                **options,
            )
            for connection in self._sockets():
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                widen_send_buffer(connection, self._session.sends_bytes)
            deadline, before = self._clock() + CONNECT_TIMEOUT_S, self._generation
            while self._generation == before and self._failure is None and self._clock() < deadline:
                if not self._sockets():
                    raise unanswered(self._address)
                self._turn(0.2)
        except (OSError, ValueError) as error:
            raise BrokerError(unreachable(self._address, error)) from None
        self._raise_failure()
        if self._generation == before:
            raise unanswered(self._address, closed=False)
        self._clean = False

    def _connect_beside(self, session: Session) -> PahoBus:
        bus = PahoBus(self._address, session, mqtt5=self._mqtt5)
        bus.connect()
        return bus

    def _reopen(self, timeout_s: float) -> bool:
        if not self._reconnector.attempt(timeout_s, self._open):
            return False
        self._traffic.reconnects += 1
        self._traffic.forgotten += not self._session_present
        return True

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    # --- moving bytes -----------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float, most_bytes: int | None = None) -> None:
        """Write queued packets, read incoming ones, and keep the connection alive."""
        connection = self._client.socket()
        if connection is None:
            self._on_lost("it closed the connection")
            return
        if self._client.want_write():
            self._client.loop_write()
            if self._client.socket() is None:  # that failed, and paho has told on_disconnect
                return
        pending = getattr(connection, "pending", None)
        wait_s = 0.0 if pending is not None and pending() else min(timeout_s, self._session.keepalive_s / 4)
        writers = [connection] if self._client.want_write() else []
        readable, _, _ = select.select([connection], writers, [], 0.0 if most_bytes == 0 else wait_s)
        before = self._traffic.received_bytes
        while most_bytes is None or self._traffic.received_bytes - before < most_bytes:
            if not readable and (pending is None or not pending()):
                break
            if not self._read() or len(self._arrived) >= self._session.receive_max:
                break
            readable, _, _ = select.select([connection], [], [], 0)
        if self._client.socket() is not None:
            self._client.loop_misc()
            self._send_waiting()
        if self._client.want_write() and self._client.socket() is not None:
            self._client.loop_write()

    def _read(self) -> bool:
        """Let paho read; return False when the connection is lost. No callback runs in here, so any error is the
        broker's.
        """
        try:
            return self._client.loop_read() == mqtt.MQTT_ERR_SUCCESS and self._client.socket() is not None
        except Exception as error:  # paho lets struct.error, IndexError and others out for malformed packets
            self._lose(f"it sent a malformed packet: {error or type(error).__name__}")
            return False

    def _lose(self, reason: str) -> None:
        for connection in self._sockets():
            connection.close()
        self._on_lost(reason)

    def _settle(self) -> None:
        while self._settled:
            on_outcome, outcome = self._settled.popleft()
            if on_outcome is not None:
                on_outcome(outcome)

    def _send_waiting(self) -> None:
        """Hand paho what the broker's Receive Maximum admits; paho cannot learn the limit itself once connected."""
        while self._waiting and self._accepted and len(self._under_way) < self._send_quota:
            message = self._waiting.popleft()
            if message.size > self._send_limit:  # sent all the same, it would cost the connection (section 3.2.2.3.6)
                _log.error("%s", too_large(message.topic, message.size, self._send_limit))
                self._settled.append((message.on_outcome, PublishOutcome.TOO_LARGE))
                continue
            info = self._client.publish(message.topic, message.payload, _QOS, message.retain)
            if info.rc == mqtt.MQTT_ERR_QUEUE_SIZE:  # paho reuses a packet id that is still in flight: try the next
                self._waiting.appendleft(message)
                continue
            self._under_way[info.mid] = message
            self._traffic.sent_bytes += message.size

    def _send_subscribe(self, filters: tuple[str, ...]) -> None:
        if not self._mqtt5:
            # One filter a packet: aedes with Redis never answers several of them for a session that it keeps.
            for text in filters:
                self._note_subscribe((text,), self._client.subscribe(text, _QOS)[1])
            return
        send, never = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, SubscribeOptions.RETAIN_DO_NOT_SEND
        options = [  # a member of a group must get none anyway: see packets.greeting
            SubscribeOptions(qos=_QOS, retainHandling=send if read_share(text) is None else never) for text in filters
        ]
        self._note_subscribe(filters, self._client.subscribe(list(zip(filters, options, strict=True)))[1])

    def _note_subscribe(self, filters: tuple[str, ...], packet_id: int | None) -> None:
        if packet_id is not None:
            self._subscribing[packet_id] = filters

    # --- what paho calls --------------------------------------------------------------------------------------------

    def _on_connect(self, _client: mqtt.Client, _user: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.value >= _FAILURE:
            self._failure = refusal(self._address, code.value, str(code).lower())
            return
        self._session_present = bool(flags.session_present)
        self._send_quota = min(int(getattr(properties, "ReceiveMaximum", _MAX_IN_FLIGHT)), _MAX_IN_FLIGHT)
        self._send_limit = int(getattr(properties, "MaximumPacketSize", NO_LIMIT))
        if self._send_limit < self._session.sends_bytes:
            self._failure = limit_below_need(self._address, self._send_limit, self._session.sends_bytes)
            self._client.disconnect()
            return
        self._generation += 1
        self._reconnector.opened()
        self._acks.clear()
        self._subscribing.clear()
        self._accepted = True
        if self._filters:
            self._send_subscribe(tuple(self._filters))

    def _on_subscribe(
        self, _client: mqtt.Client, _user: Any, packet_id: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        for text, code in zip(self._subscribing.pop(packet_id, ()), codes, strict=False):
            if code.value >= _FAILURE:
                self._failure = BrokerError(
                    f"the broker at {self._address.url} refused the subscription to {text}: {str(code).lower()}; "
                    "check what its access list permits this user"
                )

    def _on_publish(self, _client: mqtt.Client, _user: Any, packet_id: int, code: ReasonCode, _properties: Any) -> None:
        self._traffic.received_bytes += _ACK_BYTES
        self._losses.acknowledged()
        message = self._under_way.pop(packet_id, None)
        if message is None:
            return
        outcome = PublishOutcome.REFUSED if code.value >= _FAILURE else PublishOutcome.ACKED
        if code.value == _NO_MATCHING_SUBSCRIBERS:
            outcome = PublishOutcome.NO_SUBSCRIBERS
        elif self._client.odd.pop(packet_id, 0) == TOO_LARGE:
            outcome = PublishOutcome.TOO_LARGE
            _log.error("%s", refused_as_large(message.topic, message.size))
        self._settled.append((message.on_outcome, outcome))

    def _on_message(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        self._traffic.received += 1
        self._traffic.received_bytes += publish_bytes(message.topic, bytes(message.payload))
        if message.qos == _QOS:
            self._acks.arrived(message.mid)
        token = (self._generation if message.qos == _QOS else 0, message.mid)
        self._arrived.append(Delivery(message.topic, bytes(message.payload), token, message.retain, message.dup))

    def _is_ours(self, delivery: Delivery) -> bool:
        """Return whether this process subscribed to the topic; drop a delivery that only an earlier process asked for.

        The check runs when deliveries are handed out, because the first ones come before this process has subscribed.
        """
        if not (self._session.expiry_s and self._filters and self._stale.is_stale(delivery.topic)):
            return True
        self._traffic.stale += 1
        self.acknowledge(delivery)
        left = self._stale.leave(delivery.topic)
        if left:
            _log.warning("%s", stale_message(delivery.topic))
            self.unsubscribe(left)
        return False

    def _on_disconnect(self, _client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:
        if code.value == _TAKEN_OVER and self._session.lease is None:  # else the lease says whether that may be
            self._accepted = False
            self._failure = TakenOver(self._session.client_id)
        elif self._accepted:
            self._on_lost(str(code).lower())

    def _on_lost(self, reason: str) -> None:
        if not self._accepted:
            self._reconnector.failed()
            return
        self._accepted = False
        lasted_s = self._reconnector.lost(reason)
        if not self._mqtt5 and self._losses.lost(lasted_s, len(self._under_way)):
            self._give_largest_up()

    def _give_largest_up(self) -> None:
        """Refuse the largest message in flight. A new client sends the others again, as paho keeps its own state."""
        largest = max(self._under_way.values(), key=lambda message: message.size)
        _log.error("%s", cut_off_by_size(largest.topic, largest.size, ConsecutiveLosses.MOST))
        self._settled.append((largest.on_outcome, PublishOutcome.TOO_LARGE))
        self._waiting.extendleft(one for one in reversed(self._under_way.values()) if one is not largest)
        self._under_way.clear()
        self._client = self._make_client()
