"""How many messages of a stream may be on their way, so that those of all sensors together find room in the joins."""

from __future__ import annotations

import math
from collections import OrderedDict

# How long after its last window a stream still has its share: at least so long, and so many times the time between its
# visits; a new one, whose time is not known, for longer. How often that is looked at.
ACTIVE_S = 10.0
GAPS = 4.0
NEW_S = 60.0
LOOK_S = 1.0
# Messages of a stream within that time are one visit.
VISIT_S = 0.5


class StreamQuota:
    """Shares the capacity of a join among the streams that come now. Pure: whoever calls says what time it is.

    All sensors of a stream hear the same answers. So when each has no more than n messages of it without an answer, the
    parts of no more than n windows of that stream wait anywhere: their sum is what a join must hold, however many
    processes send and however far apart their sources run.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # By stream, the one that came last at the end: when that was, and how long it keeps its share.
        self._active: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._look_at = 0.0

    def note(self, stream: str, now: float) -> None:
        """Note that a message of a stream came."""
        at, keep_s = self._active.get(stream, (-math.inf, NEW_S))
        if at + VISIT_S < now and at > -math.inf:
            keep_s = max(ACTIVE_S, GAPS * (now - at), keep_s / 2)
        self._active[stream] = now, keep_s
        self._active.move_to_end(stream)
        if now >= self._look_at or len(self._active) > self._capacity:
            self._look_at = now + LOOK_S
            self._forget(now)

    def grant(self) -> int:
        """Return how many messages of each stream may be on their way now."""
        return max(1, self._capacity // max(1, len(self._active)))

    def _forget(self, now: float) -> None:
        for stream in [one for one, (at, keep_s) in self._active.items() if now - at > keep_s]:
            del self._active[stream]
        while len(self._active) > max(1, self._capacity):
            self._active.popitem(last=False)
