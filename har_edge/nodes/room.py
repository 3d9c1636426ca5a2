"""How many messages of a stream may be on their way, so that those of all sensors together find room in the joins."""

from __future__ import annotations

from collections import OrderedDict

# How long after its last window a stream still has its share, and how often that is looked at.
ACTIVE_S = 10.0
LOOK_S = 1.0


class Room:
    """Shares the capacity of a join among the streams that are answered now. Pure: whoever calls says what time it is.

    All sensors of a stream hear the same answers. So when each has no more than n messages of it without an answer, the
    parts of no more than n windows of that stream wait anywhere: their sum is what a join must hold, however many
    processes send and however far apart their sources run.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._active: OrderedDict[str, float] = OrderedDict()  # by stream: when it was answered last, oldest first
        self._look_at = 0.0

    def grant(self, stream: str, now: float) -> int:
        """Note that a stream is answered now; return how many messages of each stream may be on their way."""
        self._active[stream] = now
        self._active.move_to_end(stream)
        if now >= self._look_at or len(self._active) > self._capacity:
            self._look_at = now + LOOK_S
            self._forget(now)
        return max(1, self._capacity // len(self._active))

    def _forget(self, now: float) -> None:
        while len(self._active) > 1:
            oldest, at = next(iter(self._active.items()))
            if now - at <= ACTIVE_S and len(self._active) <= self._capacity:
                return
            del self._active[oldest]
