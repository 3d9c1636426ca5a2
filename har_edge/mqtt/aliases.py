"""Topic aliases: a publisher names a topic in full once a connection, and by a number of two bytes from then on."""

from __future__ import annotations


class TopicAliases:
    """The aliases of one connection's outgoing topics (MQTT 5, section 3.3.2.3.4).

    The first topics get them, as many as the broker's Topic Alias Maximum permits, and keep them: with more topics than
    that, giving a number to another topic each time would cost more than it saves. A connection begins without any.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}

    def name(self, topic: str) -> tuple[str, int | None]:
        """Return what to write as the topic and as its alias; `remember` the topic once that is on its way."""
        number = self._numbers.get(topic)
        if number is not None:
            return "", number
        return topic, len(self._numbers) + 1 if len(self._numbers) < self._most else None

    def remember(self, topic: str) -> None:
        """Note that a packet with the topic and the alias that `name` gave has been sent."""
        if topic not in self._numbers and len(self._numbers) < self._most:
            self._numbers[topic] = len(self._numbers) + 1
