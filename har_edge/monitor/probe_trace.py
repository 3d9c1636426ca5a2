"""Following a probe through a fixed pipeline: what stages send of it says which one had it last."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from har_edge.errors import BrokerError, MessageError
from har_edge.monitor.permissions import Connect
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.topics import Kind, Topics

# How long the broker may take to grant the subscription, before the probe is sent all the same.
GRANT_S = 2.0
_POLL_S = 0.02


class ProbeTrace:
    """Hears what stages send of one stream, on a connection of its own, since a broker may refuse it.

    Only activations of that stream are subscribed to: other windows are nobody else's than the stages'.
    """

    def __init__(self, connect: Connect, topics: Topics, epoch: int, stream: str) -> None:
        self._topics, self._stream = topics, stream
        self.seen: set[int] = set()
        self._bus: Bus | None = None
        try:
            self._bus = connect(Session(f"trace-{stream}", clean_start=True))
            self._bus.subscribe([topics.activation(epoch, "+", stream)])
            deadline = time.monotonic() + GRANT_S
            while not self._bus.connected and time.monotonic() < deadline:
                self._bus.poll(_POLL_S)
        except BrokerError:  # not permitted: then what stages say of themselves has to do
            self.close()

    def poll(self) -> None:
        """Take what came; never waits."""
        if self._bus is None:
            return
        try:
            for delivery in self._bus.poll(0.0):
                self._bus.acknowledge(delivery)
                self._take(delivery.topic)
        except BrokerError:
            self.close()

    def _take(self, text: str) -> None:
        try:
            topic = self._topics.read(text)
        except MessageError:
            return
        if topic.kind is Kind.ACTIVATION and topic.levels[2] == self._stream and topic.levels[1].isdecimal():
            self.seen.add(int(topic.levels[1]))

    def close(self) -> None:
        """End the connection."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close(forget=True)


def last_holder(
    seen: Collection[int], earlier: Mapping[int, Collection[int]], silent: Collection[int], waited: str
) -> str:
    """Say which stages hold a probe that was sent on by those `seen`; `earlier` are the stages that each takes from.

    `silent` ones have said nothing of themselves for a while, `waited` is how long that is.
    """
    holding = sorted(index for index, before in earlier.items() if index not in seen and set(before) <= set(seen))
    hanging = [index for index in holding if index in silent]
    at = hanging or holding
    names = ", ".join(f"stage {index}" for index in at)
    last = ", ".join(str(index) for index in sorted(seen))
    carried = f"stage {last} sent it on" if len(seen) == 1 else f"stages {last} sent it on"
    why = f", and said nothing of itself for {waited}: it hangs, or computes for long" if hanging else ""
    if not seen and not hanging:
        return (
            f"nothing was seen of it behind {names}: it holds the window, or this user may not read what stages send "
            "(act/#)"
        )
    return f"{f'{carried}; ' if seen else ''}{names} had it last{why}"
