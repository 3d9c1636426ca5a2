"""The windows that a stage keeps, so that it can go on with them when a single part is sent again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.runtime.stage.streams import NEWCOMERS
from har_edge.runtime.stage.window import Key, PartialWindow, Slot

# An entry counts for at least so many bytes. So the bound in bytes bounds the number too, to 4096 windows and 1024
# outputs; more outputs would leave the processor's cache.
LEAST_WINDOW_BYTES = 4096
LEAST_OUTPUT_BYTES = 1024
MOST_BEGUN = 2  # windows that keep what a shard computed of them; others are computed again


@dataclass(slots=True)
class Shelved:
    """A window that was released with parts missing, when (monotonic seconds), and in whose share (streams.py)."""

    window: PartialWindow
    at: float
    nbytes: int
    share: str


class ReplayBuffer:
    """Keeps the parts of the windows that were released last, as far as they fit into `most_bytes`.

    Beyond that, the share that holds most loses its oldest window. The last MOST_BEGUN keep what a shard has computed
    of them: it goes on from there when a part comes, however often a window is released.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._shelved: OrderedDict[Slot, Shelved] = OrderedDict()
        # The bytes of each share, and its windows, the oldest first.
        self._held: dict[str, int] = {}
        self._of_share: dict[str, dict[Slot, None]] = {}
        self._begun: list[Slot] = []

    def __bool__(self) -> bool:
        """Whether any window is kept."""
        return bool(self._shelved)

    def __len__(self) -> int:
        return len(self._shelved)

    def __contains__(self, slot: Slot) -> bool:
        return slot in self._shelved

    def keep(self, window: PartialWindow, now: float, share: str = NEWCOMERS) -> list[PartialWindow]:
        """Keep a window; return those that had to go for it, oldest first."""
        nbytes = max(LEAST_WINDOW_BYTES, sum(part.nbytes for part in window.parts.values()))
        if nbytes > self._most_bytes:
            return [window]
        gone = [self._drop(window.slot).window] if window.slot in self._shelved else []
        self._shelved[window.slot] = Shelved(_by_itself(window), now, nbytes, share)
        self._bytes += nbytes
        self._held[share] = self._held.get(share, 0) + nbytes
        self._of_share.setdefault(share, {})[window.slot] = None
        while self._bytes > self._most_bytes:
            largest = max(self._held, key=self._held.__getitem__)
            gone.append(self._drop(next(iter(self._of_share[largest]))).window)
        self._limit_begun(window)
        return gone

    def _limit_begun(self, window: PartialWindow) -> None:
        if window.progress is None:
            return
        begun = [*(slot for slot in self._begun if slot != window.slot and slot in self._shelved), window.slot]
        for slot in begun[:-MOST_BEGUN]:
            self._shelved[slot].window.progress = None
        self._begun = begun[-MOST_BEGUN:]

    def take(self, slot: Slot) -> Shelved | None:
        """Return, and forget, the window of this stream, number and batch, if it is kept."""
        return self._drop(slot) if slot in self._shelved else None

    def take_before(self, stream: str, captured: float) -> list[PartialWindow]:
        """Return, and forget, the windows of a stream that were captured before this (seconds since 1970)."""
        slots = [
            slot
            for slot, one in self._shelved.items()
            if slot[0] == stream and one.window.message.captured[0] < captured
        ]
        return [self._drop(slot).window for slot in slots]

    def expire(self, before: float) -> list[PartialWindow]:
        """Return, and forget, the windows that were released before this (monotonic seconds), oldest first."""
        gone = []
        while self._shelved and next(iter(self._shelved.values())).at < before:
            gone.append(self._drop(next(iter(self._shelved))).window)
        return gone

    def _drop(self, slot: Slot) -> Shelved:
        shelved = self._shelved.pop(slot)
        share = shelved.share
        self._bytes -= shelved.nbytes
        self._held[share] -= shelved.nbytes
        del self._of_share[share][slot]
        if not self._of_share[share]:
            del self._of_share[share], self._held[share]
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
