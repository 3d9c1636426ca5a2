"""The workers of a split training as the command knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from har_edge.protocol.split_training import HeldState, SplitReport, SplitState, StageDone
from har_edge.protocol.training import WorkerProgress


@dataclass(slots=True)
class SplitMember:
    """One worker. It is `absent` from a loss until it is heard again, `refused` until it starts again."""

    name: str
    instance: str
    memory_bytes: int
    probe_s: float
    heard_at: float
    software: str = ""
    absent: bool = False
    refused: str = ""
    loaded: int = 0
    generation: int = 0
    reconnects: int = 0
    held: tuple[HeldState, ...] = ()
    done: dict[int, StageDone] = field(default_factory=dict)
    longest_s: float = 0.0
    peak_bytes: int = 0
    samples: int = 0
    received_bytes: int = 0
    failures: int = 0

    @property
    def active(self) -> bool:
        """Whether it may be given a stage."""
        return not self.absent and not self.refused

    def progress(self, samples_per_s: float) -> WorkerProgress:
        """Return what the progress says of it."""
        detail = self.refused or ("not heard" if self.absent else "")
        return WorkerProgress(
            self.name, self.active, self.samples, round(samples_per_s, 1), self.received_bytes, 0, detail[:400]
        )


def member_of(report: SplitReport, now: float) -> SplitMember:
    """Return the member that a report introduces."""
    member = SplitMember(report.worker, report.instance, report.memory_bytes, report.probe_s, now, report.software)
    take_report(member, report, now)
    return member


def take_report(member: SplitMember, report: SplitReport, now: float) -> None:
    """Bring what a worker says of itself up to date."""
    member.heard_at, member.held = now, report.held
    member.reconnects, member.generation = report.reconnects, report.generation
    member.peak_bytes = max(member.peak_bytes, report.peak_bytes)
    if report.memory_bytes:
        member.memory_bytes = report.memory_bytes
    if report.probe_s:
        member.probe_s = report.probe_s
    if report.state is SplitState.LOADED:
        member.loaded = report.generation
