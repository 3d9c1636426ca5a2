"""Topic aliases: a publisher names a topic in full once in each connection, and by a number of two bytes afterwards."""

from __future__ import annotations


class TopicAliases:
    """The aliases of one connection's outgoing topics (MQTT 5, section 3.3.2.3.4).

    The first topics get aliases, up to the broker's Topic Alias Maximum, and keep them. With more topics, moving a
    number to another topic each time would cost more than it saves. A new connection begins without aliases.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}

    def name(self, topic: str) -> tuple[str, int | None]:
        """Return what to write as the topic and as its alias; call `remember` once the packet is on its way."""
        number = self._numbers.get(topic)
        if number is not None:
            return "", number
        return topic, len(self._numbers) + 1 if len(self._numbers) < self._most else None

    def remember(self, topic: str) -> None:
        """Record that a packet with the topic and the alias from `name` was sent."""
        if topic not in self._numbers and len(self._numbers) < self._most:
            self._numbers[topic] = len(self._numbers) + 1
