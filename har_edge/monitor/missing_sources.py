"""Which sources of a stream no sensor sends, although its windows wait for them: from what the sensors say. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from har_edge.protocol.status import ALIVE, NodeStatus
from har_edge.protocol.text import listed
from har_edge.protocol.topics import is_probe
from har_edge.runtime.sensor.sent_counter import OTHERS

# How long no result of a stream comes before anything is said: sensors start one after the other.
LATE_S = 10.0
MOST_NODES = 1024
MOST_STREAMS = 4096
MOST_SAID = 4 * MOST_STREAMS


@dataclass(slots=True)
class MissingSources:
    """Compares the `wanted` sources with those of the living sensors of each stream that has no results.

    Sensors of older versions do not say their sources: of their streams nothing is known. Windows that stages run
    without a source have results, and so are no concern here.
    """

    wanted: Collection[str] = ()
    _sensors: dict[str, NodeStatus] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)  # by stream: last result, or first window of a sensor
    _said: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def take_status(self, status: NodeStatus, now: float) -> None:
        """Take what a sensor says, at `now` (monotonic seconds); statuses of others say nothing of sources."""
        if status.role != "sensor":
            return
        before = self._sensors.pop(status.node, None)
        sending = before.streams if before is not None and before.instance == status.instance else {}
        if status.state in ALIVE and len(self._sensors) < MOST_NODES:
            self._sensors[status.node] = status
            for stream, count in status.streams.items():
                began = bool(count.sent) and not (stream in sending and sending[stream].sent)
                if stream not in self._since and len(self._since) >= MOST_STREAMS:
                    continue
                self._since[stream] = now if began else self._since.get(stream, now)

    def take_result(self, stream: str, now: float) -> None:
        """Note that a window of a stream was answered."""
        if stream in self._since:
            self._since[stream] = now

    def tell(self, now: float) -> list[str]:
        """Return what is to be said now, the same thing once: which sources of which streams have not come."""
        lacking: dict[tuple[str, ...], list[str]] = {}
        for stream, missing in self._missing().items():
            fresh = (stream, missing) not in self._said and len(self._said) < MOST_SAID
            if fresh and now >= self._since[stream] + LATE_S:
                self._said.add((stream, missing))
                lacking.setdefault(missing, []).append(stream)
        return [
            f"no result of {listed(streams)} comes: no sensor at work sends {listed(missing)} of it; waiting"
            if len(streams) == 1
            else f"no results of {listed(streams)} come: no sensors at work send {listed(missing)} of them; waiting"
            for missing, streams in lacking.items()
        ]

    def _missing(self) -> dict[str, tuple[str, ...]]:
        """Return what lacks, by stream, in the order of the wanted sources."""
        sent: dict[str, set[str]] = {}
        unknown: set[str] = set()
        for status in self._sensors.values():
            for stream, count in status.streams.items():
                if not status.sources:
                    unknown.add(stream)
                elif count.sent and stream in self._since and stream != OTHERS and not is_probe(stream):
                    sent.setdefault(stream, set()).update(status.sources)
        missing = {
            stream: tuple(source for source in self.wanted if source not in sources)
            for stream, sources in sent.items()
            if stream not in unknown
        }
        return {stream: sources for stream, sources in missing.items() if sources}
