"""Messages that wait to be handled: shares take turns, so that a stream that floods a stage delays itself only."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from har_edge.mqtt.bus import Delivery

Arrival = tuple[float, Delivery]


class FairQueue:
    """Deliveries with the time at which they came, in the order of arrival within a share, and of turns between them.

    Deficits are not carried over: a message is a turn, whatever its size (Nagle, RFC 970, fair queueing by source).

    >>> queue = FairQueue()
    >>> for number, share in enumerate("aaab"):
    ...     queue.push(share, (float(number), Delivery(share, b"", (1, number))))
    >>> [queue.pop()[1].topic for _ in range(4)]
    ['a', 'b', 'a', 'a']
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[str, deque[Arrival]] = OrderedDict()  # the next one in turn first; none is empty
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Arrival]:
        for waiting in self._shares.values():
            yield from waiting

    def count(self, share: str) -> int:
        """Return how many messages of a share wait."""
        return len(self._shares.get(share, ()))

    def push(self, share: str, arrival: Arrival) -> None:
        """Put a message at the end of its share."""
        waiting = self._shares.get(share)
        if waiting is None:
            waiting = self._shares[share] = deque()
        waiting.append(arrival)
        self._length += 1

    def pop(self) -> Arrival:
        """Take the first message of the share whose turn it is; raises KeyError where none waits."""
        share, waiting = self._shares.popitem(last=False)
        arrival = waiting.popleft()
        if waiting:
            self._shares[share] = waiting
        self._length -= 1
        return arrival

    @property
    def oldest(self) -> float | None:
        """When the message came that waits longest; None where none waits."""
        return min([waiting[0][0] for waiting in self._shares.values()], default=None)

    def clear(self) -> None:
        """Forget all."""
        self._shares.clear()
        self._length = 0
