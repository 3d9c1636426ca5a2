"""A broker that gives no more messages before those that it gave are acknowledged: it must not starve a join."""

from __future__ import annotations

import logging
import math

from har_edge.runtime.stage.join import Join
from har_edge.runtime.stage.window import PartialWindow

_log = logging.getLogger(__name__)
# When so many messages cannot be acknowledged for want of parts, and nothing comes for so long, the broker may be
# waiting for that. If it was, something comes at once when they are released; then so many are not held again for a
# while. Another device that is slow may have sent just then, too: so it is forgotten, and found out anew, each time to
# be trusted for twice as long.
STARVED_S = 1.0
TRUSTED_S, TRUSTED_MOST_S = 10.0, 3600.0
STARVED_LEAST = 8
AT_ONCE_S = 0.3


class ReceiveLimit:
    """Says when a join should release what waits, and learns how much it may hold. Pure: the caller says the time.

    A broker with a limit, and a join all of whose messages lack parts, wait for each other. The join sees silence, that
    may have other reasons; only what comes at once after a release tells that it was the broker.
    """

    def __init__(self, join: Join) -> None:
        self._join = join
        # When a message came last; when parts were last released because none came, and how many messages that freed.
        self._came, self._released_at, self._freed = math.inf, -math.inf, 0
        self._trusted_s, self._forget_at = TRUSTED_S, math.inf

    def note(self, came: float) -> None:
        """Note that a message came at this time (monotonic seconds)."""
        self._came = came
        if self._freed and came - self._released_at < AT_ONCE_S:
            self._join.hold = max(1, self._freed // 2)
            self._forget_at = came + self._trusted_s
            self._trusted_s = min(2 * self._trusted_s, TRUSTED_MOST_S)
            _log.info("the broker holds messages back while %d are unacknowledged; parts are put aside", self._freed)
        elif came >= self._forget_at:
            self._join.hold, self._forget_at = None, math.inf
        self._freed = 0

    def is_quiet(self, until: float) -> bool:
        """Return whether messages came lately, so that `release` has nothing to do."""
        return until - self._came <= STARVED_S

    def release(self, until: float) -> list[PartialWindow]:
        """Return, and forget, what waits, when nothing came for long although much cannot be acknowledged."""
        if self.is_quiet(until) or self._join.span < STARVED_LEAST:
            return []
        self._came, self._released_at, self._freed = math.inf, until, self._join.span
        return self._join.evict_all()
