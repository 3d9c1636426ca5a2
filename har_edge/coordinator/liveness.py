"""Liveness by flow: whether a generation answers, and if not, which stage is moved. It reads no clock.

Heartbeats say that a process lives, not that it works. So the coordinator's own probe counts: while one is unanswered
and no result comes out, for longer than `patience_s`, the first stage whose count stands still while its input grows is
to blame. After each move without an answer the patience doubles, so that a cause which no move mends moves little.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from har_edge.config.task import Task
from har_edge.coordinator.flow_monitor import FLOW_S, FlowMonitor, Suspect, last_before
from har_edge.coordinator.membership import Membership
from har_edge.coordinator.readiness import PATIENCE, PATIENCE_S, ProbeSeries
from har_edge.planner.relocation import Key
from har_edge.protocol.deployment import Generation
from har_edge.timing import FLOW_PATIENCE_S, HEARTBEAT_S

# Without a result for so long after windows came out, a probe goes out at once.
QUIET_S = 1.0
MOST_PATIENCE_S = 60.0
# How long a stage may be deaf while the others answer without it.
DEAF_S = 10.0
_PAUSES = 64


@dataclass(slots=True)
class FlowLiveness:
    """Watches the generation that sensors send to, and one on trial."""

    membership: Membership
    task: Task
    _monitor: FlowMonitor | None = None
    _trial: FlowMonitor | None = None
    _since: float = float("-inf")
    _strikes: int = 0
    _struck_at: float = float("-inf")
    _blamed: set[Key] = field(default_factory=set)
    _pauses: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_PAUSES))

    def restart(self, at: float) -> None:
        """Begin all clocks anew at a time: this process was blind, or what flows was changed."""
        self._since = max(self._since, at)
        for monitor in (self._monitor, self._trial):
            if monitor is not None:
                monitor.restart(at)

    def note_pause(self, seconds: float, now: float) -> None:
        """Let a time not count in which this process did not listen."""
        self._pauses.append((now, seconds))

    def patience_s(self, series: ProbeSeries) -> float:
        """Return how long nothing may come out while a probe is unanswered."""
        epoch = self._monitor.generation.epoch if self._monitor is not None else 0
        patience_s = _patience_s(series, epoch)
        return max(patience_s, min(MOST_PATIENCE_S, patience_s * 2.0 ** min(self._strikes, 16)))

    def look(self, generation: Generation | None, running: bool, series: ProbeSeries, now: float) -> Suspect | None:
        """Return who keeps windows from going through the current generation, None where nobody does.

        `running` says that all its stages run, as their nodes say. Each call may strike once: the next one waits.
        """
        if generation is None:
            self._monitor = None
            return None
        monitor = self._monitor
        if monitor is None or monitor.generation.epoch != generation.epoch:
            monitor = self._monitor = FlowMonitor(generation, self.task)
            self._strikes, self._blamed = 0, set()
            self._since = max(self._since, now)
        monitor.note(generation, self.membership, now)
        if series.answered_at > self._struck_at:
            self._strikes, self._blamed = 0, set()
        if not running:
            self._since = max(self._since, now)
        if now < self._since:
            return None
        found = self._judge(monitor, series, now) if running else monitor.find_unstarted(now)
        if found is not None:
            self._strikes, self._struck_at = self._strikes + 1, now
            self._blamed.add(found.key)
            self.restart(now)
        return found

    def is_quiet(self, series: ProbeSeries, now: float) -> bool:
        """Return whether windows came out of the current generation, and for a while none does: a probe shall tell."""
        monitor = self._monitor
        if monitor is None or series.asked_at is not None:
            return False
        flowed = max(series.answered_at, monitor.moved_at)
        if now < flowed + max(QUIET_S, series.latency_s(monitor.generation.epoch)):
            return False
        begin, end = flowed - FLOW_S, flowed + HEARTBEAT_S
        return monitor.windows_between(begin, end) > sum(begin - HEARTBEAT_S < at <= end for at in series.sent)

    def watch_trial(self, generation: Generation | None, now: float) -> None:
        """Follow a generation that gets ready; None where there is none."""
        if generation is None:
            self._trial = None
            return
        if self._trial is None or self._trial.generation.epoch != generation.epoch:
            self._trial = FlowMonitor(generation, self.task)
        self._trial.note(generation, self.membership, now)

    def blame_trial(self, series: ProbeSeries, since: float, now: float) -> Suspect | None:
        """Return who kept the probes since a time from going through the generation on trial."""
        trial = self._trial
        if trial is None:
            return None
        limit = now - _patience_s(series, trial.generation.epoch) / 2
        sent_at = last_before(series.sent, limit, since)
        if sent_at is None:
            return None
        return trial.find_refused(since) or trial.find_standing(sent_at, now) or trial.find_waiting(sent_at)

    def _judge(self, monitor: FlowMonitor, series: ProbeSeries, now: float) -> Suspect | None:
        patience_s, asked_at = self.patience_s(series), series.asked_at
        flowed = max(self._since, series.answered_at, monitor.moved_at)
        silent_s = self._passed(flowed, now)
        sent_at = last_before(series.sent, now - patience_s / 2 - self._paused(now - patience_s / 2), self._since)
        if asked_at is not None and silent_s > patience_s / 2 and self._passed(asked_at, now) > patience_s / 4:
            refused = monitor.find_refused(flowed)
            if refused is not None:
                return refused
        if asked_at is not None and silent_s > patience_s and sent_at is not None:
            found = monitor.find_standing(sent_at, now)
            if found is None and silent_s > 2 * patience_s:
                found = monitor.find_waiting(sent_at)
            if found is not None:
                return self._nearest(monitor, found)
        if asked_at is not None and not monitor.waits:
            unanswered_s = self._passed(max(asked_at, self._since), now)
            if unanswered_s > max(PATIENCE_S, 2 * patience_s):
                return monitor.find_answering()
        long_ago = now - max(DEAF_S, 3 * patience_s)
        missed_at = last_before(series.sent, long_ago - self._paused(long_ago), self._since)
        if missed_at is None:
            return None
        overtaken = sum(at >= missed_at for at in series.overtaken)
        return monitor.find_deaf(missed_at, replicas=overtaken > 1)

    def _nearest(self, monitor: FlowMonitor, found: Suspect) -> Suspect:
        """Return who is to blame where a stage stands still: it, or who feeds it, if it was blamed for that before."""
        chain = (found, *monitor.find_makers(found.key[1]))
        nearest = next((one for one in chain if one.key not in self._blamed), None)
        if nearest is None:  # none of these moves helped: begin again, ever more slowly
            self._blamed.clear()
        return nearest or found

    def _paused(self, since: float) -> float:
        return sum(seconds for at, seconds in self._pauses if at > since)

    def _passed(self, since: float, now: float) -> float:
        return now - since - self._paused(since)


def _patience_s(series: ProbeSeries, epoch: int) -> float:
    return max(FLOW_PATIENCE_S, PATIENCE * series.latency_s(epoch))
