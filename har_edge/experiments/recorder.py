"""Every result of a run as it came, beside what a cluster looks like from outside."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from har_edge.cluster.view import ClusterView
from har_edge.protocol.events import ResultsEvent
from har_edge.protocol.results import Result
from har_edge.protocol.topics import is_probe


@dataclass(frozen=True, slots=True)
class Answered:
    """A result that the sink let through, and when (`at`: monotonic seconds)."""

    result: Result
    at: float


@dataclass(slots=True)
class Recorder(ClusterView):
    """Keeps what a watcher receives; `raw` counts each window's results before the sink, by stream, number, capture."""

    raw: Counter[tuple[str, int, float]] = field(default_factory=Counter)
    answered: list[Answered] = field(default_factory=list)
    _last: dict[str, Answered] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """How many results came again before the sink."""
        return self.raw.total() - len(self.raw)

    def last_result(self, stream: str) -> Answered | None:
        """Return the last result of a stream; None before the first."""
        return self._last.get(stream)

    def answers_after(self, stream: str, captured: float) -> bool:
        """Return whether a window captured later than this (seconds since 1970) has been answered."""
        for one in reversed(self.answered):
            if one.result.stream == stream:
                if one.result.captured > captured:
                    return True
                if one.result.emitted < captured:  # older ones were made before
                    return False
        return False

    def longest_pause(self, stream: str, start: float, stop: float) -> float:
        """Return the longest time (seconds) between two results of a stream, from the last one before `start` on."""
        times = [one.at for one in self.answered if one.result.stream == stream and one.at <= stop]
        before = [at for at in times if at < start][-1:]
        inside = before + [at for at in times if at >= start]
        return max((later - earlier for earlier, later in itertools.pairwise(inside)), default=0.0)

    def note_results(self, event: ResultsEvent, now: float) -> list[Result]:
        """Record the results of a message, and return those that were not seen before."""
        for result in event.results:
            if not is_probe(result.stream):
                self.raw[result.stream, result.seq, result.captured] += 1
        fresh = self.sink.take(event)
        for result in fresh:
            self._last[result.stream] = Answered(result, now)
            self.answered.append(self._last[result.stream])
        return fresh
