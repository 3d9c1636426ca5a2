"""The end of the pipeline: results in, each window once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from har_edge.mqtt.bus import Delivery
from har_edge.protocol.events import Event, ResultsEvent, decode, reason_of
from har_edge.protocol.results import Result
from har_edge.protocol.topics import is_probe
from har_edge.runtime.counters import Counters
from har_edge.runtime.transitions import advance

_log = logging.getLogger(__name__)
REMEMBERED = 100_000  # how many windows are known again: far more than can be under way at once
MOST_RUNS = 8  # how many runs of a stream, by the capture time of a window, are told from new ones


class AnswerState(str, Enum):
    """The state of a window at the sink."""

    UNKNOWN = "no result of it came, or it is forgotten"
    ANSWERED = "its result was passed on"
    REPEATED = "its result came again, and was dropped and counted"


class AnswerEvent(str, Enum):
    """The relation of a result to the window that it names."""

    FIRST = "a result comes, the first one"
    REPETITION = "a result comes that was captured when an earlier one was"
    OTHER_SOURCES = "a result of the same run comes that was made without other sources"
    NEW_RUN = "a result comes that was captured at another time: the stream has begun anew"


_S, _E = AnswerState, AnswerEvent
TRANSITIONS: Mapping[tuple[AnswerState, AnswerEvent], AnswerState] = MappingProxyType(
    {
        (_S.UNKNOWN, _E.FIRST): _S.ANSWERED,
        (_S.ANSWERED, _E.REPETITION): _S.REPEATED,
        (_S.ANSWERED, _E.OTHER_SOURCES): _S.REPEATED,
        (_S.ANSWERED, _E.NEW_RUN): _S.ANSWERED,
        (_S.REPEATED, _E.REPETITION): _S.REPEATED,
        (_S.REPEATED, _E.OTHER_SOURCES): _S.REPEATED,
        (_S.REPEATED, _E.NEW_RUN): _S.ANSWERED,
    }
)
INITIAL = AnswerState.UNKNOWN


@dataclass(slots=True)
class _Answer:
    """When the runs of a window were captured, and when its last answer was made, without which sources."""

    captured: tuple[float, ...] = ()
    made: float = 0.0
    missing: tuple[str, ...] = ()
    state: AnswerState = INITIAL


class Sink:
    """Drops duplicates by (stream, seq).

    A repetition has the capture time of the first; the same numbers with another capture time are a new run of the
    stream. A stage that died after it had run without a source may answer again with that source, which was captured
    at another time: such an answer is one of the same run, since it was captured before the first was made. Answers to
    probes are nobody's. It remembers the last `remembered` windows.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._answers: OrderedDict[tuple[str, int], _Answer] = OrderedDict()
        self.counters = Counters()

    def handle(self, delivery: Delivery) -> list[Result]:
        """Return the results of a message that were not seen before; drop, count and log an unusable one."""
        return self.take(decode(delivery))

    def take(self, event: Event) -> list[Result]:
        """Return the results of a decoded message, as `handle` does."""
        if not isinstance(event, ResultsEvent):
            self.counters.rejected += 1
            _log.warning("dropped %s: %s", event.topic or "a message", reason_of(event, "results"))
            return []
        self.counters.messages += 1
        return [result for result in event.results if not is_probe(result.stream) and self._is_new(result)]

    def _is_new(self, result: Result) -> bool:
        key, missing = (result.stream, result.seq), tuple(result.missing)
        answer = self._answers.get(key)
        if answer is None:  # the most frequent case, quickly
            state = advance(TRANSITIONS, INITIAL, AnswerEvent.FIRST)
            self._answers[key] = _Answer((result.captured,), result.emitted, missing, state)
            if len(self._answers) > self._remembered:
                self._answers.popitem(last=False)
            self.counters.windows += 1
            return True
        answer.state = advance(TRANSITIONS, answer.state, _event(answer, result.captured, missing))
        if answer.state is AnswerState.REPEATED:
            self.counters.duplicates += 1
            return False
        self._answers.move_to_end(key)
        answer.captured = (*answer.captured[1 - MOST_RUNS :], result.captured)
        answer.made, answer.missing = result.emitted, missing
        self.counters.windows += 1
        return True


def _event(answer: _Answer, captured: float, missing: tuple[str, ...]) -> AnswerEvent:
    if captured in answer.captured:
        return AnswerEvent.REPETITION
    if missing != answer.missing and captured <= answer.made:
        return AnswerEvent.OTHER_SOURCES
    return AnswerEvent.NEW_RUN
