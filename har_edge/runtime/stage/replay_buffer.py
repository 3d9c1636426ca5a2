"""The windows that a stage keeps, so that it can go on with them when a single part is sent again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.runtime.stage.window import Key, PartialWindow

# An entry counts for at least so many bytes. So the bound in bytes bounds the number too, to 4096 windows and 1024
# outputs; more outputs would leave the processor's cache.
LEAST_WINDOW_BYTES = 4096
LEAST_OUTPUT_BYTES = 1024


@dataclass(slots=True)
class Shelved:
    """A window that was released with parts missing, and when (monotonic seconds)."""

    window: PartialWindow
    at: float
    nbytes: int


class ReplayBuffer:
    """Keeps the parts of the windows that were released last, as far as they fit into `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._shelved: OrderedDict[Key, Shelved] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether any window is kept."""
        return bool(self._shelved)

    def __len__(self) -> int:
        return len(self._shelved)

    def __contains__(self, key: Key) -> bool:
        return key in self._shelved

    def keep(self, window: PartialWindow, now: float) -> list[PartialWindow]:
        """Keep a window; return those that had to go for it, oldest first."""
        nbytes = max(LEAST_WINDOW_BYTES, sum(part.nbytes for part in window.parts.values()))
        if nbytes > self._most_bytes:
            return [window]
        self._shelved[window.key] = Shelved(_by_itself(window), now, nbytes)
        self._bytes += nbytes
        gone = []
        while self._bytes > self._most_bytes:
            gone.append(self._drop(next(iter(self._shelved))).window)
        return gone

    def take(self, key: Key) -> Shelved | None:
        """Return, and forget, the window of this stream and number, if it is kept."""
        return self._drop(key) if key in self._shelved else None

    def take_before(self, stream: str, captured: float) -> list[PartialWindow]:
        """Return, and forget, the windows of a stream that were captured before this (seconds since 1970)."""
        keys = [
            key for key, one in self._shelved.items() if key[0] == stream and one.window.message.captured[0] < captured
        ]
        return [self._drop(key).window for key in keys]

    def expire(self, before: float) -> list[PartialWindow]:
        """Return, and forget, the windows that were released before this (monotonic seconds), oldest first."""
        gone = []
        while self._shelved and next(iter(self._shelved.values())).at < before:
            gone.append(self._drop(next(iter(self._shelved))).window)
        return gone

    def _drop(self, key: Key) -> Shelved:
        shelved = self._shelved.pop(key)
        self._bytes -= shelved.nbytes
        return shelved


# When a window was run, when it was captured, what that counts for, and the messages: topic, payload, needs_subscriber.
Output = tuple[float, tuple[float, ...], int, tuple[tuple[str, bytes, bool], ...]]


class OutputCache:
    """Keeps what the windows run last gave, as far as it fits into `most_bytes`: it need not be computed again.

    Nothing but nested tuples, into which Python's garbage collector does not look again and again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._outputs: OrderedDict[Key, Output] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outputs)

    def keep(self, key: Key, now: float, captured: tuple[float, ...], outgoing: Sequence[Outgoing]) -> None:
        """Remember what was published of a window that was run now (monotonic seconds)."""
        known, nbytes = self._outputs.pop(key, None), LEAST_OUTPUT_BYTES
        messages: tuple[tuple[str, bytes, bool], ...] = ()
        if outgoing:
            messages = tuple([(one.topic, one.payload, one.needs_subscriber) for one in outgoing])
            nbytes = max(nbytes, sum([len(payload) for _, payload, _ in messages]))
        self._bytes += nbytes - (known[2] if known else 0)
        self._outputs[key] = now, captured, nbytes, messages
        while self._bytes > self._most_bytes:
            self._bytes -= self._outputs.popitem(last=False)[1][2]

    def find(self, key: Key) -> Output | None:
        """Return what was made of the window of this stream and number."""
        return self._outputs.get(key)

    def replay(self, key: Key, now: float, release: tuple[Delivery, ...]) -> list[Outgoing]:
        """Return what was made of a known window, to be published again now for these deliveries."""
        _, captured, nbytes, messages = self._outputs[key]
        self._outputs[key] = now, captured, nbytes, messages
        return [Outgoing(topic, payload, release, needs_subscriber=needed) for topic, payload, needed in messages]


def _by_itself(window: PartialWindow) -> PartialWindow:
    """Return a window without the messages that brought it: parts are views of these, which may hold much else."""
    parts = {name: part.copy() for name, part in window.parts.items()}
    return replace(window, message=msgspec.structs.replace(window.message, tensors={}), parts=parts, deliveries=[])
