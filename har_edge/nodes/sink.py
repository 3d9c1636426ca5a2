"""The end of the pipeline: results in, each window once."""

from __future__ import annotations

import logging
from collections import OrderedDict

from har_edge.errors import MessageError
from har_edge.messaging.bus import Delivery
from har_edge.nodes.counters import Counters
from har_edge.nodes.results import Result, decode_results

_log = logging.getLogger(__name__)
REMEMBERED = 100_000


class Sink:
    """Drops duplicates by (stream, seq).

    A repetition has the capture time of the first; the same numbers with another capture time are a new run of the
    stream. It remembers the last `remembered` windows, far more than can be under way at once.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._seen: OrderedDict[tuple[str, int, float], None] = OrderedDict()
        self.counters = Counters()

    def handle(self, delivery: Delivery) -> list[Result]:
        """Return the results of a message that were not seen before; drop, count and log an unusable one."""
        try:
            results = decode_results(delivery.payload)
        except MessageError as error:
            self.counters.rejected += 1
            _log.warning("dropped %s: %s", delivery.topic, error)
            return []
        self.counters.messages += 1
        return [result for result in results if self._is_new(result)]

    def _is_new(self, result: Result) -> bool:
        key = (result.stream, result.seq, result.captured)
        if key in self._seen:
            self.counters.duplicates += 1
            return False
        self._seen[key] = None
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        self.counters.windows += 1
        return True
