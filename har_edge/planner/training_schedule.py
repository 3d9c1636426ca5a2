"""Simulate a step of split training: micro-batches go forward and back through stages (1F1B), over a broker.

A worker takes its micro-batches in order, backward before forward where both are possible, and has at most `in_flight`
that have gone forward and not yet back (Narayanan et al., PipeDream, SOSP 2019, section 3.2). A message leaves the
sender's link and enters the broker at the slower of the two rates, and leaves the broker once it is there as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from har_edge.planner.devices import UNLIMITED, BrokerLink


@dataclass(frozen=True, slots=True)
class ScheduledStage:
    """A stage as the simulation sees it; its workers are equal and take turns.

    Attributes:
        workers: How many devices it has.
        in_flight: The limit of each of them.
        forward_s, backward_s: Seconds of a worker for a micro-batch; with `joined` both are one run.
        update_s: Seconds of the optimizer's step, once a step.
        entering_bytes, gradient_bytes: Bytes that a micro-batch brings in, and takes back to the stage in front.
        weight_bytes: Bytes that workers of one stage send each other to add their gradients up.
        link_byte_s: Seconds of a byte on a worker's link, each way; 0 for no limit.
        joined: Whether forward and backward are one run, as in the last stage.
    """

    workers: int
    in_flight: int
    forward_s: float
    backward_s: float
    update_s: float = 0.0
    entering_bytes: int = 0
    gradient_bytes: int = 0
    weight_bytes: int = 0
    link_byte_s: float = 0.0
    joined: bool = False


@dataclass(frozen=True, slots=True)
class StepForecast:
    """The prediction for a step.

    Attributes:
        step_s: Seconds between two steps.
        busy_s: Seconds that the processor of each worker works in a step, by stage.
        broker_bytes: Bytes that enter the broker in a step.
        broker_s: How long the broker's link is busy in a step.
    """

    step_s: float
    busy_s: tuple[tuple[float, ...], ...]
    broker_bytes: int
    broker_s: float

    @property
    def busy_share(self) -> float:
        """The part of the time that the workers work; the rest is the bubble."""
        all_s = [busy for stage in self.busy_s for busy in stage]
        return sum(all_s) / (len(all_s) * self.step_s) if self.step_s else 1.0

    @property
    def bubble(self) -> float:
        """The part of the time in which workers wait."""
        return 1.0 - self.busy_share


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A run of a worker in a step, from `began_s` to `ended_s`; `backward` is its kind, `joined` runs are both."""

    stage: int
    worker: int
    micro: int
    backward: bool
    began_s: float
    ended_s: float


@dataclass(slots=True)
class _Worker:
    """A worker while a step goes on: micro-batches that are there, and those under way."""

    stage: int
    waiting: list[int]  # its micro-batches that have not gone forward, the next one last
    here: set[int] = field(default_factory=set)  # whose inputs are there
    back: list[int] = field(default_factory=list)  # whose gradients are there
    flying: int = 0
    left: int = 0
    idle: bool = True
    began: float | None = None
    ended: float = 0.0
    busy: float = 0.0


class _Links:
    """Each direction of each link serves one message at a time."""

    def __init__(self, loads: Sequence[ScheduledStage], broker: BrokerLink, latency_s: float) -> None:
        self._byte_s = [load.link_byte_s for load in loads]
        self._broker, self._latency_s = broker, latency_s
        self._up: dict[tuple[int, int], float] = {}
        self._down: dict[tuple[int, int], float] = {}
        self._broker_in = self._broker_out = 0.0
        self.bytes = 0

    def send(self, now: float, sender: tuple[int, int] | None, taker: tuple[int, int], count: int) -> float:
        """Return when a message is there; None as the sender is the driver."""
        self.bytes += count
        byte_s = self._broker.byte_s
        own = self._byte_s[sender[0]] if sender is not None else 0.0
        start = max(now, self._broker_in, self._up.get(sender, 0.0) if sender is not None else 0.0)
        there = start + count * max(own, byte_s)
        self._broker_in = start + count * byte_s
        if sender is not None:
            self._up[sender] = start + count * own
        begin = there if self._broker.duplex else max(there, self._broker_in)
        begin = max(begin, self._broker_out, self._down.get(taker, 0.0))
        taken = self._byte_s[taker[0]]
        self._broker_out = begin + count * byte_s
        if not self._broker.duplex:
            self._broker_in = max(self._broker_in, self._broker_out)
        self._down[taker] = begin + count * taken
        return begin + count * max(taken, byte_s) + 2 * self._latency_s


def forecast_step(
    loads: Sequence[ScheduledStage], micro_batches: int, broker: BrokerLink = UNLIMITED, latency_s: float = 0.0
) -> StepForecast:
    """Return the prediction for steps of so many micro-batches, one after the other."""
    return _Step(loads, micro_batches, broker, latency_s).run()


def schedule_step(
    loads: Sequence[ScheduledStage], micro_batches: int, broker: BrokerLink = UNLIMITED, latency_s: float = 0.0
) -> list[ScheduledRun]:
    """Return every run of a step in the order in which they begin, as a drawing needs them."""
    step = _Step(loads, micro_batches, broker, latency_s)
    step.run()
    return sorted(step.runs, key=lambda run: (run.began_s, run.stage, run.worker))


