"""Plan a split training: the fastest stages that fit the memory of the devices, beside what else there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec

from har_edge.errors import ConfigError
from har_edge.planner.training_costs import HEAD_BYTES, StageCosts, TrainingProblem
from har_edge.planner.training_devices import SplitDevice
from har_edge.planner.training_search import (
    ChosenStage,
    TrainingCandidate,
    lay_out,
    needed_in_flight,
    search_training,
    whole_model,
)
from har_edge.protocol.split_training import SplitStage, SplitTrainingPlan
from har_edge.units import duration, plural, size

VERSION = 1
# Micro-batches that the plan is compared with.
_COUNTS = (2, 4, 8, 16, 32)
_SAME = 1 - 1e-9
# Other plans that a plan is told apart from in words; the others stand in the table.
_BESIDE = ("one device", "data parallel")


class PlannedWorkers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage of a plan with its costs on each of its devices.

    Attributes:
        forward_s, backward_s: Seconds of a device for one micro-batch, messages included.
        update_s: Seconds of the optimizer, once a step.
        busy_share: The part of the time that the busiest device works.
        memory_bytes: Resident memory of the process.
        entering_bytes, gradient_bytes: Bytes that come in, and that go back, for a micro-batch.
    """

    devices: tuple[str, ...]
    start: int
    stop: int
    elements: int
    keep: bool
    in_flight: int
    forward_s: float
    backward_s: float
    update_s: float
    busy_share: float
    memory_bytes: int
    entering_bytes: int
    gradient_bytes: int


class OtherTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another way to train; without `step_s` it is not possible, and `reason` says why."""

    name: str
    devices: int
    step_s: float | None
    bubble: float | None = None
    memory_bytes: int = 0
    reason: str = ""


class PlannedTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best plan with its forecast, and others beside it.

    Attributes:
        step_s: Seconds between two steps of `batch` samples.
        bubble: The part of the time in which the devices wait.
        broker_bytes, broker_s: Bytes that enter the broker in a step, and how long its link is busy.
        proven: Whether no other plan of these costs is faster.
    """

    version: int
    model: str
    model_sha256: str
    batch: int
    plan: SplitTrainingPlan
    stages: tuple[PlannedWorkers, ...]
    step_s: float
    bubble: float
    broker_bytes: int
    broker_s: float
    proven: bool
    spare: tuple[str, ...]
    others: tuple[OtherTraining, ...]
    notes: tuple[str, ...]

    @property
    def samples_per_s(self) -> float:
        """The samples of a step by its seconds."""
        return self.batch / self.step_s if self.step_s else math.inf

    def other(self, name: str) -> OtherTraining | None:
        """Return what the plan was compared with, by its name."""
        return next((one for one in self.others if one.name == name), None)

    def describe(self) -> list[str]:
        """Return the plan in sentences."""
        used = sum(len(stage.devices) for stage in self.stages)
        plan = self.plan
        lines = [
            f"{plural(len(self.stages), 'stage')} on {used} of {plural(used + len(self.spare), 'device')}: a step of "
            f"{self.batch} samples every {duration(self.step_s)}, {self.samples_per_s:.3g} samples/s, in "
            f"{plan.micro_batches} micro-batches of {plan.micro_batch}; devices work {1 - self.bubble:.0%} of the time"
        ]
        lines.append(
            "no other plan is faster by these figures: proven"
            if self.proven
            else "a faster plan was not found, which proves nothing: there are too many to try"
        )
        alone = used == 1 and bool(self.spare)
        if alone:
            lines.append(
                "one device is faster: the way between several, and the time in which they wait, cost more than "
                "sharing the layers saves"
            )
        for other in self.others:
            if not other.name.startswith(_BESIDE) or (alone and other.name == "one device"):
                continue
            if other.step_s is None:
                lines.append(f"{other.name}: {other.reason}")
            elif other.step_s < self.step_s * _SAME:
                lines.append(f"{other.name} is faster: a step every {duration(other.step_s)}")
            else:
                lines.append(f"{other.step_s / self.step_s:.2f} times as fast as {other.name}")
        if self.spare:
            lines.append(f"not used: {', '.join(self.spare)}")
        return lines


