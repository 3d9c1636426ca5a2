"""Repeated warnings become one line with a count: what goes wrong with each of a thousand windows is said once."""

from __future__ import annotations

import atexit
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from har_edge.cli.console import fold
from har_edge.messaging.text import escape

# How often a kind that goes on is said again, with how many came meanwhile.
EVERY_S = 10.0
MAX_KINDS = 256
_NUMBERS = re.compile(r"\d+")


@dataclass(slots=True)
class _Kind:
    """When a kind was last said, and what came since."""

    said: float
    unsaid: int = 0
    last: logging.LogRecord | None = None


class Repeats(logging.Filter):
    """Lets the first record of a kind pass, and then one every 10 s that says how many there were.

    Records are of one kind where their text differs in numbers only. Errors always pass. `clock` is monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], every_s: float = EVERY_S) -> None:
        super().__init__()
        self._clock, self._every_s = clock, every_s
        self._kinds: OrderedDict[tuple[str, str], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record now; one that ends a pause says how many were left out."""
        if record.levelno >= logging.ERROR or record.exc_info:
            return True
        now, key = self._clock(), (record.name, _NUMBERS.sub("0", record.getMessage()))
        kind = self._kinds.get(key)
        if kind is None:
            self._kinds[key] = _Kind(now)
            if len(self._kinds) > MAX_KINDS:  # texts come from the network, too
                self._kinds.popitem(last=False)
            return True
        self._kinds.move_to_end(key)
        if now - kind.said < self._every_s:
            kind.unsaid, kind.last = kind.unsaid + 1, record
            return False
        _count(record, kind.unsaid)
        kind.said, kind.unsaid, kind.last = now, 0, None
        return True

    def finish(self, handler: logging.Handler) -> None:
        """Write the last record of each kind of which some were left out, with their number."""
        for kind in self._kinds.values():
            if kind.last is not None:
                _count(kind.last, kind.unsaid - 1)
                kind.unsaid, last, kind.last = 0, kind.last, None
                handler.emit(last)


def _count(record: logging.LogRecord, others: int) -> None:
    if others:
        record.msg, record.args = f"{record.getMessage()} (and {others} more like this since the last such line)", None


class _Plain(logging.Formatter):
    """Much of what is logged was said by others. On a terminal, lines break between words."""

    def format(self, record: logging.LogRecord) -> str:
        return fold(escape(super().format(record), keep="\n\t"), 9, sys.stderr)


def start(*, verbose: bool) -> None:
    """Send warnings, or everything, to standard error, a repeated one as one line with a count."""
    handler, repeats = logging.StreamHandler(), Repeats(time.monotonic)
    handler.addFilter(repeats)
    atexit.register(repeats.finish, handler)
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
