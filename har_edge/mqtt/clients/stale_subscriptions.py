"""Find subscriptions that an earlier process left in a session.

A session outlives its process, and a pipeline that is cut anew has stages of the same name that want other topics. MQTT
has no request for the subscriptions of a session. A message that matches no filter of this process reveals one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from har_edge.mqtt.broker.router import matches
from har_edge.mqtt.clients.transport import read_share

_MOST = 4096  # topics that are remembered
_OPEN_LEVELS = 3  # the last levels, which a filter of har_edge may leave open (protocol/topics.py)


class StaleSubscriptions:
    """Knows the topics that a bus subscribed to; `count` is the number of messages on other topics."""

    def __init__(self) -> None:
        self._wanted = _Filters()
        self._known: dict[str, bool] = {}
        self._left: set[str] = set()
        self.count = 0

    def want(self, filters: Sequence[str]) -> None:
        """Record subscriptions of this process."""
        for text in filters:
            share = read_share(text)
            self._wanted.add(share[1] if share else text)
            self._left.discard(text)
        self._known.clear()

    def is_stale(self, topic: str) -> bool:
        """Return whether no subscription of this process matches a topic."""
        known = self._known.get(topic)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[topic] = not self._wanted.match(topic)
        self.count += known
        return known

    def leave(self, topic: str) -> list[str]:
        """Return the filters to unsubscribe from for a stale topic, each of them once."""
        fresh = [text for text in filters_for(topic) if text not in self._left] if len(self._left) < _MOST else []
        self._left.update(fresh)
        return fresh


class _Filters:
    """Filters by the places of their `+`: a topic is looked up once for each pattern of places, however many filters
    have it. A stage of many parts meets new topics with each new stream.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[int, ...], set[tuple[str, ...]]] = {}
        self._others: list[str] = []  # with `#`, or `+` at the front, which no topic with `$` matches

    def add(self, text: str) -> None:
        levels = tuple(text.split("/"))
        if "#" in levels or levels[0] == "+":
            self._others.append(text)
            return
        places = tuple(place for place, level in enumerate(levels) if level == "+")
        self._exact.setdefault(places, set()).add(levels)

    def match(self, topic: str) -> bool:
        """Return whether a filter matches a topic (MQTT 5, section 4.7)."""
        levels = topic.split("/")
        for places, filters in self._exact.items():
            if not places:
                found = tuple(levels) in filters
            elif places[-1] >= len(levels):
                continue
            else:
                blanked = levels.copy()
                for place in places:
                    blanked[place] = "+"
                found = tuple(blanked) in filters
            if found:
                return True
        return any(matches(text, topic) for text in self._others)


def filters_for(topic: str) -> list[str]:
    """Return the filters that may have brought a topic: the topic itself, then those with `+` for single levels."""
    levels = topic.split("/")
    fixed, last = levels[:-_OPEN_LEVELS], levels[-_OPEN_LEVELS:]
    choices = itertools.product(*((level, "+") for level in last))
    return ["/".join([*fixed, *choice]) for choice in choices]
