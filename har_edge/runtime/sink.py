"""The end of the pipeline: results in, each window once."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.results import Result, decode_results
from har_edge.protocol.topics import is_probe
from har_edge.runtime.counters import Counters

_log = logging.getLogger(__name__)
REMEMBERED = 100_000


class Sink:
    """Drops duplicates by (stream, seq).

    A repetition has the capture time of the first; the same numbers with another capture time are a new run of the
    stream. A stage that died when it had carried on without a source may answer again with that source, which was
    captured at another time: such an answer is one of the same run, since it was captured before the first was made.
    Answers to probes are nobody's. It remembers the last `remembered` windows, far more than can be under way at once.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._seen: OrderedDict[tuple[str, int, float], None] = OrderedDict()
        # Of each window, when its last answer was made, and without which sources.
        self._last: OrderedDict[tuple[str, int], tuple[float, tuple[str, ...]]] = OrderedDict()
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
        return [result for result in results if not is_probe(result.stream) and self._is_new(result)]

    def _is_new(self, result: Result) -> bool:
        key, missing = (result.stream, result.seq, result.captured), tuple(result.missing)
        made, lacked = self._last.get(key[:2], (-math.inf, missing))
        again = lacked != missing and result.captured <= made
        if again or key in self._seen:
            self.counters.duplicates += 1
            return False
        self._seen[key] = None
        self._last[key[:2]] = (result.emitted, missing)
        for memory in (self._seen, self._last):
            if len(memory) > self._remembered:
                memory.popitem(last=False)
        self.counters.windows += 1
        return True
