"""Publishing at QoS 1, and acknowledging what came only when the output that follows from it is safe at the broker."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Outgoing, PublishOutcome
from har_edge.runtime.counters import Counters
from har_edge.runtime.transitions import advance
from har_edge.timing import LAST_ACKS_S, NO_BROKER_S, PUBLISH_RETRY_S

_log = logging.getLogger(__name__)


class OutputState(str, Enum):
    """The state of an output, and with it of the deliveries that it was made from."""

    PUBLISHED = "on its way to the broker; the deliveries it was made of are not acknowledged"
    KEPT = "kept, to be published again; the deliveries it was made of are not acknowledged"
    ACKED = "safe at the broker; the deliveries it was made of are acknowledged"
    DROPPED = "counted as lost; the deliveries it was made of are acknowledged"


class OutputEvent(str, Enum):
    """An event of an output (MQTT 5, section 3.4.2.1)."""

    ACKED = "the broker has it, and a subscriber where it needs one"
    NO_SUBSCRIBERS = "nobody subscribes to it"
    REFUSED = "the broker refuses it"
    TOO_LARGE = "it is larger than the broker takes: no retry makes it smaller"
    RETRY = "PUBLISH_RETRY_S have passed"


TRANSITIONS: Mapping[tuple[OutputState, OutputEvent], OutputState] = MappingProxyType(
    {
        (OutputState.PUBLISHED, OutputEvent.ACKED): OutputState.ACKED,
        (OutputState.PUBLISHED, OutputEvent.NO_SUBSCRIBERS): OutputState.KEPT,
        (OutputState.PUBLISHED, OutputEvent.REFUSED): OutputState.KEPT,
        (OutputState.PUBLISHED, OutputEvent.TOO_LARGE): OutputState.DROPPED,
        (OutputState.KEPT, OutputEvent.RETRY): OutputState.PUBLISHED,
    }
)
INITIAL = OutputState.PUBLISHED
_EVENTS = {
    PublishOutcome.ACKED: OutputEvent.ACKED,
    PublishOutcome.NO_SUBSCRIBERS: OutputEvent.NO_SUBSCRIBERS,
    PublishOutcome.REFUSED: OutputEvent.REFUSED,
    PublishOutcome.TOO_LARGE: OutputEvent.TOO_LARGE,
}


class Sender:
    """Publishes, and acknowledges inputs once the broker has the output; keeps what nobody hears and tries again.

    `advice` says what to do when nobody listens; that, and a refusal, are logged once.
    """

    def __init__(self, bus: Bus, counters: Counters, advice: str) -> None:
        self._bus, self._counters, self._advice = bus, counters, advice
        self._kept: deque[tuple[float, Outgoing]] = deque()
        self._logged: set[PublishOutcome] = set()
        # How many messages still hold each delivery: it is acknowledged when the last of them is safe.
        self._holders: dict[tuple[int, int], int] = {}
        self._unfinished: set[tuple[int, int]] = set()  # deliveries that a later message will name

    @property
    def pending(self) -> int:
        """How many messages are not yet safe at the broker."""
        return self._bus.unsent + len(self._kept)

    @property
    def kept(self) -> int:
        """How many messages wait to be tried again."""
        return len(self._kept)

    def send(self, outgoing: Outgoing) -> None:
        """Publish one message, or release its deliveries when it has no topic.

        Deliveries that several messages settle are named in each. All of those must be sent before the next poll, but
        for messages that are `partial`: their deliveries wait for a later one that is not.
        """
        for delivery in outgoing.acks:
            self._holders[delivery.token] = self._holders.get(delivery.token, 0) + 1
        if outgoing.partial:
            self._unfinished.update(delivery.token for delivery in outgoing.acks)
        elif self._unfinished:
            self._unfinished.difference_update(delivery.token for delivery in outgoing.acks)
        if outgoing.topic:
            self._publish(outgoing, INITIAL)
        else:
            self._release(outgoing)

    def _publish(self, outgoing: Outgoing, state: OutputState) -> None:
        self._bus.publish(
            outgoing.topic,
            outgoing.payload,
            retain=outgoing.retain,
            on_outcome=lambda outcome: self._settle(outgoing, state, outcome),
        )

    def retry(self, now: float) -> None:
        """Publish again what nobody heard a while ago."""
        while self._kept and self._kept[0][0] <= now:
            self._publish(self._kept.popleft()[1], advance(TRANSITIONS, OutputState.KEPT, OutputEvent.RETRY))

    def _settle(self, outgoing: Outgoing, state: OutputState, outcome: PublishOutcome) -> None:
        needless = outcome is PublishOutcome.NO_SUBSCRIBERS and not outgoing.needs_subscriber
        event = OutputEvent.ACKED if needless else _EVENTS[outcome]
        state = advance(TRANSITIONS, state, event)
        if state is OutputState.KEPT:
            self._keep(outgoing, outcome)
            return
        if state is OutputState.DROPPED:
            self._counters.too_large += 1
        self._release(outgoing)

    def _keep(self, outgoing: Outgoing, outcome: PublishOutcome) -> None:
        self._kept.append((time.monotonic() + PUBLISH_RETRY_S, outgoing))
        if outcome is PublishOutcome.NO_SUBSCRIBERS:
            self._counters.unheard += 1
            text = f"nobody listens to {outgoing.topic}; keeping the message and trying again: {self._advice}"
        else:
            self._counters.refused += 1
            text = f"the broker refused a message on {outgoing.topic}; trying again: see its access list"
        if outcome not in self._logged:
            self._logged.add(outcome)
            _log.warning(text)

    def _release(self, outgoing: Outgoing) -> None:
        for delivery in outgoing.acks:
            self._holders[delivery.token] -= 1
            if not self._holders[delivery.token] and delivery.token not in self._unfinished:
                del self._holders[delivery.token]
                self._bus.acknowledge(delivery)


def drain(bus: Bus) -> None:
    """Wait a moment until what was published is safe, a shorter one for a broker that is not there."""
    deadline = time.monotonic() + LAST_ACKS_S
    back_by = time.monotonic() + NO_BROKER_S
    try:
        while bus.unsent and time.monotonic() < deadline and (bus.connected or time.monotonic() < back_by):
            bus.poll(0.05)
            if bus.connected:
                back_by = time.monotonic() + NO_BROKER_S
    except BrokerError as error:
        _log.warning("stopping without the broker: %s", error)
