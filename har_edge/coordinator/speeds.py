"""Speeds of nodes beside what they were and what their capabilities say, and stages that fall behind, by heartbeats.

The time of a stage differs from its forecast by more than the node's speed (messages, reducers). So a node is first
compared with itself: with its first windows of the same stage. A cause that slows all nodes alike is no reason for
another plan. Only a node that is far slower than forecast from the start, when others are not, counts as slow at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low

from har_edge.protocol.status import Heartbeat, StagePhase

# Windows before a figure counts, and over how many of the last ones the mean goes.
LEAST_WINDOWS = 20
MEMORY_WINDOWS = 40
# A forecast may be this far off for want of anything better than a cost model.
GROSS = 3.0
_MOST = 100.0
_LONG_QUEUE, _SHORT_QUEUE = 64, 8
# A queue that grew in so many heartbeats in a row shows that a slower figure lasts: it then has this weight.
_GROWN, _PRESSED = 3, 0.5
_MOST_SAID = 4096


@dataclass(slots=True)
class _Track:
    """One stage on one node: windows seen, first and recent ratio of measured to expected time."""

    instance: str
    key: tuple[int, int, int]
    windows: int
    base: float
    seen: int = 0
    first: float = 0.0
    recent: float = 0.0
    queued: int = 0
    grown: int = 0

    @property
    def drift(self) -> float:
        return self.recent / self.first


@dataclass(slots=True)
class SpeedEstimator:
    """Speed factors by node: 2 takes twice the time that its card lets expect."""

    _tracks: dict[str, _Track] = field(default_factory=dict)
    _settled: dict[str, float] = field(default_factory=dict)

    def note(self, heartbeat: Heartbeat, expected_s: Mapping[tuple[int, int, int], float]) -> None:
        """Take a heartbeat; `expected_s` are seconds a window of its stages, by (generation, stage, replica).

        Only what a node does with one stage alone tells its speed: several take time from each other.
        """
        track = self._tracks.get(heartbeat.node)
        if track is not None and track.instance != heartbeat.instance:
            self.forget(heartbeat.node)
            track = None
        alone = len(heartbeat.stages) == 1 and heartbeat.stages[0].phase is StagePhase.RUNNING
        report = heartbeat.stages[0] if alone else None
        key = (report.epoch, report.stage, report.replica) if report else None
        if track is not None and track.key != key:  # what was learnt holds for the next stage too
            self._settled[heartbeat.node] = self.factor(heartbeat.node)
            del self._tracks[heartbeat.node]
            track = None
        if report is None or key is None:
            return
        if track is None:
            base = self._settled.get(heartbeat.node, 1.0)
            self._tracks[heartbeat.node] = _Track(heartbeat.instance, key, report.windows, base)
            return
        windows, expected = report.windows - track.windows, expected_s.get(key, 0.0) * track.base
        track.windows = report.windows
        if windows <= 0 or report.service_s <= 0 or expected <= 0:
            return
        ratio = min(_MOST, max(1 / _MOST, report.service_s / expected))
        # The first windows count as they come; later ones move the mean by their share of MEMORY_WINDOWS.
        share = max(windows / (track.seen + windows), 1 - (1 - 1 / MEMORY_WINDOWS) ** windows)
        longer = report.queued > max(_SHORT_QUEUE, track.queued)
        track.queued, track.grown = report.queued, track.grown + 1 if longer else 0
        if track.grown >= _GROWN and track.first and ratio > track.recent:
            share = max(share, _PRESSED)
        track.recent += share * (ratio - track.recent)
        track.seen += windows
        if not track.first and track.seen >= LEAST_WINDOWS:
            track.first = track.recent

    def factor(self, node: str) -> float:
        """Return how many times slower than its card a node is; 1 until it has run enough windows."""
        track = self._tracks.get(node)
        if track is None or not track.first:
            return track.base if track else self._settled.get(node, 1.0)
        known = [one for one in self._tracks.values() if one.first]
        alike = median_low([one.drift for one in known]) if len(known) > 1 else 1.0
        usual = median_low([one.first for one in known])
        gross = track.first / usual if track.first > GROSS * usual else 1.0
        return min(_MOST, max(1 / _MOST, track.base * gross * track.drift / alike))

    def forget(self, node: str) -> None:
        """Drop what was learnt of a node that has gone or begun anew."""
        self._tracks.pop(node, None)
        self._settled.pop(node, None)


@dataclass(slots=True)
class BacklogMonitor:
    """Stages that fall behind: said once, and again whenever the queue has doubled."""

    _said: dict[tuple[str, int, int, int], int] = field(default_factory=dict)

    def note(self, heartbeat: Heartbeat) -> list[str]:
        """Return a line for every stage of a heartbeat whose queue has grown long."""
        lines = []
        if len(self._said) > _MOST_SAID:
            self._said.clear()
        for report in heartbeat.stages:
            key = (heartbeat.node, report.epoch, report.stage, report.replica)
            if report.queued < _SHORT_QUEUE:
                self._said.pop(key, None)
            elif report.queued >= max(_LONG_QUEUE, 2 * self._said.get(key, 0)):
                self._said[key] = report.queued
                lines.append(f"stage {report.stage} on {heartbeat.node} falls behind: {report.queued} messages wait")
        return lines
