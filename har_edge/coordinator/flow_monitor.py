"""The progress of each stage of a generation, by the heartbeats of its nodes: which of them takes its input and gives
nothing. It reads no clock.

A probe is the input that is known to come. So a stage is judged by the last probe that had time enough to pass: whether
the stage, and those that feed it, ran a window since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from har_edge.config.task import Task
from har_edge.config.wiring import Wiring, find_wiring
from har_edge.coordinator.membership import Membership
from har_edge.errors import ConfigError
from har_edge.planner.relocation import Key
from har_edge.protocol.deployment import Generation, Placement
from har_edge.protocol.status import StagePhase, StageReport

# How long a node that lives may say nothing of a stage that the plan gives it, and how long the stage may stay in a
# phase before it runs (as long as in a rollout).
UNSAID_S, STUCK_S = 10.0, 60.0
# Over how long windows are counted that came out of a generation before it fell silent.
FLOW_S = 2.5
_MOST_GROWTH = 64


@dataclass(frozen=True, slots=True)
class Suspect:
    """A replica of a stage that keeps windows from going through, its node, and why it is taken for that.

    `also` are other replicas of that node that ran nothing either.
    """

    key: Key
    node: str
    reason: str
    also: tuple[Key, ...] = ()


@dataclass(slots=True)
class StageProgress:
    """The progress of a replica on a node: when a window last came out of it, and when anything last went in.

    `refused_at` is when it last refused messages of the stages in `refuses`, since `refusing_since` without a window
    between; `number` is that of the last heartbeat,
    which came at `seen_at`; `phase` has been the same since `since`.
    """

    node: str
    instance: str
    since: float
    number: int = -1
    seen_at: float = float("-inf")
    phase: tuple[StagePhase | None, str] = (None, "")
    windows: int = 0
    moved_at: float = float("-inf")
    alive_at: float = float("-inf")
    queued: int = 0
    waiting: int = 0
    running_s: float = 0.0
    refuses: tuple[int, ...] = ()
    refused_at: float = float("-inf")
    refusing_since: float = float("inf")
    growth: list[tuple[float, int]] = field(default_factory=list)
    _signs: tuple[int, ...] = ()

    def note(self, report: StageReport, number: int, arrived: float) -> None:
        """Take what a heartbeat says of the replica."""
        if (report.phase, report.detail) != self.phase:
            self.phase, self.since = (report.phase, report.detail), arrived
        heard_at = max(self.seen_at, arrived - report.idle_s)
        signs = (report.windows, report.lost, report.errors, report.queued, report.waiting)
        if self.number < 0 or report.windows < self.windows:
            self.windows = report.windows
        elif report.windows > self.windows:
            self.growth = [*self.growth[-_MOST_GROWTH:], (heard_at, report.windows - self.windows)]
            self.windows, self.moved_at, self.refusing_since = report.windows, heard_at, float("inf")
        if self._signs and signs != self._signs:
            self.alive_at = arrived
        elif arrived - report.idle_s > self.seen_at:
            self.alive_at = heard_at
        if report.refuses:
            self.refuses, self.refused_at = report.refuses, arrived
            self.refusing_since = min(self.refusing_since, arrived)
        self._signs, self.queued, self.waiting, self.running_s = signs, report.queued, report.waiting, report.running_s
        self.number, self.seen_at = number, arrived


class FlowMonitor:
    """Follows the stages of one generation."""

    def __init__(self, generation: Generation, task: Task) -> None:
        self.generation = generation
        self.progress: dict[Key, StageProgress] = {}
        self._wirings = _wirings(generation, task)

    def note(self, generation: Generation, membership: Membership, now: float) -> None:
        """Read what the nodes of the generation, which may have moved, said last."""
        self.generation = generation
        for key, placement in self._placed():
            member = membership.members.get(placement.node)
            heartbeat = member.heartbeat if member is not None else None
            instance = heartbeat.instance if heartbeat is not None else ""
            known = self.progress.get(key)
            if known is None or (known.node, known.instance) != (placement.node, instance):
                known = self.progress[key] = StageProgress(placement.node, instance, now)
            if member is None or heartbeat is None or heartbeat.number == known.number:
                continue
            report = membership.report(generation.epoch, placement)
            if report is not None:
                known.note(report, heartbeat.number, member.heard)
            elif known.phase[0] is not None:
                known.phase, known.since = (None, ""), now

    def restart(self, now: float) -> None:
        """Begin all phases anew: nobody was heard for a while."""
        for progress in self.progress.values():
            progress.since = max(progress.since, now)

    @property
    def answering(self) -> list[StageProgress]:
        """The progress of the replicas that give results."""
        last = [wiring.index for wiring in self._wirings.values() if wiring.answers]
        return [one for stage in last for _, _, one in self._of(stage)]

    @property
    def moved_at(self) -> float:
        """When a result last came out."""
        return max((one.moved_at for one in self.answering), default=float("-inf"))

    def windows_between(self, begin: float, end: float) -> int:
        """Return how many windows came out of the generation in a time, as far as heartbeats tell."""
        return sum(grown for one in self.answering for at, grown in one.growth if begin < at <= end)

    @property
    def waits(self) -> bool:
        """Whether windows wait anywhere in a stage."""
        return any(one.waiting for one in self.progress.values())

    def find_unstarted(self, now: float) -> Suspect | None:
        """Return a stage that its node does not begin to run, although it lives; None where there is none."""
        for key, placement, one in self._all():
            phase, _ = one.phase
            if phase is None and now > one.since + UNSAID_S:
                reason = f"{placement.node} has said nothing of it for {now - one.since:.0f} s"
            elif phase in (StagePhase.FETCHING, StagePhase.PREPARED) and now > one.since + STUCK_S:
                reason = f"it has been {phase.value} on {placement.node} for {now - one.since:.0f} s"
            else:
                continue
            return Suspect(key, placement.node, reason)
        return None

    def find_standing(self, sent_at: float, now: float) -> Suspect | None:
        """Return the first stage whose count stands still while its input grows, None where no stage is to blame.

        `sent_at` is when a probe was sent that must have passed by now. A stage that waits for parts is not to blame
        (`find_waiting`), nor is one in the middle of a run, which its node watches.
        """
        for key, placement, one in self._all():
            if one.moved_at >= sent_at or one.seen_at < sent_at or not self._is_fed(placement.stage, sent_at):
                continue
            if one.alive_at >= sent_at and one.waiting:
                continue
            if one.running_s > 0 and one.running_s < 4 * (now - sent_at):
                continue
            if self.generation.replicas(placement.stage) > 1:
                continue  # the others take its turns; `find_deaf` knows
            what = "takes" if one.alive_at < sent_at else "gives"
            silent_s = now - max(one.moved_at, one.since)
            reason = f"on {placement.node} it {what} nothing while windows come, for {silent_s:.1f} s"
            also = (other for other, _, its in self._all() if its.node == one.node and its.moved_at < sent_at)
            return Suspect(key, placement.node, reason, tuple(other for other in also if other != key))
        return None

    def find_refused(self, since: float) -> Suspect | None:
        """Return a stage whose messages another refused in several heartbeats, also after a time, and ran nothing."""
        for _, _, one in self._all():
            if one.refused_at <= max(one.refusing_since, since):
                continue
            for maker in one.refuses:
                for key, placement, its in self._of(maker):
                    also = (other for other, _, one in self._all() if one.node == its.node and other != key)
                    reason = f"stages refuse what it sends from {placement.node}"
                    return Suspect(key, placement.node, reason, tuple(also))
        return None

    def find_waiting(self, sent_at: float) -> Suspect | None:
        """Return the first stage that waits for parts which those that feed it should have sent."""
        for key, placement, one in self._all():
            if one.moved_at < sent_at and one.waiting and self._is_fed(placement.stage, sent_at):
                return Suspect(key, placement.node, f"on {placement.node} windows wait in it, and none comes out")
        return None

    def find_deaf(self, sent_at: float, *, replicas: bool) -> Suspect | None:
        """Return a stage that heard nothing since a probe was sent, though the generation answers without it: a shard
        for which a parity stands; and, with `replicas`, one of several that take turns.
        """
        for key, placement, one in self._all():
            shared = self.generation.replicas(placement.stage) > 1
            deaf = one.alive_at < sent_at and one.moved_at < sent_at <= one.seen_at
            if not deaf or (shared and not replicas) or not self._is_fed(placement.stage, sent_at):
                continue
            if shared and not any(other.moved_at >= sent_at for _, _, other in self._of(placement.stage)):
                continue
            reason = f"on {placement.node} it takes nothing, and the others go on without it"
            return Suspect(key, placement.node, reason)
        return None

    def find_makers(self, stage: int) -> Iterator[Suspect]:
        """Yield those that feed a stage, the nearest first."""
        wiring = self._wirings.get(stage)
        for maker in sorted(wiring.earlier, reverse=True) if wiring is not None else ():
            for key, placement, _ in self._of(maker):
                yield Suspect(key, placement.node, f"it feeds stage {stage}, which gives nothing elsewhere either")

    def find_answering(self) -> Suspect | None:
        """Return the stage that gives the results."""
        for key, placement, _ in self._all():
            wiring = self._wirings.get(placement.stage)
            if wiring is not None and wiring.answers:
                return Suspect(key, placement.node, f"on {placement.node} it runs windows, and no answer comes")
        return None

    def _is_fed(self, stage: int, sent_at: float) -> bool:
        """Return whether a stage got input since then: probes have all sources, and who feeds it ran windows."""
        wiring = self._wirings.get(stage)
        if wiring is None:
            return False
        makers = [one for maker in wiring.earlier for _, _, one in self._of(maker)]
        return bool(wiring.sources) or any(one.moved_at >= sent_at for one in makers)

    def _placed(self) -> Iterator[tuple[Key, Placement]]:
        epoch = self.generation.epoch
        for placement in sorted(self.generation.placements, key=lambda one: one.key):
            yield (epoch, *placement.key), placement

    def _all(self) -> Iterator[tuple[Key, Placement, StageProgress]]:
        for key, placement in self._placed():
            if key in self.progress:
                yield key, placement, self.progress[key]

    def _of(self, stage: int) -> Iterator[tuple[Key, Placement, StageProgress]]:
        return (one for one in self._all() if one[1].stage == stage)


def last_before(times: Sequence[float], limit: float, since: float) -> float | None:
    """Return the last of these times that is not after `limit`, None where none is, or it is before `since`."""
    found = max((at for at in times if at <= limit), default=None)
    return found if found is not None and found >= since else None


def _wirings(generation: Generation, task: Task) -> Mapping[int, Wiring]:
    """Return the wirings of a generation by stage; empty for a manifest that does not fit the task."""
    try:
        return {k: find_wiring(generation.manifest, task, k) for k in range(len(generation.manifest.slices))}
    except ConfigError:
        return {}
