"""How many windows a sensor has sent, of each stream: what never comes is then known, the last windows too."""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.protocol.status import StreamCount

# With more streams than this, the others are reported together, under a name that is no stream's.
MOST_STREAMS = 64
OTHERS = "*"
RUN_BITS = 53  # what every reader of JSON keeps exactly


@dataclass(slots=True)
class _Figures:
    began: float
    sent: int = 0
    answered: int = 0
    lost: int = 0
    incomplete: int = 0


class SentCounter:
    """Counts the windows of one start of a sensor by stream. `run` tells that start from others (below 2^53).

    Without `heard`, the sensor listens to no results, so that nobody knows here what was answered.
    """

    def __init__(self, run: int, *, heard: bool) -> None:
        self.run, self._heard = run, heard
        self._streams: dict[str, _Figures] = {}

    def send(self, stream: str, count: int, captured: float) -> int:
        """Count windows that leave now for the first time; return how many of their stream left before."""
        figures = self._streams.get(stream)
        if figures is None:
            figures = self._streams[stream] = _Figures(captured)
        number, figures.sent = figures.sent, figures.sent + count
        return number

    def answer(self, stream: str) -> None:
        """Count a window that was answered."""
        self._streams[stream].answered += 1

    def lose(self, stream: str, count: int, *, incomplete: bool = False) -> None:
        """Count windows that are no longer awaited; below 0 for such that were answered after all.

        Those that other sensors have not sent are `incomplete`.
        """
        if incomplete:
            self._streams[stream].incomplete += count
        else:
            self._streams[stream].lost += count

    def counts(self) -> dict[str, StreamCount]:
        """Return the figures by stream, for the status message: those of many streams together where they are many."""
        told = dict(list(self._streams.items())[:MOST_STREAMS])
        if rest := list(self._streams.values())[MOST_STREAMS:]:
            told[OTHERS] = _Figures(
                min(one.began for one in rest),
                *(sum(getattr(one, name) for one in rest) for name in ("sent", "answered", "lost", "incomplete")),
            )
        heard = {name: one.answered if self._heard else None for name, one in told.items()}
        return {
            name: StreamCount(self.run, one.began, one.sent, heard[name], one.lost, one.incomplete)
            for name, one in told.items()
        }
