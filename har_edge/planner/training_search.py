"""Search for the stages of a split training: branch and bound over cuts, devices and micro-batches.

Stages are chosen from the last to the first, since a stage's memory follows from the stages behind it. Partial plans
whose step promises to be shortest come first: all work of a micro-batch, and the rest of them at the busiest stage. A
bound prunes:
no schedule is faster than the micro-batches of one stage, one after the other, between the first one's way there and
the last one's way back; and the stages in front share what is left of the work. Every whole plan is simulated
(training_schedule.py), so the result is the best of all plans unless the search says that it has given up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from har_edge.planner.training_costs import StageCosts, TrainedStage, TrainingProblem
from har_edge.planner.training_devices import group_devices
from har_edge.planner.training_schedule import ScheduledStage, StepForecast, forecast_step

# Micro-batches under way beyond those that 1F1B needs; one more hides the network.
EXTRAS = (0, 1)
# For each number of micro-batches.
MOST_SIMULATED, MOST_NODES = 200, 30_000
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
    """The best candidate so far, and whether every plan was tried or ruled out."""

    best: TrainingCandidate | None = None
    complete: bool = True

    def offer(self, candidate: TrainingCandidate) -> None:
        """Keep a candidate where it is faster; of equal ones that with fewer devices."""
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


@dataclass(frozen=True, slots=True)
class _Partial:
    """The last stages of a plan, from segment `end` on.

    `left` devices of each kind are free. `chain_s` is the longest way there, work and way back from there on, `busy_s`
    the longest work with its update, `way_s` the work of one micro-batch, `slowest_s` that of the slowest stage.
    """

    end: int
    stages: tuple[ChosenStage, ...]
    left: tuple[int, ...]
    chain_s: float
    busy_s: float
    way_s: float
    slowest_s: float


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
        """Try partial plans, the most promising first, until all are tried or ruled out, or these are too many."""
        record, nodes, simulated = self.record, 0, 0
        start = _Partial(self.costs.n, (), tuple(len(group) for group in self.groups), 0.0, 0.0, 0.0, 0.0)
        heap, order = [(0.0, 0, start)], 0
        while heap:
            _, _, part = heapq.heappop(heap)
            if self.pruned(self.bound(part)):
                continue
            if nodes >= MOST_NODES or simulated >= MOST_SIMULATED:
                record.complete = False
                return
            if part.stages and not part.end:
                simulated += 1
                record.offer(lay_out(self.problem, self.costs, part.stages, self.count))
                continue
            for longer in self.extend(part):
                nodes, order = nodes + 1, order + 1
                if not self.pruned(self.bound(longer)):
                    heapq.heappush(heap, (self.promise(longer), order, longer))

    def extend(self, part: _Partial) -> Iterator[_Partial]:
        """Yield the partial plan with each stage that can stand in front of it."""
        for first, kind, replicas, setup in self.options(part):
            work = math.ceil(self.count / replicas) * setup.both_s
            used = len(self.groups[kind]) - part.left[kind]
            stage = ChosenStage(first, part.end, tuple(self.groups[kind][used : used + replicas]), setup)
            left = tuple(count - replicas * (number == kind) for number, count in enumerate(part.left))
            yield _Partial(
                end=first,
                stages=(stage, *part.stages),
                left=left,
                chain_s=max(work, setup.both_s + part.chain_s) if part.stages else work,
                busy_s=max(part.busy_s, work + setup.update_s),
                way_s=part.way_s + setup.both_s,
                slowest_s=max(part.slowest_s, setup.both_s / replicas),
            )

    def options(self, part: _Partial) -> Iterator[tuple[int, int, int, TrainedStage]]:
        """Yield the stages in front of a partial plan: first segment, kind of device, replicas, costs."""
        workers, end = sum(len(stage.devices) for stage in part.stages), part.end
        for first in self.starts(end, len(part.stages)):
            for kind, free in enumerate(part.left):
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

    def bound(self, part: _Partial) -> float:
        """Return what no plan that ends with these stages is faster than."""
        if not part.end:
            return max(part.chain_s, part.busy_s)
        speed = self.speed(part)
        if not speed:
            return math.inf
        work = self.costs.work_s[part.end]
        return max(part.chain_s + work * self.fastest, part.busy_s, work * self.count / speed)

    def promise(self, part: _Partial) -> float:
        """Return the step of the best whole plan, if it had no network and the work in front were shared evenly."""
        work, speed = self.costs.work_s[part.end], self.speed(part)
        slowest = max(part.slowest_s, work / speed if speed else 0.0)
        return part.way_s + work * self.fastest + (self.count - 1) * slowest

    def speed(self, part: _Partial) -> float:
        """Return how fast the devices are together that no stage has."""
        return sum(count / one.slowdown for count, one in zip(part.left, self.kinds, strict=True))

    def pruned(self, bound: float) -> bool:
        best = self.record.best
        return bound == math.inf or (best is not None and bound >= best.forecast.step_s * _SAME)


def whole_model(setup: TrainedStage, seconds: float) -> TrainedStage:
    """Return the setup of one device that runs the whole model, whose time was measured as a whole."""
    added = setup.both_s - setup.compute_s
    return replace(setup, forward_s=0.0, backward_s=seconds + added, compute_s=seconds)
