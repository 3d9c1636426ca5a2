"""What a stage remembers of windows, so that one part that is sent again is enough to go on with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.runtime.stage.join import Key, PartialWindow

MOST_WINDOWS = 4096
MOST_MADE = 1024


@dataclass(slots=True)
class Past:
    """The parts of a window, and when they were put away (monotonic seconds)."""

    gathered: PartialWindow
    at: float
    nbytes: int


class ReplayBuffer:
    """Keeps the parts of the windows put away last, as far as they fit into `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._past: OrderedDict[Key, Past] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether any window is put away."""
        return bool(self._past)

    def keep(self, gathered: PartialWindow, now: float) -> list[PartialWindow]:
        """Put a window away; return those that had to go for it, oldest first."""
        self.drop(gathered)
        nbytes = sum(part.nbytes for part in gathered.parts.values())
        if nbytes > self._most_bytes:
            return [gathered]
        past = Past(_by_itself(gathered), now, nbytes)
        self._past[gathered.key] = past
        self._bytes += past.nbytes
        gone = []
        while self._bytes > self._most_bytes or len(self._past) > MOST_WINDOWS:
            gone.append(next(iter(self._past.values())).gathered)
            self.drop(gone[-1])
        return gone

    def find(self, key: Key) -> Past | None:
        """Return what is known of the window of this stream and number."""
        return self._past.get(key)

    def forget(self, stream: str, captured: float) -> list[PartialWindow]:
        """Forget the windows of a stream that were captured before this (seconds since 1970), and return them."""
        known = [past.gathered for key, past in self._past.items() if key[0] == stream]
        gone = [gathered for gathered in known if gathered.message.captured[0] < captured]
        for gathered in gone:
            self.drop(gathered)
        return gone

    def expire(self, before: float) -> list[PartialWindow]:
        """Forget the windows put away before this (monotonic seconds), and return them, oldest first."""
        gone = []
        while self._past and (oldest := next(iter(self._past.values()))).at < before:
            gone.append(oldest.gathered)
            self.drop(oldest.gathered)
        return gone

    def drop(self, gathered: PartialWindow) -> None:
        """Forget a window, if it is known."""
        past = self._past.pop(gathered.key, None)
        self._bytes -= past.nbytes if past else 0


# When a window was run, when it was captured, how many bytes that made, and the messages: topic, payload, heard.
Made = tuple[float, tuple[float, ...], int, tuple[tuple[str, bytes, bool], ...]]


class OutputCache:
    """Keeps what was made of the windows run last, as far as it fits into `most_bytes`: it need not be made again.

    Nothing but nested tuples, into which Python's garbage collector does not look again and again; and not many, for
    memory that is used again is in the processor's cache.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._made: OrderedDict[Key, Made] = OrderedDict()

    def keep(self, key: Key, now: float, captured: tuple[float, ...], outgoing: Sequence[Outgoing]) -> None:
        """Remember what was published of a window that was run now (monotonic seconds)."""
        known, nbytes = self._made.pop(key, None), 0
        made: tuple[tuple[str, bytes, bool], ...] = ()
        if outgoing:
            made = tuple([(one.topic, one.payload, one.needs_subscriber) for one in outgoing])
            nbytes = sum([len(payload) for _, payload, _ in made])
        self._bytes += nbytes - (known[2] if known else 0)
        self._made[key] = now, captured, nbytes, made
        while self._bytes > self._most_bytes or len(self._made) > MOST_MADE:
            self._bytes -= self._made.popitem(last=False)[1][2]

    def find(self, key: Key) -> Made | None:
        """Return what was made of the window of this stream and number."""
        return self._made.get(key)

    def again(self, key: Key, now: float, release: tuple[Delivery, ...]) -> list[Outgoing]:
        """Return what was made of a known window, to be published again now for these deliveries."""
        _, captured, nbytes, made = self._made[key]
        self._made[key] = now, captured, nbytes, made
        return [Outgoing(topic, payload, release, needs_subscriber=needed) for topic, payload, needed in made]


def _by_itself(gathered: PartialWindow) -> PartialWindow:
    """Return a window without the messages that brought it: parts are views of these, which may hold much else."""
    parts = {name: part.copy() for name, part in gathered.parts.items()}
    return replace(gathered, message=msgspec.structs.replace(gathered.message, tensors={}), parts=parts, deliveries=[])
