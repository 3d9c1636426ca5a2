"""Join repeated warnings into one line with a count, so that a fault of a thousand windows is logged once."""

from __future__ import annotations

import atexit
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from har_edge.cli.console import fold
from har_edge.protocol.text import escape

# Seconds between two lines of one kind; the second has the number of records in between.
EVERY_S = 60.0
# Characters of a line, since its texts may come from the network.
MAX_LINE = 2000
# Bound on the kinds of one statement of the program, since their texts may come from the network.
MAX_TEXTS = 8
MAX_STATEMENTS = 256
# A kind that was not repeated for so long is forgotten when there are too many.
QUIET_S = 100.0
_NUMBERS = re.compile(r"\d+")


@dataclass(slots=True)
class _Kind:
    """The time at which a kind of record was last written, and the records since."""

    said: float
    unsaid: int = 0
    last: logging.LogRecord | None = None


@dataclass(slots=True)
class _Statement:
    """The kinds of one logging statement by their text; all further texts count as one kind."""

    texts: dict[str, _Kind] = field(default_factory=dict)
    others: _Kind | None = None


class RepeatFilter(logging.Filter):
    """Passes the first record of a kind, and then one every 60 s with the number of records since.

    Two records are of one kind if the same statement made them (logger, level, text before it is filled) and their
    texts differ in numbers only. After eight kinds of a statement, all its further texts count as one kind. Errors
    always pass. `clock` returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], every_s: float = EVERY_S) -> None:
        super().__init__()
        self._clock, self._every_s = clock, every_s
        self._statements: OrderedDict[tuple[str, int, str], _Statement] = OrderedDict()
        # Kinds that were dropped to make room, by their last record; `finish` writes their number.
        self._forgotten: _Kind | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record now; a record after a pause says how many were left out."""
        if record.levelno >= logging.ERROR or record.exc_info:
            return True
        now = self._clock()
        kind = self._find(record, now)
        if kind is None:
            return True
        if now - kind.said < self._every_s:
            kind.unsaid, kind.last = kind.unsaid + 1, record
            return False
        _count(record, kind.unsaid)
        kind.said, kind.unsaid, kind.last = now, 0, None
        return True

    def _find(self, record: logging.LogRecord, now: float) -> _Kind | None:
        """Return the kind of a record. A new kind gives None, and counts as written now."""
        key = record.name, record.levelno, _NUMBERS.sub("0", str(record.msg))
        statement = self._statements.setdefault(key, _Statement())
        self._statements.move_to_end(key)
        if len(self._statements) > MAX_STATEMENTS:
            self._forget(self._statements.popitem(last=False)[1])
        text = _NUMBERS.sub("0", record.getMessage()[:MAX_LINE])
        kind = statement.texts.get(text)
        if kind is not None:
            return kind
        if len(statement.texts) >= MAX_TEXTS:  # quiet kinds make room for new ones
            quiet = [name for name, one in statement.texts.items() if not one.unsaid and now - one.said >= QUIET_S]
            for name in quiet:
                del statement.texts[name]
        if len(statement.texts) < MAX_TEXTS:
            statement.texts[text] = _Kind(now)
            return None
        if statement.others is None:
            statement.others = _Kind(now)
            return None
        return statement.others

    def _forget(self, statement: _Statement) -> None:
        for kind in _kinds_of(statement):
            if kind.last is not None:
                unsaid = kind.unsaid + (self._forgotten.unsaid if self._forgotten else 0)
                self._forgotten = _Kind(kind.said, unsaid, kind.last)

    def finish(self, handler: logging.Handler) -> None:
        """Write the last record of each kind with records that were left out, and their number."""
        kinds = [kind for statement in self._statements.values() for kind in _kinds_of(statement)]
        for kind in [*kinds, *([self._forgotten] if self._forgotten else [])]:
            if kind.last is not None:
                _count(kind.last, kind.unsaid - 1)
                kind.unsaid, last, kind.last = 0, kind.last, None
                handler.emit(last)


def _kinds_of(statement: _Statement) -> list[_Kind]:
    return [*statement.texts.values(), *([statement.others] if statement.others else [])]


def _count(record: logging.LogRecord, others: int) -> None:
    if others:
        record.msg, record.args = f"{record.getMessage()} (and {others} more like this since the last such line)", None


class _Plain(logging.Formatter):
    """Escapes texts, since many come from the network; on a terminal, breaks lines between words."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if len(line) > MAX_LINE and not record.exc_info:
            line = f"{line[: MAX_LINE - 1]}…"
        return fold(escape(line, keep="\n\t"), 9, sys.stderr)


def start(*, verbose: bool) -> None:
    """Send warnings, or with `verbose` all records, to standard error; repeated ones become one line with a count."""
    handler, repeats = logging.StreamHandler(), RepeatFilter(time.monotonic)
    handler.addFilter(repeats)
    atexit.register(repeats.finish, handler)
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
