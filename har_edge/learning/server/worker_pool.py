"""The workers of a run and the samples that they have: who takes part, who was lost, whose message was of no use."""

from __future__ import annotations

from dataclasses import dataclass, field

from har_edge.learning.server.account import SampleAccount
from har_edge.learning.server.intake import check_report
from har_edge.learning.server.members import MAX_STRIKES, WorkerRecord, member_of
from har_edge.learning.server.run_record import RunRecord
from har_edge.protocol.training import TrainingJob, WorkerReport, WorkerState
from har_edge.protocol.training_fields import MAX_WORKERS
from har_edge.timing import NODE_LOST_S
from har_edge.units import plural

# A node whose heartbeats stop for so long gets no task, and what it had is free again.
SILENT_S = 2 * NODE_LOST_S
# A run ends when so long after its wait every node that was heard cannot take part: reasons may be mended meanwhile.
UNABLE_S = 30.0
# Lines of nodes that cannot take part are told once; so many of them are remembered, and no more are told.
_MAX_TOLD = 4 * MAX_WORKERS


@dataclass(slots=True)
class WorkerPool:
    """All workers that reported for a job, by name; `round` is for the lines that people read."""

    job: TrainingJob
    record: RunRecord
    lines: list[str] = field(default_factory=list)
    members: dict[str, WorkerRecord] = field(default_factory=dict)
    account: SampleAccount = field(default_factory=lambda: SampleAccount({}))
    round: int = 0
    # Speeds and held blocks of before a restart: with them the same members get the same shares.
    known: dict[str, tuple[float, set[int]]] = field(default_factory=dict)
    # The nodes that say they cannot take part, with the reason; one that only lacks a file is none of them.
    unable: dict[str, str] = field(default_factory=dict)
    _told: set[tuple[str, str]] = field(default_factory=set)

    @property
    def active(self) -> list[WorkerRecord]:
        """Those that may be given tasks, by name."""
        return [self.members[name] for name in sorted(self.members) if self.members[name].active]

    @property
    def awaited(self) -> bool:
        """Whether a worker that takes part has a task."""
        return any(one.pending for one in self.active)

    @property
    def obstacle(self) -> str:
        """The nodes that cannot take part, in words, with the reason of one; "" where there are none."""
        name, reason = min(self.unable.items(), default=("", ""))
        count = plural(len(self.unable), "node")
        return f"no worker can take part ({count} tried); mend this, and begin again: {name}: {reason}" if name else ""

    def note_report(self, report: WorkerReport) -> WorkerRecord | None:
        """Take what a worker says of itself; return its member where it newly takes part."""
        known = self.members.get(report.worker)
        if report.state is not WorkerState.READY:
            self._note_end(known, report)
            return None
        self.unable.pop(report.worker, None)
        if known is not None and known.instance == report.instance:
            self.hear(known)
            return None
        if known is None and len(self.members) >= MAX_WORKERS:
            return None
        member = member_of(report, self.job.batch)
        if known is not None:
            self.release(known)
            member.samples, member.received_bytes, member.dropped = known.samples, known.received_bytes, known.dropped
        elif report.worker in self.known:
            member.samples_per_s, member.held = self.known.pop(report.worker)
        member.refused = check_report(report, self.job)
        if member.refused:
            self.lines.append(f"{report.worker} is left out: {member.refused}")
            self.unable[report.worker] = member.refused
        self.members[report.worker] = member
        return None if member.refused else member

    def _note_end(self, known: WorkerRecord | None, report: WorkerReport) -> None:
        # The will of a process that was killed may come after its successor has said that it is ready.
        if known is not None and known.instance == report.instance:
            if known.active:
                self.lose(known, f"{report.state.value}{f': {report.detail}' if report.detail else ''}")
        elif known is None and report.state is WorkerState.FAILED:
            self._note_unable(report)

    def _note_unable(self, report: WorkerReport) -> None:
        """Tell a node's reason once: it tries again, and says it each time."""
        if not report.lacks and (report.worker in self.unable or len(self.unable) < MAX_WORKERS):
            self.unable[report.worker] = report.detail
        told = (report.worker, report.detail)
        if told not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(told)
            self.lines.append(f"{report.worker} cannot take part: {report.detail}")

    def hear(self, member: WorkerRecord) -> None:
        """Take a worker back that was silent."""
        if member.absent:
            member.absent = False
            self.lines.append(f"{member.name} is heard again in round {self.round}")

    def release(self, member: WorkerRecord) -> None:
        """Make the samples of a worker's task free again."""
        if member.pending is not None:
            self.account.give_back(member.pending.task.number)
            member.pending = None

    def lose(self, member: WorkerRecord, why: str) -> None:
        """Go on without a worker until it is heard again."""
        self.release(member)
        member.absent = True
        self.lines.append(f"round {self.round} goes on without {member.name}: {why}")

    def look(self, now: float) -> None:
        """Go on without those that missed their deadline, or whose node is silent."""
        for member in self.active:
            pending = member.pending
            if pending is not None and now >= pending.deadline:
                self.lose(member, "it missed its deadline")
            elif member.heartbeat_at is not None and now - member.heartbeat_at > SILENT_S:
                member.heartbeat_at = None
                self.lose(member, f"nothing was heard of its node for {SILENT_S:g} s")

    def reject(self, worker: str, reason: str, *, late: bool = False) -> None:
        """Count a message of no use and name who sent it; unless it was only late, its task is free again."""
        self.record.dropped += 1
        member = self.members.get(worker)
        if member is None:
            return
        member.dropped += 1
        if late:
            return
        member.strikes += 1
        self.release(member)
        if member.strikes == 1:
            self.lines.append(f"dropped an update of {worker}: {reason}")
        if member.strikes >= MAX_STRIKES and not member.refused:
            self.refuse(worker, f"{member.strikes} updates of no use in a row, the last: {reason}")

    def refuse(self, worker: str, reason: str) -> None:
        """Leave a worker out until it starts again."""
        member = self.members[worker]
        if not member.refused:
            self.release(member)
            member.refused = reason
            self.lines.append(f"{worker} is left out until it starts again: {reason}")

    def add_own(self, member: WorkerRecord) -> None:
        """Add a worker's own samples to the epoch, once."""
        if self.job.own and member.own_samples and member.name not in self.account.homes.values():
            self.account.add(len(self.account.sizes), member.own_samples, member.name)

    def begin_epoch(self) -> None:
        """Make all samples free."""
        blocks = () if self.job.own else self.job.blocks
        self.account = SampleAccount({index: block.samples for index, block in enumerate(blocks)})
        for member in self.active:
            self.add_own(member)

    def skip_absent(self) -> bool:
        """Leave out the own samples of workers that are not here; return whether there were any."""
        here = {one.name for one in self.active}
        gone = [name for name in set(self.account.homes.values()) - here if self.account.available(name)]
        for name in sorted(gone):
            self.lines.append(f"{self.account.skip(name)} samples of {name} are left out of this epoch: it is not here")
        return bool(gone)

    def skip_rest(self) -> bool:
        """Leave out samples that too few workers have, to hide each other; return whether there were any."""
        count = self.account.skip_free()
        if count:
            self.lines.append(f"{plural(count, 'sample')} left out of this epoch: too few workers have any")
        return count > 0
