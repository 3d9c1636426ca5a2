"""What a deployment looks like from outside: results, each once, plans, statuses and heartbeats."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import Deployment, decode_deployment
from har_edge.protocol.results import Result
from har_edge.protocol.status import (
    UNREADABLE,
    Heartbeat,
    NodeStatus,
    StagePhase,
    State,
    decode_heartbeat,
    decode_status,
)
from har_edge.protocol.topics import Kind, Topics
from har_edge.runtime.sink import Sink


@dataclass(frozen=True, slots=True)
class SeenPlan:
    """A plan, and when it came (`at`: monotonic seconds)."""

    deployment: Deployment
    at: float


@dataclass(slots=True)
class ClusterView:
    """Takes what a watcher of one pipeline receives."""

    topics: Topics
    sink: Sink = field(default_factory=Sink)
    plans: list[SeenPlan] = field(default_factory=list)
    statuses: dict[str, NodeStatus] = field(default_factory=dict)
    heartbeats: dict[str, Heartbeat] = field(default_factory=dict)
    # When the last heartbeat of each node came (seconds since 1970).
    heard: dict[str, float] = field(default_factory=dict)
    # The last counters of each process, since a process that is started again counts from 0.
    _counters: dict[tuple[str, str], tuple[str, dict[str, int]]] = field(default_factory=dict)

    @property
    def filters(self) -> list[str]:
        """What to subscribe to."""
        topics = self.topics
        return [topics.result("+"), topics.status("+"), topics.heartbeat("+"), topics.plan()]

    @property
    def deployment(self) -> Deployment | None:
        """What is deployed now."""
        return self.plans[-1].deployment if self.plans else None

    def handle(self, delivery: Delivery) -> list[Result]:
        """Take one message and return the results in it that are new.

        Raises MessageError for one that no node of har_edge should have sent.
        """
        kind, now = self.topics.read(delivery.topic).kind, time.monotonic()
        if kind is Kind.RESULT:
            return self.note_results(delivery, now)
        if not delivery.payload:  # a retained message was cleared
            return []
        try:
            match kind:
                case Kind.PLAN:
                    self._note_plan(decode_deployment(delivery.payload), now)
                case Kind.HEARTBEAT:
                    heartbeat = decode_heartbeat(delivery.payload)
                    self.heartbeats[heartbeat.node], self.heard[heartbeat.node] = heartbeat, time.time()
                case Kind.STATUS:
                    self._note_status(decode_status(delivery.payload))
        except UNREADABLE as error:
            raise MessageError(f"{delivery.topic}: {error}; expected what protocol/status.py writes") from None
        return []

    def note_results(self, delivery: Delivery, now: float) -> list[Result]:
        """Return the results of a message that were not seen before; `now` is monotonic."""
        return self.sink.handle(delivery)

    def state(self, node: str) -> State | None:
        """Return what a node said last that it does; None before it said anything."""
        return self.statuses[node].state if node in self.statuses else None

    def sum_of(self, counter: str, role: str) -> int:
        """Return a counter summed over all processes of a role that there have been."""
        return sum(counts.get(counter, 0) for said, counts in self._counters.values() if said == role)

    def is_settled(self) -> bool:
        """Return whether one generation is deployed, current, and every stage of it runs, by the last heartbeats."""
        deployment = self.deployment
        if deployment is None or deployment.current is None or len(deployment.generations) != 1:
            return False
        running = {
            (heartbeat.node, stage.epoch, stage.stage, stage.replica)
            for heartbeat in self.heartbeats.values()
            for stage in heartbeat.stages
            if stage.phase is StagePhase.RUNNING
        }
        generation = deployment.current
        return all(
            (one.node, generation.epoch, one.stage, one.replica) in running and not one.standby
            for one in generation.placements
        )

    def _note_status(self, status: NodeStatus) -> None:
        self.statuses[status.node] = status
        if status.counters:
            self._counters[status.node, status.instance] = (status.role, status.counters)

    def _note_plan(self, deployment: Deployment, now: float) -> None:
        if deployment != self.deployment:
            self.plans.append(SeenPlan(deployment, now))
