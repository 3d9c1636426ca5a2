"""Search for the stages of a split training: branch and bound over cuts, devices and micro-batches.

Stages are chosen from the last to the first, since a stage's memory follows from the stages behind it. A bound prunes:
no schedule is faster than the micro-batches of one stage, one after the other, between the first one's way there and
the last one's way back; and the stages in front share what is left of the work. Every whole plan is simulated
(training_schedule.py), so the result is the best of all plans unless the search says that it has given up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from har_edge.planner.training_costs import StageCosts, TrainedStage, TrainingProblem
from har_edge.planner.training_devices import group_devices
from har_edge.planner.training_schedule import ScheduledStage, StepForecast, forecast_step

# Micro-batches under way beyond those that 1F1B needs; one more hides the network.
EXTRAS = (0, 1)
MOST_SIMULATED, MOST_NODES = 1500, 200_000
_SAME = 1 - 1e-9


@dataclass(frozen=True, slots=True)
class ChosenStage:
    """Segments [first, last) on devices, by their numbers; `setup` has the costs."""

    first: int
    last: int
    devices: tuple[int, ...]
    setup: TrainedStage


@dataclass(frozen=True, slots=True)
class TrainingCandidate:
    """A way to train: stages in order, and how a step is divided."""

    stages: tuple[ChosenStage, ...]
    micro_batch: int
    micro_batches: int
    forecast: StepForecast

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return sum(len(stage.devices) for stage in self.stages)


@dataclass(slots=True)
class SearchRecord:
    """The best candidate so far, and how much was tried."""

    best: TrainingCandidate | None = None
    simulated: int = 0
    nodes: int = 0

    @property
    def complete(self) -> bool:
        """Whether every plan was tried or ruled out."""
        return self.simulated < MOST_SIMULATED and self.nodes < MOST_NODES

    def offer(self, candidate: TrainingCandidate) -> None:
        """Keep a candidate where it is faster; of equal ones that with fewer devices."""
        self.simulated += 1
        if self.best is None or _key(candidate) < _key(self.best):
            self.best = candidate


def _key(candidate: TrainingCandidate) -> tuple[float, int]:
    return candidate.forecast.step_s, candidate.devices


def search_training(problem: TrainingProblem) -> SearchRecord:
    """Return the fastest way to train, and what else was found."""
    record = SearchRecord()
    for count, size in sorted(problem.splits, key=lambda split: abs(math.log2(split[0] / 8))):
        costs = StageCosts(problem, size)
        for extra in EXTRAS:
            if extra and len(problem.devices) == 1:
                continue
            _Search(problem, costs, count, extra, record).run()
    if record.best is not None:
        record.best = replace(record.best, stages=_in_order(problem, record.best.stages))
    return record


def _in_order(problem: TrainingProblem, stages: Sequence[ChosenStage]) -> tuple[ChosenStage, ...]:
    """Return the stages with equal devices in their order, which the search takes from the back."""
    free = {problem.devices[group[0]].kind: iter(group) for group in group_devices(problem.devices)}
    return tuple(
        replace(stage, devices=tuple(next(free[problem.devices[number].kind]) for number in stage.devices))
        for stage in stages
    )


def lay_out(
    problem: TrainingProblem, costs: StageCosts, stages: Sequence[ChosenStage], micro_batches: int
) -> TrainingCandidate:
    """Return a candidate with its forecast."""
    loads = []
    for stage in stages:
        link = problem.devices[stage.devices[0]].link_bytes_per_s
        loads.append(
            ScheduledStage(
                workers=len(stage.devices),
                in_flight=stage.setup.in_flight,
                forward_s=stage.setup.forward_s,
                backward_s=stage.setup.backward_s,
                update_s=stage.setup.update_s,
                entering_bytes=costs.entering_bytes(stage.first),
                gradient_bytes=costs.gradient_bytes(stage.first),
                weight_bytes=costs.weight_bytes(stage.first, stage.last),
                link_byte_s=1 / link if link else 0.0,
                joined=stage.last == costs.n,
            )
        )
    forecast = forecast_step(loads, micro_batches, problem.broker, problem.latency_s)
    return TrainingCandidate(tuple(stages), costs.micro_batch, micro_batches, forecast)


def needed_in_flight(replicas: int, behind: int, micro_batches: int, extra: int) -> int:
    """Return how many micro-batches a worker has under way so that all workers behind it are busy.

    `behind` are the workers of all later stages (Narayanan et al. 2019, section 3.2: NOAM).
    """
    if not behind:
        return 1
    return max(1, min(math.ceil(micro_batches / replicas), math.ceil((behind + replicas) / replicas) + extra))


class _Search:
    """The search for one number of micro-batches."""

    def __init__(
        self, problem: TrainingProblem, costs: StageCosts, micro_batches: int, extra: int, record: SearchRecord
    ) -> None:
        self.problem, self.costs, self.count, self.extra, self.record = problem, costs, micro_batches, extra, record
        self.groups = group_devices(problem.devices)
        self.kinds = [problem.devices[group[0]] for group in self.groups]
        bounds = problem.profile.bounds
        self.at = None if problem.cuts is None else [bounds.index(cut) for cut in problem.cuts]
        self.setups: dict[tuple[int, int, int, int], TrainedStage | None] = {}
        self.fastest = min(kind.slowdown for kind in self.kinds)

    def run(self) -> None:
        self.extend(self.costs.n, [], [len(group) for group in self.groups], 0.0, 0.0)

    def extend(
        self, end: int, behind: list[tuple[ChosenStage, int]], left: list[int], chain: float, most: float
    ) -> None:
        """Try every stage in front of `end`.

        `chain` is the longest way there, work and way back from there on; `most` the longest work with the update.
        """
        record = self.record
        options = []
        for first, kind, replicas, setup in self.options(end, behind, left):
            record.nodes += 1
            work = math.ceil(self.count / replicas) * setup.both_s
            longer = max(work, setup.both_s + chain) if behind else work
            busy = max(most, work + setup.update_s)
            bound = self.bound(first, left, kind, replicas, longer, busy)
            options.append((bound, first, kind, replicas, setup, longer, busy))
        for bound, first, kind, replicas, setup, longer, busy in sorted(options, key=lambda one: one[:4]):
            if self.pruned(bound) or not record.complete:
                return
            used = len(self.groups[kind]) - left[kind]
            devices = tuple(self.groups[kind][used : used + replicas])
            stages = [(ChosenStage(first, end, devices, setup), replicas), *behind]
            if not first:
                found = lay_out(self.problem, self.costs, [stage for stage, _ in stages], self.count)
                record.offer(found)
                continue
            left[kind] -= replicas
            self.extend(first, stages, left, longer, busy)
            left[kind] += replicas

    def options(
        self, end: int, behind: list[tuple[ChosenStage, int]], left: Sequence[int]
    ) -> Iterator[tuple[int, int, int, TrainedStage]]:
        """Yield the stages that end at a place: first segment, kind of device, replicas, costs."""
        workers = sum(replicas for _, replicas in behind)
        for first in self.starts(end, len(behind)):
            for kind, free in enumerate(left):
                for replicas in range(1, min(free, self.problem.replicas) + 1):
                    in_flight = needed_in_flight(replicas, workers, self.count, self.extra)
                    setup = self.setup(first, end, kind, in_flight)
                    if setup is not None:
                        yield first, kind, replicas, setup

    def starts(self, end: int, stages: int) -> Sequence[int]:
        """Return the first segments that a stage up to `end` may have; `stages` are behind it."""
        if self.at is not None:
            number = len(self.at) - stages
            return [self.at[number - 1] if number else 0]
        wanted = self.problem.stages
        if wanted is None:
            return range(end - 1, -1, -1)
        if wanted - stages == 1:
            return [0]
        return range(end - 1, wanted - stages - 2, -1)

    def setup(self, first: int, end: int, kind: int, in_flight: int) -> TrainedStage | None:
        key = (first, end, kind, in_flight)
        if key not in self.setups:
            found = self.costs.setup(first, end, self.kinds[kind], in_flight)
            whole = self.costs.whole_s()
            if found is not None and whole is not None and not first and end == self.costs.n:
                found = whole_model(found, whole * self.kinds[kind].slowdown)
            self.setups[key] = found
        return self.setups[key]

    def bound(self, first: int, left: Sequence[int], kind: int, replicas: int, chain: float, busy: float) -> float:
        """Return what no plan that ends with these stages is faster than."""
        if not first:
            return max(chain, busy)
        free = [count - replicas * (number == kind) for number, count in enumerate(left)]
        speed = sum(count / one.slowdown for count, one in zip(free, self.kinds, strict=True))
        if not speed:
            return math.inf
        work = self.costs.work_s[first]
        return max(chain + work * self.fastest, busy, work * self.count / speed)

    def pruned(self, bound: float) -> bool:
        best = self.record.best
        return bound == math.inf or (best is not None and bound >= best.forecast.step_s * _SAME)


def whole_model(setup: TrainedStage, seconds: float) -> TrainedStage:
    """Return the setup of one device that runs the whole model, whose time was measured as a whole."""
    added = setup.both_s - setup.compute_s
    return replace(setup, forward_s=0.0, backward_s=seconds + added, compute_s=seconds)
