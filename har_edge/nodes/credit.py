"""How a sensor knows what became of its windows: by counting results, or by keeping each until it is answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from har_edge.errors import MessageError
from har_edge.messaging.bus import Delivery, Outgoing
from har_edge.messaging.topics import Topics
from har_edge.nodes.results import decode_results
from har_edge.nodes.sensor import Sensor
from har_edge.streams.recording import Window

_log = logging.getLogger(__name__)
QUIET_S = 10.0


class Credit(Protocol):
    """What the loops of sensors ask: which windows are open, what to send, and what to send again."""

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""

    @property
    def epoch(self) -> int:
        """The epoch of the deployment that is followed; 0 where none is."""

    @property
    def open(self) -> int:
        """How many windows are unanswered; 0 where nobody counts."""

    def open_of(self, stream: str) -> int:
        """Return how many windows of a stream are unanswered."""

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        """Return the messages for new windows."""

    def take(self, delivery: Delivery, now: float) -> None:
        """Take a message of the topics above."""

    def again(self, now: float, *, connected: bool, kept: bool, forgotten: int = 0) -> list[Outgoing]:
        """Return what to send again. Call it now and then.

        `kept` says that some of what was sent has not left yet, `forgotten` how often the broker has lost this session.
        """

    def is_done(self, pending: int) -> bool:
        """Tell whether a sensor that has sent everything may end; `pending` messages are not safe at the broker."""

    def is_hopeless(self, now: float) -> bool:
        """Tell whether no answer will come any more."""

    def abandon(self) -> None:
        """Count what was not answered and will not be awaited."""


class Tally:
    """Counts results, where no plan says that lost windows can be sent again.

    A result answers all windows of its stream before it. A stream without a result for `patience_s` (longer than a
    stage waits for parts) goes on without those windows. Without `topics`, nobody counts.
    """

    def __init__(self, sensor: Sensor, topics: Topics | None = None, patience_s: float = 60.0) -> None:
        self._sensor, self._topics, self._patience_s = sensor, topics, patience_s
        # For each stream: the number after the last window sent, and after the last one answered.
        self._sent: dict[str, int] = {}
        self._answered: dict[str, int] = {}
        # For each stream: since when windows are out without any result; and when that was last logged.
        self._quiet_since: dict[str, float] = {}
        self._warned_at = time.monotonic()

    epoch = 0

    @property
    def filters(self) -> list[str]:
        return [self._topics.result("+")] if self._topics else []

    @property
    def open(self) -> int:
        return sum(map(self.open_of, self._sent))

    def open_of(self, stream: str) -> int:
        return self._sent.get(stream, 0) - self._answered.get(stream, 0)

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        if self._topics:
            stream = windows[-1].stream
            if not self.open_of(stream):
                self._quiet_since[stream] = now
            self._sent[stream] = windows[-1].seq + 1
        return self._sensor.handle(windows, captured)

    def take(self, delivery: Delivery, now: float) -> None:
        try:
            results = decode_results(delivery.payload)
        except MessageError as error:
            _log.warning("dropped %s: %s", delivery.topic, error)
            return
        for result in results:
            if result.stream not in self._sent:
                continue
            self._quiet_since[result.stream] = now
            # Results of an earlier run of this stream may carry higher numbers than were sent now.
            answered = min(result.seq + 1, self._sent[result.stream])
            self._answered[result.stream] = max(answered, self._answered.get(result.stream, 0))

    def again(self, now: float, *, connected: bool, kept: bool, forgotten: int = 0) -> list[Outgoing]:
        """Say when results stay away; go on without them when no stage can still be waiting for a part of them."""
        if kept or not connected:  # then nothing is lost: it has not gone out
            self._quiet_since = dict.fromkeys(self._quiet_since, now)
            return []
        for stream, since in self._quiet_since.items():
            out, quiet_s = self.open_of(stream), now - since
            if out and quiet_s > self._patience_s:
                _log.warning("no result of %s for %.0f s: going on without its %d windows", stream, quiet_s, out)
                self._answered[stream] = self._sent[stream]
                self._sensor.counters.unanswered += out
            elif out and quiet_s > QUIET_S and now - self._warned_at > QUIET_S:
                self._warned_at = now
                _log.warning("no result of %s for %.0f s with %d windows out; waiting", stream, quiet_s, out)
        return []

    def is_done(self, pending: int) -> bool:
        return not pending

    def is_hopeless(self, now: float) -> bool:
        return False

    def abandon(self) -> None:
        pass