def plan_training(problem: TrainingProblem) -> PlannedTraining:
    """Return the best plan of a training, with others beside it.

    Raises ConfigError for cuts that there are not, and where the memory of the devices is too small: for a layer that
    fits none of them, by its operators, or for all layers together.
    """
    _check(problem)
    _check_layers(problem)
    record = search_training(problem)
    best = record.best
    if best is None:
        raise ConfigError(_too_small(problem))
    costs = StageCosts(problem, best.micro_batch)
    bounds, devices = problem.profile.bounds, problem.devices
    used = {number for stage in best.stages for number in stage.devices}
    return PlannedTraining(
        version=VERSION,
        model=problem.profile.model,
        model_sha256=problem.profile.model_sha256,
        batch=problem.batch,
        plan=SplitTrainingPlan(
            tuple(
                SplitStage(
                    bounds[stage.first],
                    bounds[stage.last],
                    tuple(devices[number].name for number in stage.devices),
                    stage.setup.keep,
                    stage.setup.in_flight,
                )
                for stage in best.stages
            ),
            best.micro_batch,
            best.micro_batches,
        ),
        stages=tuple(
            _workers(problem, costs, stage, max(busy), best.forecast.step_s)
            for stage, busy in zip(best.stages, best.forecast.busy_s, strict=True)
        ),
        step_s=best.forecast.step_s,
        bubble=best.forecast.bubble,
        broker_bytes=best.forecast.broker_bytes,
        broker_s=best.forecast.broker_s,
        proven=record.complete,
        spare=tuple(device.name for number, device in enumerate(devices) if number not in used),
        others=tuple(_others(problem, best)),
        notes=tuple(_notes(problem, best)),
    )


def training_planner(problem: TrainingProblem) -> Callable[[tuple[SplitDevice, ...]], SplitTrainingPlan]:
    """Return what plans the same training for other devices, as they come and go.

    Stages and cuts that were asked for hold as long as there are enough devices for them.
    """

    def plan(devices: tuple[SplitDevice, ...]) -> SplitTrainingPlan:
        wanted = len(problem.cuts) + 1 if problem.cuts is not None else problem.stages
        free = wanted is not None and wanted > len(devices)
        asked = replace(problem, devices=devices, stages=None if free else problem.stages)
        return plan_training(replace(asked, cuts=None) if free else asked).plan

    return plan


def _workers(
    problem: TrainingProblem, costs: StageCosts, stage: ChosenStage, busy_s: float, step_s: float
) -> PlannedWorkers:
    bounds, setup = problem.profile.bounds, stage.setup
    return PlannedWorkers(
        devices=tuple(problem.devices[number].name for number in stage.devices),
        start=bounds[stage.first],
        stop=bounds[stage.last],
        elements=costs.elements[stage.last] - costs.elements[stage.first],
        keep=setup.keep,
        in_flight=setup.in_flight,
        forward_s=setup.forward_s,
        backward_s=setup.backward_s,
        update_s=setup.update_s,
        busy_share=busy_s / step_s if step_s else 1.0,
        memory_bytes=setup.memory_bytes,
        entering_bytes=costs.entering_bytes(stage.first),
        gradient_bytes=costs.gradient_bytes(stage.first),
    )


def _check(problem: TrainingProblem) -> None:
    """Raise ConfigError for wishes that cannot be."""
    bounds, devices = problem.profile.bounds, len(problem.devices)
    if not devices:
        raise ConfigError("no device is there to train; start `har-edge node` on at least one")
    legal = f"{problem.profile.model} can be cut before operators {', '.join(map(str, bounds[1:-1])) or 'none'}"
    for cut in problem.cuts or ():
        if cut not in bounds[1:-1]:
            raise ConfigError(f"a stage that begins at operator {cut} came; {legal}")
    if problem.cuts is not None and list(problem.cuts) != sorted(set(problem.cuts)):
        raise ConfigError(f"stages at operators {', '.join(map(str, problem.cuts))} came; expected them in order")
    stages = len(problem.cuts) + 1 if problem.cuts is not None else problem.stages or 1
    if stages > min(devices, len(bounds) - 1):
        raise ConfigError(
            f"{stages} stages came for {plural(devices, 'device')} and {plural(len(bounds) - 1, 'part')} of the model; "
            f"expected 1 to {min(devices, len(bounds) - 1)}"
        )


