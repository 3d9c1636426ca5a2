"""Who computes how many samples in the next round, and how long that may take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from har_edge.learning.server.account import SampleAccount
from har_edge.learning.server.members import WorkerRecord, apportion, relative_speeds
from har_edge.learning.server.modes import ModeChoice, TrainingMode
from har_edge.protocol.training import SampleRange, TrainingTask

# A worker sends what it has after so many times the time that it should take, at least LEAST_BUDGET_S.
PATIENCE = 1.5
LEAST_BUDGET_S = 1.0
# The time for a task of a worker whose speed nobody knows.
UNKNOWN_S = 60.0


@dataclass(frozen=True, slots=True)
class ShareRule:
    """How samples are divided: by mode, batch, and measured speed or not.

    With `together` every worker has a part in each round, as long as there are samples: a masked sum hides each among
    all of them. Own samples are then divided by how many each has left, so that they end together. A task has `least_s`
    at least.
    """

    choice: ModeChoice
    batch: int
    global_batch: int | None
    by_speed: bool
    together: bool = False
    least_s: float = LEAST_BUDGET_S

    def targets(self, members: Sequence[WorkerRecord], account: SampleAccount) -> dict[str, int]:
        """Return how many samples each worker shall have next, at most what is free."""
        members = [one for one in members if account.available(one.name)]
        ratios = relative_speeds(members) if self.by_speed else dict.fromkeys((one.name for one in members), 1.0)
        if self.together and account.homes and members:
            left = {one.name: account.available(one.name) for one in members}
            ratios = {name: len(left) * count / sum(left.values()) for name, count in left.items()}
        if not ratios or not account.open:
            return {}
        if self.choice.mode is TrainingMode.SYNC:
            wanted = self.global_batch or self.batch * len(ratios)
            return self._divide(min(wanted, account.open), ratios, account.open, 1)
        steps = self.choice.local_steps
        wanted = sum(max(1, round(steps * ratio)) for ratio in ratios.values()) * self.batch
        unit = 1 if self.together and account.homes else self.batch
        # Rounds of about equal length, rather than a short one at the end, whose exchange costs as much.
        rounds = max(1, round(account.open / wanted))
        if rounds == 1:
            return self._divide(account.open, ratios, account.open, unit)
        each = -(-account.open // rounds)
        return self._divide(min(account.open, -(-each // self.batch) * self.batch), ratios, account.open, unit)

    def _divide(self, total: int, ratios: dict[str, float], free: int, unit: int) -> dict[str, int]:
        """Divide `total` of the free samples; where all take part together, so that each has some, also next time."""
        if not self.together:
            return apportion(total, ratios, unit)
        if free - total < len(ratios):
            total = free
        parts = apportion(total, ratios, unit)
        if not all(parts.values()):
            parts = apportion(total, ratios)
        return parts if all(parts.values()) else apportion(total, dict.fromkeys(ratios, 1.0))


def give_tasks(
    rule: ShareRule,
    members: Sequence[WorkerRecord],
    account: SampleAccount,
    first: int,
    chosen: Iterable[str] | None = None,
) -> dict[str, TrainingTask]:
    """Take samples for workers, and return their tasks; `chosen` are those that get one now, by default all.

    Tasks are numbered from `first` in the order of names. A worker that has too few samples
    of its own left leaves the rest of its share to the next round.
    """
    targets = rule.targets(members, account)
    ranges: dict[str, tuple[SampleRange, ...]] = {}
    names = sorted(targets if chosen is None else set(chosen) & targets.keys())
    by_name = {one.name: one for one in members}
    for number, name in enumerate(names, first):
        others = {block for one in members if one.name != name for block in one.held}
        taken = account.take(number, name, targets[name], by_name[name].held, others) if targets[name] else ()
        ranges[name] = taken
    budgets = {name: _seconds(by_name[name], taken) for name, taken in ranges.items()}
    longest = max(rule.least_s, PATIENCE * max(budgets.values(), default=0.0))
    return {
        name: TrainingTask(number, ranges[name], round(longest, 3), by_name[name].last_task)
        for number, name in enumerate(names, first)
        if ranges[name]
    }


def _seconds(member: WorkerRecord, ranges: tuple[SampleRange, ...]) -> float:
    samples = sum(one.samples for one in ranges)
    if not samples:
        return 0.0
    return samples / member.samples_per_s if member.samples_per_s > 0 else UNKNOWN_S
