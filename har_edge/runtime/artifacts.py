"""Files through the broker: a retained header that names a content by its hash, and its bytes in retained chunks.

Nothing that comes is trusted: a header is checked before anything is allocated for it, and a content is given out only
when its hash is the one that was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from har_edge.errors import MessageError, NodeError
from har_edge.mqtt.bus import Bus, Delivery, Outgoing, Session
from har_edge.protocol.artifacts import (
    CHUNK_BYTES,
    MAX_BYTES,
    MAX_CHUNK_BYTES,
    SHA256,
    VERSION,
    Header,
    count_chunks,
    encode_header,
)
from har_edge.protocol.events import ChunkEvent, Event, HeaderEvent, Unreadable, decode
from har_edge.protocol.topics import Kind, Topics
from har_edge.runtime.artifact_store import Store

_log = logging.getLogger(__name__)
# How many chunks are under way to a node at once: with their size, what bounds its memory beside the file itself.
RECEIVE_MAX = 16
_POLL_S = 0.2
_HEADERS = frozenset({Kind.SLICE, Kind.TRAINING_FILE})


class ArtifactUnavailable(NodeError):
    """A content cannot be had from the broker: it did not come, or what came was another; `sha256` names it."""

    def __init__(self, sha256: str, text: str) -> None:
        super().__init__(text)
        self.sha256 = sha256


def encode_chunks(topics: Topics, content: bytes, chunk_bytes: int = CHUNK_BYTES) -> list[Outgoing]:
    """Return the retained messages that bring a content to the broker: its chunks, and last the header."""
    return list(iter_chunks(topics, hashlib.sha256(content).hexdigest(), content, chunk_bytes))


def iter_chunks(topics: Topics, sha256: str, content: bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Outgoing]:
    """Yield what `encode_chunks` returns one by one, so that never more than a few chunks are in memory twice."""
    count = count_chunks(len(content), chunk_bytes)
    for number in range(count):
        chunk = content[number * chunk_bytes : (number + 1) * chunk_bytes]
        yield Outgoing(topics.chunk(sha256, number), chunk, retain=True)
    header = Header(VERSION, sha256, len(content), chunk_bytes, count)
    yield Outgoing(topics.slice(sha256), encode_header(header), retain=True)


def clear(topics: Topics, sha256: str, chunks: int) -> list[Outgoing]:
    """Return the messages that remove a content from the broker: empty ones, that of the header first."""
    names = [topics.slice(sha256), *(topics.chunk(sha256, number) for number in range(chunks))]
    return [Outgoing(name, b"", retain=True) for name in names]


@dataclass(slots=True)
class ArtifactIndex:
    """Which contents the broker has, from the headers that come to a subscriber of `filter`.

    `headers` are those by hash. The caller counts and logs messages that are no header.
    """

    topics: Topics
    headers: dict[str, Header] = field(default_factory=dict)

    @property
    def filter(self) -> str:
        return self.topics.slice("+")

    def handle(self, event: Event) -> bool:
        """Take a header, or the empty message that removes one; return whether it was one of these."""
        if isinstance(event, Unreadable) and event.topic is not None and event.kind is Kind.SLICE:
            self.headers.pop(event.topic.levels[0], None)
            return True
        if not isinstance(event, HeaderEvent):
            return False
        self.headers.pop(event.sha256, None)
        if event.header is not None:
            self.headers[event.sha256] = event.header
        return True

    def missing(self, wanted: Collection[str]) -> list[str]:
        """Return what the broker lacks of these, in order."""
        return sorted(set(wanted) - self.headers.keys())

    def surplus(self, wanted: Collection[str]) -> list[Header]:
        """Return what the broker has beside these, in order of the hashes."""
        return [self.headers[sha256] for sha256 in sorted(self.headers.keys() - set(wanted))]


class Fetch:
    """Puts one content together from its header and its chunks, which may come in any order and more than once.

    `filters` is what to subscribe to now: first the header's, then that of the chunks. `rejected` counts messages that
    were of no use.
    """

    def __init__(self, topics: Topics, sha256: str, max_bytes: int = MAX_BYTES) -> None:
        if not SHA256.fullmatch(sha256):
            raise MessageError(f"{sha256!r} came as the hash of a file; expected a SHA-256 as 64 hex digits")
        self.sha256, self.rejected = sha256, 0
        self._topics, self._max_bytes = topics, max_bytes
        self._header: Header | None = None
        self._content = bytearray()
        self._lacking: set[int] = set()

    @property
    def filters(self) -> tuple[str, ...]:
        if self._header is None:
            return (self._topics.slice(self.sha256),)
        return (self._topics.chunk(self.sha256, "+"),)

    @property
    def content(self) -> memoryview:
        """The bytes that have come so far, in place."""
        return memoryview(self._content)

    @property
    def progress(self) -> str:
        """How far it has come, in words."""
        if self._header is None:
            return "no header came"
        return f"{self._header.chunks - len(self._lacking)} of {self._header.chunks} chunks came"

    def handle(self, delivery: Delivery) -> bytes | None:
        """Take a message and return the content once it is complete; raises MessageError when its hash is another."""
        return bytes(self._content) if self.take(delivery) and self.check() else None

    def take(self, delivery: Delivery) -> bool:
        """Take a message and return whether all bytes are here now; a useless message is counted and dropped."""
        event = decode(delivery, self._topics)
        if event.topic is None or event.topic.levels[:1] != (self.sha256,) or not delivery.payload:
            return False  # an empty message removes what was retained
        if isinstance(event, HeaderEvent) and event.header is not None:
            return self._begin(event.header)
        if isinstance(event, ChunkEvent):
            return self._fill(event)
        if isinstance(event, Unreadable) and (event.kind in _HEADERS or self._header is not None):
            self._reject(event.reason)
        return False

    def check(self) -> bool:
        """Return True; raises MessageError when what came has not the hash that was asked for, and begins anew."""
        found = hashlib.sha256(self._content).hexdigest()
        if found == self.sha256:
            return True
        size, self._header, self._content, self._lacking = len(self._content), None, bytearray(), set()
        raise MessageError(f"{size} bytes with sha256 {found} came for {self.sha256}: forged or corrupt; not used")

    def _begin(self, header: Header) -> bool:
        if header.size > self._max_bytes:
            raise NodeError(
                f"{self.sha256} has {header.size} bytes; expected at most {self._max_bytes} here, since it passes "
                "through memory: see the model's size, and who may publish slices"
            )
        if header != self._header:  # divided otherwise: what came before is of no use
            self._header, self._content, self._lacking = header, bytearray(header.size), set(range(header.chunks))
        return not self._lacking

    def _fill(self, event: ChunkEvent) -> bool:
        header, number, chunk = self._header, event.number, event.content
        if header is None:
            return False
        start = number * header.chunk_bytes
        expected = min(header.chunk_bytes, header.size - start)
        if number >= header.chunks or len(chunk) != expected:
            self._reject(f"chunk {number} of {self.sha256} with {len(chunk)} bytes is not used: it does not fit")
            return False
        if number in self._lacking:
            self._content[start : start + expected] = chunk
            self._lacking.discard(number)
        return not self._lacking

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        _log.warning("%s", reason)


def fetch_session() -> Session:
    """Return a session that suits `fetch`: gone with its connection, with a few chunks under way at a time."""
    return Session(
        f"fetch-{secrets.token_hex(8)}",
        clean_start=True,
        receive_max=RECEIVE_MAX,
        max_packet_bytes=MAX_CHUNK_BYTES + 4096,
    )


def fetch(
    bus: Bus,
    topics: Topics,
    wanted: Collection[str],
    store: Store,
    stop: Callable[[], bool],
    max_bytes: int = MAX_BYTES,
    timeout_s: float = 30.0,
) -> None:
    """Bring contents from the broker into the store, one after the other, except those that are there already.

    `bus` is used for this alone (see `fetch_session`); the caller closes it. Returns early when `stop` says so. Raises
    ArtifactUnavailable when nothing of use came for `timeout_s` or what came is forged or corrupt, NodeError when the
    disk is full or a content is larger than `max_bytes`.
    """
    store.keep_also(wanted)
    for sha256 in sorted(set(wanted)):
        if not store.has(sha256) and not _fetch_one(bus, Fetch(topics, sha256, max_bytes), store, stop, timeout_s):
            return


def _fetch_one(bus: Bus, one: Fetch, store: Store, stop: Callable[[], bool], timeout_s: float) -> bool:
    """Bring one content into the store; False when it was stopped."""
    subscribed: set[str] = set()
    last, since, complete = one.progress, time.monotonic(), False
    while not complete:
        if stop():
            return False
        fresh = [text for text in one.filters if text not in subscribed]
        if fresh:
            if one.content:
                store.make_room(len(one.content))  # before any of it travels
            bus.subscribe(fresh)
            subscribed.update(fresh)
        for delivery in bus.poll(_POLL_S):
            bus.acknowledge(delivery)
            complete = one.take(delivery) or complete
        if one.progress != last:
            last, since = one.progress, time.monotonic()
        if not complete and time.monotonic() > since + timeout_s:
            raise ArtifactUnavailable(
                one.sha256,
                f"{one.sha256} did not come: {last} in {timeout_s:g} s, {one.rejected} messages of no use; see that "
                "the coordinator runs and the broker keeps retained messages",
            )
    try:
        store.put(one.sha256, one.content)
    except MessageError as error:
        raise ArtifactUnavailable(one.sha256, f"{error}; see who else may publish below {one.filters[0]}") from None
    return True
