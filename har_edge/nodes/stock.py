"""The files of a deployment at the broker: what it lacks is published, what nobody names any more is removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from har_edge.messaging.bus import Delivery, Outgoing
from har_edge.messaging.topics import Topics
from har_edge.nodes.blobs import Shelf, clear, parcel


class Stock:
    """Contents by hash, and which of them the broker has."""

    def __init__(self, topics: Topics, contents: Mapping[str, bytes]) -> None:
        self._topics, self._shelf, self._contents = topics, Shelf(topics), dict(contents)
        self._posted: set[str] = set()

    @property
    def filter(self) -> str:
        return self._shelf.filter

    def handle(self, delivery: Delivery) -> None:
        """Take a header, or the empty message that removes one."""
        self._shelf.handle(delivery)
        if not delivery.payload:
            self._posted.discard(self._topics.read(delivery.topic).levels[0])

    def forget_broker(self) -> None:
        """Know nothing of the broker any more: after a reconnection what it has is sent again."""
        self._shelf.headers.clear()
        self._posted.clear()

    def add(self, contents: Mapping[str, bytes]) -> None:
        """Take contents that may be wanted."""
        self._contents.update(contents)

    def missing(self, wanted: Collection[str]) -> list[str]:
        """Return what the broker has not said to have."""
        return self._shelf.missing(wanted)

    def fill(self, wanted: Collection[str]) -> list[Outgoing]:
        """Return the messages that bring the broker what it lacks of what is here, each once."""
        fresh = [one for one in self.missing(wanted) if one in self._contents and one not in self._posted]
        self._posted.update(fresh)
        return [outgoing for sha256 in fresh for outgoing in parcel(self._topics, self._contents[sha256])]

    def tidy(self, wanted: Collection[str]) -> list[Outgoing]:
        """Drop everything else, here and at the broker."""
        self._contents = {sha256: content for sha256, content in self._contents.items() if sha256 in wanted}
        self._posted.intersection_update(wanted)
        outgoing = []
        for header in self._shelf.surplus(wanted):
            del self._shelf.headers[header.sha256]
            outgoing += clear(self._topics, header.sha256, header.chunks)
        return outgoing