def _check_layers(problem: TrainingProblem) -> None:
    """Raise ConfigError where a layer alone is too large for each device."""
    limits = [device.memory_bytes for device in problem.devices]
    if not all(limits):
        return
    costs, most = StageCosts(problem, min(size for _, size in problem.splits)), max(limits)
    for number, segment in enumerate(problem.profile.segments):
        needed = min(costs.memory_bytes(number, number + 1, 1, keep=keep) for keep in (True, False))
        if needed > most:
            raise ConfigError(
                f"{segment.name} of {problem.profile.model} takes {size(needed)} to train, with its "
                f"{segment.elements} weights, by micro-batches of {costs.micro_batch}; the largest device has "
                f"{size(most)}: no cut makes this layer smaller, take devices with more memory, or an optimizer that "
                "keeps less (sgd)"
            )


def _too_small(problem: TrainingProblem) -> str:
    """Return why no plan fits: all layers together take too much."""
    most = max(device.memory_bytes for device in problem.devices)
    costs = StageCosts(problem, min(size for _, size in problem.splits))
    one = costs.memory_bytes(0, costs.n, 1, keep=True)
    asked = "" if problem.cuts is None and problem.stages is None else " in the stages that were asked for"
    text = (
        f"{problem.profile.model} does not fit {plural(len(problem.devices), 'device')} of at most {size(most)}"
        f"{asked}: to train it as a whole takes {size(one)}"
    )
    stages = _fewest_stages(costs, most, len(problem.profile.segments))
    return f"{text}; it needs {stages} devices of {size(most)}" if stages else f"{text}; take devices with more memory"


def _fewest_stages(costs: StageCosts, limit: int, most: int) -> int:
    """Return how many equal devices a model takes by memory alone, by stages as large as they can be; 0 for none."""
    end, stages = costs.n, 0
    while end and stages < most:
        in_flight = needed_in_flight(1, stages, costs.problem.batch, 0)
        fitting = [
            first for first in range(end) if costs.setup(first, end, SplitDevice(""), in_flight, limit) is not None
        ]
        if not fitting:
            return 0
        end, stages = fitting[0], stages + 1
    return stages


def _others(problem: TrainingProblem, best: TrainingCandidate) -> list[OtherTraining]:
    """Return what a reader may have expected instead; first one device, then one with more memory."""
    found = [_one_device(problem, limited=True), _one_device(problem, limited=False), data_parallel(problem)]
    if found[0].step_s is not None:
        found.pop(1)
    for stages in range(2, min(len(problem.devices), len(problem.profile.segments)) + 1):
        if stages != len(best.stages):
            asked = replace(problem, stages=stages, cuts=None, micro_batches=best.micro_batches)
            other = search_training(asked).best
            name = f"{stages} stages"
            found.append(
                OtherTraining(name, stages, None, reason="does not fit the memory")
                if other is None
                else _row(name, other)
            )
    for count in _COUNTS:
        if count != best.micro_batches and count <= problem.batch:
            found.append(_with_count(problem, best, count))
    return found


def _row(name: str, other: TrainingCandidate) -> OtherTraining:
    memory = max(stage.setup.memory_bytes for stage in other.stages)
    return OtherTraining(name, other.devices, other.forecast.step_s, other.forecast.bubble, memory)


def _with_count(problem: TrainingProblem, best: TrainingCandidate, count: int) -> OtherTraining:
    """Return the same stages with another number of micro-batches."""
    name, found = f"{count} micro-batches", same_stages(problem, best, count)
    if found is None:
        return OtherTraining(name, best.devices, None, reason="does not fit the memory")
    return _row(name, found)


