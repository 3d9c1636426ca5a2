"""A deployment as seen from outside: results, each once, plans, statuses and heartbeats."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.cluster_state import ClusterState
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import HeartbeatEvent, PlanEvent, ResultsEvent, StatusEvent, Unreadable, decode
from har_edge.protocol.results import Result
from har_edge.protocol.status import Heartbeat, NodeStatus, State
from har_edge.protocol.topics import Topics
from har_edge.runtime.sink import Sink


@dataclass(frozen=True, slots=True)
class SeenPlan:
    """A plan, and when it came (`at`: monotonic seconds)."""

    deployment: Deployment
    at: float


@dataclass(slots=True)
class ClusterView:
    """Takes what a watcher of one pipeline receives: the state of the cluster now, and what a run needs of its past."""

    topics: Topics
    sink: Sink = field(default_factory=Sink)
    cluster: ClusterState = field(default_factory=lambda: ClusterState(time.monotonic()))
    plans: list[SeenPlan] = field(default_factory=list)
    # When the last heartbeat of each node came (seconds since 1970).
    heard: dict[str, float] = field(default_factory=dict)
    # The last counters of each process, since a process that is started again counts from 0.
    _counters: dict[tuple[str, str], tuple[str, dict[str, int]]] = field(default_factory=dict)

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        topics = self.topics
        return [topics.result("+"), topics.status("+"), topics.heartbeat("+"), topics.plan()]

    @property
    def deployment(self) -> Deployment | None:
        """The current deployment."""
        return self.cluster.deployment

    @property
    def statuses(self) -> dict[str, NodeStatus]:
        """The last status of each node by name."""
        return self.cluster.statuses

    @property
    def heartbeats(self) -> dict[str, Heartbeat]:
        """The last heartbeat of each node by name."""
        return self.cluster.heartbeats

    def handle(self, delivery: Delivery) -> list[Result]:
        """Take one message and return the results in it that are new.

        Raises MessageError for one that no node of har_edge should have sent.
        """
        event, now = decode(delivery, self.topics), time.monotonic()
        if isinstance(event, StatusEvent) and event.status is None:
            return []  # it was cleared when the node had ended; its last word counts on
        self.cluster.apply(event, now)
        match event:
            case ResultsEvent():
                return self.note_results(event, now)
            case PlanEvent(deployment=Deployment() as deployment):
                self._note_plan(deployment, now)
            case HeartbeatEvent():
                self.heard[event.node] = time.time()
            case StatusEvent(status=NodeStatus() as status) if status.counters:
                self._counters[status.node, status.instance] = (status.role, status.counters)
            case Unreadable():
                raise MessageError(f"{delivery.topic}: {event.reason}")
        return []

    def note_results(self, event: ResultsEvent, now: float) -> list[Result]:
        """Return the results of a message that were not seen before; `now` is monotonic."""
        return self.sink.take(event)

    def state(self, node: str) -> State | None:
        """Return what a node said last that it does; None before it said anything."""
        return self.cluster.state_of(node)

    def forget(self, node: str) -> None:
        """Forget what a node said last, as it is about to start again; its counters count on."""
        if node in self.cluster.nodes:
            self.cluster.nodes[node].status = None

    def sum_of(self, counter: str, role: str) -> int:
        """Return a counter summed over all processes of a role that there have been."""
        return sum(counts.get(counter, 0) for said, counts in self._counters.values() if said == role)

    def is_settled(self) -> bool:
        """Return whether one generation is deployed, current, and every stage of it runs, by the last heartbeats."""
        return self.cluster.is_settled()

    def _note_plan(self, deployment: Deployment, now: float) -> None:
        if not self.plans or deployment != self.plans[-1].deployment:
            self.plans.append(SeenPlan(deployment, now))
