"""What a run looked like from outside: every result as it came, what the sink let through, plans, statuses, beats."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import HeartbeatEvent, PlanEvent, ResultsEvent, StatusEvent, Unreadable, decode
from har_edge.protocol.results import Result
from har_edge.protocol.status import Heartbeat, NodeStatus, StagePhase, State
from har_edge.protocol.topics import Topics, is_probe
from har_edge.runtime.sink import Sink


@dataclass(frozen=True, slots=True)
class Answered:
    """A result that the sink let through, and when (`at`: monotonic seconds)."""

    result: Result
    at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan, and when it came (`at`: monotonic seconds)."""

    deployment: Deployment
    at: float


@dataclass(slots=True)
class Recorder:
    """Takes what a watcher receives; `raw` counts each window's results before the sink, by stream, number, capture."""

    topics: Topics
    sink: Sink = field(default_factory=Sink)
    raw: Counter[tuple[str, int, float]] = field(default_factory=Counter)
    answered: list[Answered] = field(default_factory=list)
    plans: list[Seen] = field(default_factory=list)
    statuses: dict[str, NodeStatus] = field(default_factory=dict)
    beats: dict[str, Heartbeat] = field(default_factory=dict)
    # When each node was last heard (seconds since 1970): by a beat.
    heard: dict[str, float] = field(default_factory=dict)
    # The last counters of each process, since a process that is started again counts from 0.
    _counters: dict[tuple[str, str], tuple[str, dict[str, int]]] = field(default_factory=dict)
    _last: dict[str, Answered] = field(default_factory=dict)

    @property
    def filters(self) -> list[str]:
        """What to subscribe to."""
        topics = self.topics
        return [topics.result("+"), topics.status("+"), topics.heartbeat("+"), topics.plan()]

    @property
    def repeated(self) -> int:
        """How many results came again before the sink."""
        return self.raw.total() - len(self.raw)

    @property
    def deployment(self) -> Deployment | None:
        """What is deployed now."""
        return self.plans[-1].deployment if self.plans else None

    def handle(self, delivery: Delivery) -> None:
        """Take one message; raises MessageError for one that no node of ours should have sent."""
        event, now = decode(delivery, self.topics), time.monotonic()
        match event:
            case ResultsEvent():
                self._note_results(event, now)
            case PlanEvent(deployment=Deployment() as deployment):
                self._note_plan(deployment, now)
            case HeartbeatEvent():
                self.beats[event.node], self.heard[event.node] = event.heartbeat, time.time()
            case StatusEvent(status=NodeStatus() as status):
                self.statuses[status.node] = status
                if status.counters:
                    self._counters[status.node, status.instance] = (status.role, status.counters)
            case Unreadable():
                raise MessageError(f"{delivery.topic}: {event.reason}")

    def state(self, node: str) -> State | None:
        """Return what a node said last that it does; None before it said anything."""
        return self.statuses[node].state if node in self.statuses else None

    def sum_of(self, counter: str, role: str) -> int:
        """Return a counter summed over all processes of a role that there have been."""
        return sum(counts.get(counter, 0) for said, counts in self._counters.values() if said == role)

    def last_result(self, stream: str) -> Answered | None:
        """Return the last result of a stream; None before the first."""
        return self._last.get(stream)

    def answers_after(self, stream: str, captured: float) -> bool:
        """Tell whether a window captured later than this (seconds since 1970) has been answered."""
        for one in reversed(self.answered):
            if one.result.stream == stream:
                if one.result.captured > captured:
                    return True
                if one.result.emitted < captured:  # older ones were made before
                    return False
        return False

    def longest_pause(self, stream: str, start: float, stop: float) -> float:
        """Return the longest time (seconds) between two results of a stream, from the last one before `start` on."""
        times = [one.at for one in self.answered if one.result.stream == stream and one.at <= stop]
        before = [at for at in times if at < start][-1:]
        inside = before + [at for at in times if at >= start]
        return max((later - earlier for earlier, later in itertools.pairwise(inside)), default=0.0)

    def is_settled(self) -> bool:
        """Tell whether one generation is deployed, current, and every stage of it runs, by the last beats."""
        deployment = self.deployment
        if deployment is None or deployment.current is None or len(deployment.generations) != 1:
            return False
        running = {
            (beat.node, stage.epoch, stage.stage, stage.replica)
            for beat in self.beats.values()
            for stage in beat.stages
            if stage.phase is StagePhase.RUNNING
        }
        generation = deployment.current
        return all(
            (one.node, generation.epoch, one.stage, one.replica) in running and not one.standby
            for one in generation.placements
        )

    def _note_results(self, event: ResultsEvent, now: float) -> None:
        for result in event.results:
            if not is_probe(result.stream):
                self.raw[result.stream, result.seq, result.captured] += 1
        for result in self.sink.take(event):
            self._last[result.stream] = Answered(result, now)
            self.answered.append(self._last[result.stream])

    def _note_plan(self, deployment: Deployment, now: float) -> None:
        if deployment != self.deployment:
            self.plans.append(Seen(deployment, now))
