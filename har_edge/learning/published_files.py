"""The files of a training at the broker: sent a few chunks at a time, and again where a worker lacks one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from har_edge.mqtt.bus import Bus, Outgoing
from har_edge.protocol.artifacts import count_chunks
from har_edge.protocol.topics import TrainingTopics
from har_edge.protocol.training import TrainingFile
from har_edge.runtime.artifacts import clear, iter_chunks

# Chunks under way at once: rounds must not wait behind megabytes of samples.
_UNDER_WAY = 4


@dataclass(slots=True)
class PublishedFiles:
    """Brings files to the broker in order; `read` returns a content by its hash."""

    topics: TrainingTopics
    read: Callable[[str], bytes]
    sizes: dict[str, int] = field(default_factory=dict)
    _waiting: deque[str] = field(default_factory=deque)
    _current: Iterator[Outgoing] = field(default_factory=lambda: iter(()))
    _sending: str = ""  # the file that `_current` brings

    def add(self, files: Iterable[TrainingFile]) -> None:
        """Send these files after the others."""
        for one in files:
            if one.sha256 not in self.sizes:
                self.sizes[one.sha256] = one.size
                self._waiting.append(one.sha256)

    def again(self, sha256: str) -> bool:
        """Send a file next, though it was sent before; return whether it is one of these."""
        if sha256 not in self.sizes:
            return False
        if sha256 not in self._waiting:
            self._waiting.appendleft(sha256)
        return True

    @property
    def done(self) -> bool:
        """Whether all has been handed to the bus."""
        return not self._waiting and self._current is _NOTHING

    def pump(self, bus: Bus) -> None:
        """Hand a few chunks to the bus."""
        while bus.connected and bus.unsent < _UNDER_WAY:
            one = next(self._current, None)
            if one is not None:
                bus.publish(one.topic, one.payload, retain=one.retain)
            elif self._waiting:
                sha256 = self._waiting.popleft()
                self._sending = sha256
                self._current = iter_chunks(self.topics, sha256, self.read(sha256))
            else:
                self._current = _NOTHING
                return

    def remove(self, hashes: Iterable[str]) -> list[Outgoing]:
        """Return the messages that remove files from the broker."""
        sent: list[Outgoing] = []
        for sha256 in list(hashes):
            size = self.sizes.pop(sha256, None)
            if size is not None:
                if sha256 == self._sending:  # what of it has not been sent must not come after what removes it
                    self._current, self._sending = _NOTHING, ""
                sent += clear(self.topics, sha256, count_chunks(size))
        self._waiting = deque(one for one in self._waiting if one in self.sizes)
        return sent


_NOTHING: Iterator[Outgoing] = iter(())