class _Step:
    def __init__(self, loads: Sequence[ScheduledStage], count: int, broker: BrokerLink, latency_s: float) -> None:
        self.loads, self.count, self.broker = loads, count, broker
        self.links = _Links(loads, broker, latency_s)
        self.workers = [
            [_Worker(stage, list(range(count))[first :: load.workers][::-1]) for first in range(load.workers)]
            for stage, load in enumerate(loads)
        ]
        for stage in self.workers:
            for worker in stage:
                worker.left = len(worker.waiting)
        # Time, order, what has happened (forward, backward: that came; made, went back: a run has ended), stage,
        # worker, micro-batch.
        self.events: list[tuple[float, int, str, int, int, int]] = []
        self.order = 0
        self.runs: list[ScheduledRun] = []

    def run(self) -> StepForecast:
        for micro in range(self.count):
            self.deliver(0.0, None, "forward", 0, micro, self.loads[0].entering_bytes)
        while self.events:
            now = self.events[0][0]
            touched = dict[tuple[int, int], None]()
            # All that happens at one moment comes first, so that backward goes before forward then, too.
            while self.events and self.events[0][0] == now:
                touched[self.happen(*heapq.heappop(self.events))] = None
            for stage, number in touched:
                if self.workers[stage][number].idle:
                    self.begin(now, stage, number)
        return self.forecast()

    def happen(self, now: float, _: int, kind: str, stage: int, number: int, micro: int) -> tuple[int, int]:
        """Note what has come to a worker, or that it is free and sends what it has made; return which one."""
        worker = self.workers[stage][number]
        if kind == "forward":
            worker.here.add(micro)
        elif kind == "backward":
            heapq.heappush(worker.back, micro)
        else:
            worker.idle = True
            if kind == "made" and stage + 1 < len(self.loads):
                self.deliver(now, (stage, number), "forward", stage + 1, micro, self.loads[stage + 1].entering_bytes)
            elif kind == "went back" and stage:
                self.deliver(now, (stage, number), "backward", stage - 1, micro, self.loads[stage].gradient_bytes)
        return stage, number

    def begin(self, now: float, stage: int, number: int) -> None:
        """Let a free worker take the next micro-batch that it may take."""
        load, worker = self.loads[stage], self.workers[stage][number]
        if worker.back:
            worker.flying -= 1
            self.work(now, worker, number, heapq.heappop(worker.back), load.backward_s, backward=True)
        elif worker.waiting and worker.waiting[-1] in worker.here and (load.joined or worker.flying < load.in_flight):
            worker.flying += not load.joined
            seconds = load.forward_s + load.backward_s * load.joined
            self.work(now, worker, number, worker.waiting.pop(), seconds, backward=load.joined)

    def work(self, now: float, worker: _Worker, number: int, micro: int, seconds: float, *, backward: bool) -> None:
        worker.began = now if worker.began is None else worker.began
        worker.idle, worker.ended = False, now + seconds
        worker.busy += seconds
        worker.left -= backward
        self.runs.append(ScheduledRun(worker.stage, number, micro, backward, now, worker.ended))
        self.push(worker.ended, "went back" if backward else "made", worker.stage, number, micro)

    def deliver(
        self, now: float, sender: tuple[int, int] | None, kind: str, stage: int, micro: int, count: int
    ) -> None:
        number = micro % self.loads[stage].workers
        self.push(self.links.send(now, sender, (stage, number), count), kind, stage, number, micro)

    def push(self, time: float, kind: str, stage: int, number: int, micro: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, kind, stage, number, micro))

    def forecast(self) -> StepForecast:
        assert all(worker.left == 0 for stage in self.workers for worker in stage)
        spans = []
        for stage, (load, workers) in enumerate(zip(self.loads, self.workers, strict=True)):
            ends = self.added(stage, load, workers)
            for worker, ended in zip(workers, ends, strict=True):
                worker.busy += load.update_s
                # A stage begins the next step once it has made its own.
                spans.append(ended + load.update_s - (worker.began if worker.began is not None else ended))
        step_s = max(spans)
        busy_s = self.links.bytes * self.broker.byte_s * (1 if self.broker.duplex else 2)
        return StepForecast(
            max(step_s, busy_s),
            tuple(tuple(worker.busy for worker in stage) for stage in self.workers),
            self.links.bytes,
            busy_s,
        )

    def added(self, stage: int, load: ScheduledStage, workers: Sequence[_Worker]) -> list[float]:
        """Return when each worker of a stage has the sum of the gradients, which the first one makes and sends back."""
        ends = [worker.ended for worker in workers]
        if len(ends) == 1:
            return ends
        there = [
            self.links.send(end, (stage, number), (stage, 0), load.weight_bytes)
            for number, end in enumerate(ends)
            if number
        ]
        sum_s = max(ends[0], *there)
        return [
            sum_s,
            *(self.links.send(sum_s, (stage, 0), (stage, number), load.weight_bytes) for number in range(1, len(ends))),
        ]