def same_stages(problem: TrainingProblem, best: TrainingCandidate, count: int) -> TrainingCandidate | None:
    """Return a candidate with the stages of another one and so many micro-batches; None where it does not fit."""
    costs, stages = StageCosts(problem, math.ceil(problem.batch / count)), list[ChosenStage]()
    whole = costs.whole_s()
    for stage in reversed(best.stages):
        device, behind = problem.devices[stage.devices[0]], sum(len(one.devices) for one in stages)
        in_flight = needed_in_flight(len(stage.devices), behind, count, 0)
        setup = costs.setup(stage.first, stage.last, device, in_flight)
        if setup is None:
            return None
        if whole is not None and (stage.first, stage.last) == (0, costs.n):
            setup = whole_model(setup, whole * device.slowdown)
        stages.insert(0, ChosenStage(stage.first, stage.last, stage.devices, setup))
    return lay_out(problem, costs, stages, count)


def _one_device(problem: TrainingProblem, *, limited: bool) -> OtherTraining:
    """Return the training on the best device alone; without limits as if it had all the memory that it takes."""
    name, limits = "one device", "" if limited else ", given the memory"
    devices = sorted(problem.devices, key=lambda device: device.slowdown)
    tried = [device if limited else replace(device, memory_bytes=0) for device in devices]
    alone = [
        replace(problem, devices=(device,), stages=None, cuts=None, micro_batches=None)
        for device in dict.fromkeys(tried)
    ]
    found = [record.best for record in map(search_training, alone) if record.best is not None]
    if found:
        return _row(name + limits, min(found, key=lambda one: one.forecast.step_s))
    costs = StageCosts(problem, 1)
    needed, most = costs.memory_bytes(0, costs.n, 1, keep=True), max(device.memory_bytes for device in devices)
    return OtherTraining(
        name, 1, None, memory_bytes=needed, reason=f"does not fit: takes {size(needed)}, and has {size(most)}"
    )


def data_parallel(problem: TrainingProblem) -> OtherTraining:
    """Return the training in which each device holds the whole model and a share of the samples.

    In a step the weights come from the server and gradients go back: they leave the broker for each device, and enter
    it from each. Devices take shares by their speed.
    """
    name, devices = "data parallel", problem.devices
    speed = sum(1 / device.slowdown for device in devices)
    share = max(1, round(problem.batch / (max(device.slowdown for device in devices) * speed)))
    costs = StageCosts(problem, share)
    needed = costs.memory_bytes(0, costs.n, 1, keep=True)
    short = [device for device in devices if device.memory_bytes and device.memory_bytes < needed]
    if short:
        least = min(device.memory_bytes for device in short)
        reason = f"does not fit: each device takes {size(needed)}, and {short[0].name} has {size(least)}"
        return OtherTraining(name, len(devices), None, memory_bytes=needed, reason=reason)
    vector = costs.weight_bytes(0, costs.n) + HEAD_BYTES
    work = costs.whole_s()
    compute = costs.work_s[costs.n] if work is None else work
    compute *= problem.batch / (share * speed)
    slowest = max((1 / device.link_bytes_per_s for device in devices if device.link_bytes_per_s), default=0.0)
    down = vector * max(slowest, problem.broker.byte_s * len(devices))
    up = vector * max(slowest, problem.broker.byte_s * len(devices))
    step_s = compute + down + up
    waits = 1 - compute / step_s if step_s else 0.0
    return OtherTraining(name, len(devices), step_s, waits, needed)


def _notes(problem: TrainingProblem, best: TrainingCandidate) -> list[str]:
    """Return remarks on the origin of the figures, and on what limits the plan."""
    found, profile = [], problem.profile
    if profile.message is None:
        found.append("no profile measured messages: they count as nothing for the processor")
    if not profile.base_bytes:
        found.append("no profile measured memory: limits count weights and activations alone")
    if any(not stage.setup.keep for stage in best.stages):
        found.append("stages without the memory to keep activations run forward twice (recompute)")
    if not all(device.memory_bytes for device in problem.devices):
        found.append("devices without a limit of memory are taken to have enough")
    if best.forecast.broker_s > best.forecast.step_s * _SAME:
        found.append("the link of the broker's host sets the pace")
    return found
