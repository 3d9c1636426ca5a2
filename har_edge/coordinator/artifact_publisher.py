"""The files of a deployment at the broker: what it lacks is published, what nobody names any more is removed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.artifacts import count_chunks
from har_edge.protocol.events import HeaderEvent, Unreadable
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifacts import ArtifactIndex, clear, iter_chunks

# How long a content that a node could not get stays as it was published last: doubled each time, for whoever spoils it
# may do so again, and the node that asks may be the one to blame.
AGAIN_S, MOST_AGAIN_S = 10.0, 600.0
# How many messages may be under way to the broker when chunks are added, 256 KiB each: a new plan queues behind these.
UNDER_WAY = 8


class ArtifactPublisher:
    """Contents by hash, and which of them the broker has."""

    def __init__(self, topics: Topics, contents: Mapping[str, bytes]) -> None:
        self._topics, self._index, self._contents = topics, ArtifactIndex(topics), dict(contents)
        self._posted: set[str] = set()
        self._going: dict[str, Iterator[Outgoing]] = {}  # posted, and not sent to the end yet
        self._room = UNDER_WAY
        self._spoilt: set[str] = set()  # to be published although their headers are there
        self._again: dict[str, tuple[float, float]] = {}  # when that was last, and how long it lasts

    @property
    def filter(self) -> str:
        return self._index.filter

    def handle(self, event: HeaderEvent | Unreadable) -> None:
        """Take a header, what stands in the place of one, or the empty message that removes one."""
        self._index.handle(event)
        if event.topic is not None:
            (sha256,) = event.topic.levels
            self._spoilt.discard(sha256)
            if isinstance(event, HeaderEvent) and event.header is None:
                self._posted.discard(sha256)

    def republish(self, sha256: str, now: float) -> bool:
        """Publish a content again that somebody could not get; False when that was done not long ago."""
        last, wait_s = self._again.get(sha256, (float("-inf"), 0.0))
        if now < last + wait_s or sha256 in self._going:
            return False
        repeated = now < last + wait_s + MOST_AGAIN_S
        self._again[sha256] = (now, min(MOST_AGAIN_S, 2 * wait_s) if repeated else AGAIN_S)
        self._spoilt.add(sha256)
        self._posted.discard(sha256)
        return True

    def forget_broker(self) -> None:
        """Know nothing of the broker any more: after a reconnection what it has is sent again."""
        self._index.headers.clear()
        self._spoilt.clear()
        self._going = {sha256: self._divide(sha256) for sha256 in self._going}
        self._posted = set(self._going)

    def note_unsent(self, unsent: int) -> None:
        """Take note of how many messages the broker has not taken yet."""
        self._room = max(0, UNDER_WAY - unsent)

    def add(self, contents: Mapping[str, bytes]) -> None:
        """Take contents that may be wanted."""
        self._contents.update(contents)

    def missing(self, wanted: Collection[str]) -> list[str]:
        """Return what the broker has not said to have."""
        return sorted({*self._index.missing(wanted), *self._spoilt.intersection(wanted)})

    def fill(self, wanted: Collection[str]) -> list[Outgoing]:
        """Return what brings the broker what it lacks and is here, each once: as many messages as there is room for."""
        for sha256 in self.missing(wanted):
            if sha256 in self._contents and sha256 not in self._posted:
                self._posted.add(sha256)
                self._going[sha256] = self._divide(sha256)
        outgoing: list[Outgoing] = []
        while self._going and len(outgoing) < self._room:
            sha256 = next(iter(self._going))
            outgoing += islice(self._going[sha256], self._room - len(outgoing))
            if len(outgoing) < self._room:
                del self._going[sha256]
        self._room -= len(outgoing)
        return outgoing

    def remove_unreferenced(self, wanted: Collection[str]) -> list[Outgoing]:
        """Drop everything else, here and at the broker."""
        outgoing = []
        for sha256 in self._going.keys() - wanted:  # no header may be there yet that says how much to remove
            del self._going[sha256]
            self._index.headers.pop(sha256, None)
            outgoing += clear(self._topics, sha256, count_chunks(len(self._contents[sha256])))
        self._contents = {sha256: content for sha256, content in self._contents.items() if sha256 in wanted}
        self._posted.intersection_update(wanted)
        self._spoilt.intersection_update(wanted)
        self._again = {sha256: when for sha256, when in self._again.items() if sha256 in wanted}
        for header in self._index.surplus(wanted):
            del self._index.headers[header.sha256]
            outgoing += clear(self._topics, header.sha256, header.chunks)
        return outgoing

    def _divide(self, sha256: str) -> Iterator[Outgoing]:
        return iter_chunks(self._topics, sha256, self._contents[sha256])
