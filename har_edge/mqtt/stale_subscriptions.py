"""Messages of subscriptions that an earlier process left in a session: what it asked for then, and nobody asks for now.

A session outlives its process, and a pipeline that is cut anew has stages of the same name that want other topics. The
broker cannot be asked what a session is subscribed to; a message that no filter of ours matches shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from har_edge.mqtt.broker.router import matches
from har_edge.mqtt.transport import read_share

_MOST = 4096  # topics that are remembered
_OPEN_LEVELS = 3  # the last levels, which a filter of har_edge may leave open (protocol/topics.py)


class StaleSubscriptions:
    """Knows which topics the subscriptions of a bus ask for; `count` is how many messages came that none asks for."""

    def __init__(self) -> None:
        self._wanted: list[str] = []
        self._known: dict[str, bool] = {}
        self._left: set[str] = set()
        self.count = 0

    def want(self, filters: Sequence[str]) -> None:
        """Take note of subscriptions."""
        for text in filters:
            share = read_share(text)
            self._wanted.append(share[1] if share else text)
            self._left.discard(text)
        self._known.clear()

    def is_stale(self, topic: str) -> bool:
        """Return whether no subscription asks for a topic."""
        known = self._known.get(topic)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[topic] = not any(matches(text, topic) for text in self._wanted)
        self.count += known
        return known

    def leave(self, topic: str) -> list[str]:
        """Return the filters to unsubscribe from for a stray topic: each once."""
        fresh = [text for text in filters_for(topic) if text not in self._left] if len(self._left) < _MOST else []
        self._left.update(fresh)
        return fresh


def filters_for(topic: str) -> list[str]:
    """Return the filters of a single level each, `+`, that may have brought a topic, itself first."""
    levels = topic.split("/")
    fixed, last = levels[:-_OPEN_LEVELS], levels[-_OPEN_LEVELS:]
    choices = itertools.product(*((level, "+") for level in last))
    return ["/".join([*fixed, *choice]) for choice in choices]
