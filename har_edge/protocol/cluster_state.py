"""The state of a cluster, folded from the messages of its members: events in, one bounded state out, no clock.

All observers of a pipeline read this state: the monitor and its checks, the recorder of experiments, a local cluster.
The coordinator alone decides by more than this who is lost (coordinator/membership.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from har_edge.protocol.artifacts import Header
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import (
    Event,
    HeaderEvent,
    HeartbeatEvent,
    PlanEvent,
    ResultsEvent,
    StatusEvent,
    Unreadable,
)
from har_edge.protocol.status import ALIVE, Heartbeat, NodeStatus, StagePhase, StageReport, State
from har_edge.protocol.topics import Kind, is_probe
from har_edge.timing import SILENT_S

MAX_NODES = 1000
MAX_ARTIFACTS = 10_000
# Roles that send heartbeats; one whose last is older than this is not alive, whatever its status says.
BEATING = frozenset({"node"})

# A stage: its node, generation, number and replica.
StageKey = tuple[str, int, int, int]


@dataclass(slots=True)
class NodeRecord:
    """The last messages of one node, and when they came, by the clock of the reader; minus infinity stands for never.

    `said_at` is when it said something of itself while the reader listened: a retained status may be old.
    """

    status: NodeStatus | None = None
    said_at: float = -math.inf
    heartbeat: Heartbeat | None = None
    heartbeat_at: float = -math.inf


@dataclass(slots=True)
class ClusterState:
    """The known state of one pipeline; its reader began to listen at `since`.

    `deployment` is the last plan that could be read, `plan_problem` what is wrong with a later one. `results` counts
    classes of windows, without those of probes, `unreadable` messages by what they claimed to be. Nodes for which there
    is no room are counted as `unshown`, and artifacts too many are passed over.
    """

    since: float = 0.0
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    deployment: Deployment | None = None
    plan_problem: str = ""
    artifacts: dict[str, Header] = field(default_factory=dict)
    results: int = 0
    unreadable: Counter[Kind | None] = field(default_factory=Counter)
    unshown: int = 0

    def apply(self, event: Event, now: float) -> None:
        """Take an event that came at `now`: the same clock as that of `since`."""
        match event:
            case StatusEvent():
                self._apply_status(event, now)
            case HeartbeatEvent(retained=False):  # one that is retained says nothing of now
                node = self._node(event.node)
                if node is not None:
                    node.heartbeat, node.heartbeat_at = event.heartbeat, now
            case PlanEvent():
                self.deployment, self.plan_problem = event.deployment, ""
            case ResultsEvent():
                self.results += sum(not is_probe(result.stream) for result in event.results)
            case HeaderEvent():
                self._apply_header(event.sha256, event.header)
            case Unreadable():
                self._apply_unreadable(event)

    @property
    def statuses(self) -> dict[str, NodeStatus]:
        """The last status of each node by name."""
        return {name: node.status for name, node in self.nodes.items() if node.status is not None}

    @property
    def heartbeats(self) -> dict[str, Heartbeat]:
        """The last heartbeat of each node by name."""
        return {name: node.heartbeat for name, node in self.nodes.items() if node.heartbeat is not None}

    @property
    def reports(self) -> Mapping[StageKey, StageReport]:
        """The last report of each stage, by node, generation, stage and replica."""
        return {
            (name, report.epoch, report.stage, report.replica): report
            for name, heartbeat in self.heartbeats.items()
            for report in heartbeat.stages
        }

    def state_of(self, name: str) -> State | None:
        """Return what a node said last that it does; None before it said anything."""
        node = self.nodes.get(name)
        return node.status.state if node is not None and node.status is not None else None

    def is_alive(self, name: str, now: float) -> bool:
        """Return whether a node is there: by its status, and by its heartbeats if it is one that sends them."""
        node = self.nodes.get(name)
        if node is None or (node.status is not None and node.status.state not in ALIVE):
            return False
        silent = now - max(node.heartbeat_at, self.since) > SILENT_S
        beats = node.status is None or node.status.role in BEATING or node.heartbeat is not None
        return not (beats and silent)

    def is_settled(self) -> bool:
        """Return whether one generation is deployed, current, and every stage of it runs, by the last heartbeats."""
        deployment = self.deployment
        if deployment is None or deployment.current is None or len(deployment.generations) != 1:
            return False
        generation, reports = deployment.current, self.reports
        running = {key for key, report in reports.items() if report.phase is StagePhase.RUNNING}
        return all(
            (one.node, generation.epoch, *one.key) in running and not one.standby for one in generation.placements
        )

    def _apply_status(self, event: StatusEvent, now: float) -> None:
        status = event.status
        if status is None:
            self.nodes.pop(event.node, None)
            return
        node = self._node(event.node)
        if node is None:
            return
        known = node.status
        if known is not None and _is_outdated(status, known):
            return
        if known is not None and known.instance == status.instance and not status.streams:
            status = msgspec.structs.replace(status, streams=known.streams)  # a last will tells no figures
        node.status = status
        if not event.retained:
            node.said_at = now

    def _apply_header(self, sha256: str, header: Header | None) -> None:
        if header is None:
            self.artifacts.pop(sha256, None)
        elif sha256 in self.artifacts or len(self.artifacts) < MAX_ARTIFACTS:
            self.artifacts[sha256] = header

    def _apply_unreadable(self, event: Unreadable) -> None:
        self.unreadable[event.kind] += 1
        if event.kind is Kind.PLAN:
            self.plan_problem = event.reason
        elif event.kind is Kind.SLICE and event.topic is not None:  # no reader can use what stands there now
            self.artifacts.pop(event.topic.levels[0], None)

    def _node(self, name: str) -> NodeRecord | None:
        if name not in self.nodes and len(self.nodes) >= MAX_NODES:
            self.unshown += 1
            return None
        return self.nodes.setdefault(name, NodeRecord())


def _is_outdated(status: NodeStatus, known: NodeStatus) -> bool:
    """Return whether a status is the last word of an older process, while a younger one of the same name lives.

    The will of a process that was killed may come after what its successor says.
    """
    return (
        status.state not in ALIVE
        and known.state in ALIVE
        and status.instance != known.instance
        and status.started < known.started
    )
