"""Messages on their way to the broker: those that wait, and those that it has not acknowledged yet."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Container

from har_edge.mqtt.bus import PublishOutcome
from har_edge.mqtt.clients.aliases import TopicAliases
from har_edge.mqtt.clients.byte_queues import WriteQueue
from har_edge.mqtt.clients.packets import Publication, write_publish
from har_edge.mqtt.clients.transport import too_large

_log = logging.getLogger(__name__)
_MAX_PACKET_ID = 65535
_MAX_IN_FLIGHT = _MAX_PACKET_ID - 256  # the rest is for subscriptions


class PublicationQueue:
    """Sends at most as many messages as the broker takes unacknowledged (MQTT 5, section 4.9), each until it is.

    After a reconnection, those in flight are sent again first, under their own numbers (section 4.4). `reserved` are
    numbers that other packets have.
    """

    def __init__(self, write: WriteQueue, reserved: Container[int]) -> None:
        self._write, self._reserved = write, reserved
        self._waiting: deque[Publication] = deque()
        self._inflight: dict[int, Publication] = {}
        self._again: deque[int] = deque()  # in flight on an earlier connection, not sent on this one yet
        self._too_large: deque[Publication] = deque()
        self._next_id = 0
        # From CONNACK:
        self._quota, self._limit, self._known = _MAX_IN_FLIGHT, 0, False
        self._aliases = TopicAliases()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._inflight) + len(self._too_large)

    @property
    def open(self) -> bool:
        """Whether anything waits, or is not acknowledged."""
        return bool(self._waiting or self._inflight)

    @property
    def in_flight(self) -> bool:
        return bool(self._inflight)

    @property
    def refused(self) -> bool:
        """Whether outcomes of messages that are too large wait for `settle`."""
        return bool(self._too_large)

    def connected(self, *, receive_max: int, packet_bytes: int, alias_max: int, session_present: bool) -> None:
        """Begin with a new connection, within the limits of CONNACK."""
        self._quota, self._limit, self._known = min(receive_max, _MAX_IN_FLIGHT), packet_bytes, session_present
        self._aliases = TopicAliases(alias_max)
        self._again = deque(self._inflight)

    def append(self, publication: Publication) -> None:
        self._waiting.append(publication)

    def send(self) -> None:
        """Queue the packets that the broker admits now."""
        while self._again:
            if len(self._inflight) - len(self._again) >= self._quota:
                return
            packet_id = self._again.popleft()
            if packet_id in self._inflight:
                self._send(packet_id, self._inflight[packet_id], duplicate=self._known)
        while self._waiting and len(self._inflight) < self._quota:
            publication = self._waiting.popleft()
            packet_id = self.take_id()
            self._inflight[packet_id] = publication
            self._send(packet_id, publication, duplicate=False)

    def take_id(self) -> int:
        """Return a number that no packet under way has."""
        while True:
            self._next_id = self._next_id % _MAX_PACKET_ID + 1
            if self._next_id not in self._inflight and self._next_id not in self._reserved:
                return self._next_id

    def acknowledged(self, packet_id: int) -> Publication | None:
        """Return, and forget, the message of this number."""
        return self._inflight.pop(packet_id, None)

    def settle(self) -> None:
        """Give the outcomes of messages that are larger than the broker takes."""
        while self._too_large:
            publication = self._too_large.popleft()
            if publication.on_outcome is not None:
                publication.on_outcome(PublishOutcome.TOO_LARGE)

    def _send(self, packet_id: int, publication: Publication, *, duplicate: bool) -> None:
        topic, alias = self._aliases.name(publication.topic)
        pieces = write_publish(publication, packet_id, topic, alias, duplicate=duplicate)
        size = sum(map(len, pieces))
        if size > self._limit:  # sent, it would cost the connection (MQTT 5, 3.2.2.3.6)
            _log.error("%s", too_large(publication.topic, size, self._limit))
            self._too_large.append(self._inflight.pop(packet_id))
            return
        self._aliases.remember(publication.topic)
        self._write.extend(pieces)
