"""A node that runs whatever stages the plan gives it: its control, apart from the threads that run them.

The control follows the retained plan, keeps a worker for each replica, says how it is (retained status) and that it is
alive (beats). It does no work that takes long, so that beats go on while stages compute.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from har_edge.errors import BrokerError
from har_edge.mqtt.bus import Bus, Delivery, Outgoing, TakenOver
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import PlanEvent, Unreadable, decode
from har_edge.protocol.status import (
    NEXT,
    BrokerOffer,
    Heartbeat,
    PlanRefusal,
    StagePhase,
    StageReport,
    State,
    encode_heartbeat,
)
from har_edge.protocol.topics import RETAINED, Kind
from har_edge.runtime.node.trainings import Trainings
from har_edge.runtime.node.worker import LEAVING, DesiredState, ReplicaId
from har_edge.runtime.sender import drain
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop
from har_edge.timing import HEARTBEAT_S, NO_BROKER_S, NODE_STATUS_S, WORKER_END_S
from har_edge.trust.gate import PlanGate
from har_edge.trust.verdict import Flaw

_log = logging.getLogger(__name__)
# How often a node looks at its stages while one is on its way from one phase to the next.
LOOK_S = 0.03
# Beats that the broker has not taken: more would only come too late.
_MAX_UNSENT = 8
_RUNNING = frozenset({StagePhase.RUNNING, StagePhase.DRAINED})


class WorkerHandle(Protocol):
    """The interface that a node needs of a worker (runtime/node/worker.py)."""

    @property
    def desired(self) -> DesiredState:
        """The state that the node asked for."""

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""

    @property
    def phase(self) -> StagePhase:
        """How far its stage is."""

    def start(self) -> None:
        """Begin."""

    def direct(self, desired: DesiredState, deployment: Deployment | None = None) -> None:
        """Say what is wanted from now on."""

    def retry_now(self) -> None:
        """Try at once what failed before."""

    def watch(self, now: float) -> None:
        """Look whether its thread still works."""

    @property
    def unending(self) -> bool:
        """Whether its thread will not end, whatever it is told."""

    def report(self, now: float) -> StageReport:
        """Say what its stage does."""

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""


StartWorker = Callable[[ReplicaId, Deployment, DesiredState], WorkerHandle]


def replicas_of(deployment: Deployment | None, node: str) -> dict[ReplicaId, DesiredState]:
    """Return what a deployment wants of a node: the stages it holds, and those it gets ready for."""
    replicas: dict[ReplicaId, DesiredState] = {}
    for generation in deployment.generations if deployment else ():
        for placement in generation.placements:
            replica_id = ReplicaId(generation.epoch, placement.stage, placement.replica)
            if placement.node == node:
                replicas[replica_id] = DesiredState.HOLD
            elif node in placement.standby:
                replicas[replica_id] = DesiredState.PREPARE
    return replicas


class Node:
    """Control a node, without a bus: deliveries in, status and beats out; `start_worker` makes the worker of a replica.

    A plan that is malformed is dropped and counted, one that is older than the last is left: what runs goes on. The
    status says which plan was refused last: by the `gate` of a node that verifies signatures, or for its revision.
    """

    def __init__(
        self,
        identity: Identity,
        start_worker: StartWorker,
        trainings: Trainings | None = None,
        gate: PlanGate | None = None,
    ) -> None:
        self.trainings, self._gate = trainings, gate
        self._older: PlanRefusal | None = None
        self.identity, self.state, self.rejected = identity, State.INIT, 0
        self.deployment: Deployment | None = None
        self.workers: dict[ReplicaId, WorkerHandle] = {}
        self._start_worker, self._topics = start_worker, identity.topics
        self._number, self._beat_at, self._said = 0, 0.0, frozenset[tuple[ReplicaId, StagePhase]]()
        self._told: tuple[State, int, int, BrokerOffer | None, PlanRefusal | None] | None = None
        self._say_at, self._reconnects = 0.0, 0

    # --- what it is told ----------------------------------------------------------------------------------------------

    def handle(self, delivery: Delivery) -> None:
        """Take a plan, or the empty message that takes it away; or the job of a training."""
        event = decode(delivery, self._topics)
        if self.trainings is not None:
            self.trainings.handle(event)
        if isinstance(event, Unreadable) and event.kind is Kind.PLAN:
            self.rejected += 1
            _log.warning("dropped a plan: %s", event.reason)
        if not isinstance(event, PlanEvent):
            return
        deployment = event.deployment
        if deployment is None:
            _log.warning("the plan was taken away: no stage runs here until another one comes")
            self.deployment = None
            return
        if self.deployment is None or deployment.replaces(self.deployment):
            self.deployment, self._older = deployment, None
        elif deployment == self.deployment:
            self._older = None
        else:
            self.rejected += 1
            text = "dropped revision %d of the plan by %s: revision %d by %s is newer"
            last = self.deployment
            _log.warning(text, deployment.revision, deployment.author, last.revision, last.author)
            reason = f"revision {deployment.revision} came; revision {last.revision} by {last.author[:80]!r} is newer"
            digest = hashlib.sha256(delivery.payload).hexdigest()
            self._older = PlanRefusal(Flaw.OLDER.value, reason, digest, last.revision)

    def begin(self) -> None:
        """Take stages from now on; the identity says what the device can do."""
        self._enter(State.READY)

    def retire(self) -> None:
        """Take no more and hand over what runs; before stages may run here, there is nothing to hand over."""
        if self.state in (State.READY, State.BUSY):
            self._enter(State.DRAINING)

    @property
    def placed(self) -> bool:
        """Whether the plan wants stages to run here."""
        return DesiredState.HOLD in replicas_of(self.deployment, self.identity.node).values()

    @property
    def stuck(self) -> str:
        """Why this process must start anew: the stage whose thread neither works nor ends; empty where all do."""
        hung = sorted(replica_id for replica_id, worker in self.workers.items() if worker.unending)
        return f"stage {hung[0].stage} of epoch {hung[0].epoch} neither goes on nor ends" if hung else ""

    @property
    def serves(self) -> bool:
        """Whether a stage runs here that works."""
        return any(one.phase in _RUNNING and not one.unending for one in self.workers.values())

    @property
    def unsettled(self) -> bool:
        """Whether a stage is on its way from one phase to the next."""
        return any(
            one.phase is StagePhase.FETCHING
            or one.desired in LEAVING
            or (one.desired is DesiredState.HOLD and one.phase is StagePhase.PREPARED)
            for one in self.workers.values()
        )

    # --- what it does -------------------------------------------------------------------------------------------------

    def tick(self, now: float, reconnects: int, counters: Mapping[str, int] | None = None) -> list[Outgoing]:
        """Bring the workers in line with the plan; return the status and the beat that are due.

        `reconnects` is how often the connection was made anew: then the status is said again, and once in
        NODE_STATUS_S, and what failed is tried again.
        """
        self._reconcile()
        for worker in self.workers.values():
            worker.watch(now)
        if reconnects != self._reconnects:
            self._reconnects = reconnects
            for worker in self.workers.values():
                worker.retry_now()
        if self.state in (State.READY, State.BUSY):
            busy = any(one.phase in _RUNNING for one in self.workers.values())
            self._enter(State.BUSY if busy else State.READY)
        outgoing, device, gate = [], self.identity.device, self._gate
        if gate is not None:
            self.identity.signer = gate.key
        self.identity.refused = (gate.refusal if gate is not None else None) or self._older
        told = (self.state, reconnects, self._refusals, device.broker if device else None, self.identity.refused)
        if told != self._told or now >= self._say_at:
            self._told, self._beat_at, self._say_at = told, now, now + NODE_STATUS_S
            outgoing.append(self.status(counters))
        if self.state is not State.INIT and (now >= self._beat_at or self._phases() != self._said):
            outgoing.append(self._beat(now))
        return outgoing

    def status(self, counters: Mapping[str, int] | None = None) -> Outgoing:
        """Return the retained status."""
        counts = {"plans_rejected": self._refusals, **(counters or {})}
        return Outgoing(self.identity.topic, self.identity.status(self.state, counts), retain=Kind.STATUS in RETAINED)

    def leave(self, timeout_s: float = WORKER_END_S) -> None:
        """Let every stage go, its session left to whoever fills it next, and wait until they have ended."""
        deadline = time.monotonic() + timeout_s
        for worker in self.workers.values():
            worker.direct(DesiredState.LEAVE)
        if self.trainings is not None:
            self.trainings.leave(timeout_s / 2)
        for replica_id, worker in self.workers.items():
            worker.join(0.0 if worker.unending else max(0.0, deadline - time.monotonic()))
            if worker.alive:
                _log.warning("stage %d of epoch %d did not end in time", replica_id.stage, replica_id.epoch)

    def farewell(self) -> Outgoing:
        """Return the status of a node that has gone on purpose."""
        self._enter(State.STOPPED)
        return self.status()

    @property
    def _refusals(self) -> int:
        return self.rejected + (self._gate.refused if self._gate is not None else 0)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            assert state in NEXT[self.state], f"a node cannot go from {self.state.value} to {state.value}"
            self.state = state

    def _reconcile(self) -> None:
        wanted = replicas_of(self.deployment, self.identity.node)
        for replica_id, worker in list(self.workers.items()):
            if not worker.alive:
                del self.workers[replica_id]
            elif replica_id in wanted:
                worker.direct(wanted[replica_id], self.deployment)
            else:
                gone = self.deployment is None or self.deployment.generation(replica_id.epoch) is None
                worker.direct(DesiredState.END if gone else DesiredState.LEAVE, self.deployment)
        for replica_id, desired in wanted.items():
            if replica_id not in self.workers and self.deployment is not None:
                self.workers[replica_id] = worker = self._start_worker(replica_id, self.deployment, desired)
                worker.start()

    def _phases(self) -> frozenset[tuple[ReplicaId, StagePhase]]:
        return frozenset((replica_id, worker.phase) for replica_id, worker in self.workers.items())

    def _beat(self, now: float) -> Outgoing:
        self._beat_at = now + HEARTBEAT_S
        self._number += 1
        reports = {replica_id: self.workers[replica_id].report(now) for replica_id in sorted(self.workers)}
        self._said = frozenset((replica_id, report.phase) for replica_id, report in reports.items())
        beat = Heartbeat(
            node=self.identity.node,
            instance=self.identity.instance,
            number=self._number,
            time=time.time(),
            revision=self.deployment.revision if self.deployment else 0,
            stages=tuple(reports.values()),
        )
        return Outgoing(self._topics.heartbeat(self.identity.node), encode_heartbeat(beat))


def run_node(
    bus: Bus, node: Node, stop: Stop, *, drain_timeout_s: float, watch: Callable[[], None] = lambda: None
) -> str:
    """Follow the plan until `stop`; then hand over what runs here, say goodbye, and disconnect.

    `watch` is called now and then, and may change what the node's identity says of its device. Returns why the process
    must start anew, empty where it need not: a stage is stuck in it.

    Raises TakenOver when another process has become this node, BrokerError for what no retry mends.
    """
    bus.subscribe([node.identity.topics.plan()])
    if node.trainings is not None:
        bus.subscribe(node.trainings.filters)
    node.begin()
    deadline, heard_at, stuck = float("inf"), time.monotonic(), ""
    try:
        while time.monotonic() < deadline and (node.placed or not (stop.asked or stuck)):
            stuck = stuck or node.stuck
            if (stop.asked or stuck) and deadline == float("inf"):
                deadline = time.monotonic() + (drain_timeout_s if stop.asked or node.serves else 0.0)
                node.retire()
            watch()
            _step(bus, node)
            heard_at = time.monotonic() if bus.connected or not stop.asked else heard_at
            if time.monotonic() > heard_at + NO_BROKER_S:
                _log.warning("stopping without the broker: nobody can take over what runs here")
                break
    except (TakenOver, BrokerError):
        node.leave()
        raise
    node.leave()
    farewell = node.farewell()
    bus.publish(farewell.topic, farewell.payload, retain=farewell.retain)
    drain(bus)
    bus.close(forget=True)
    return "" if stop.asked else stuck


def _step(bus: Bus, node: Node) -> None:
    """Take what came, and send what is due."""
    for delivery in bus.poll(LOOK_S if node.unsettled else HEARTBEAT_S / 2):
        bus.acknowledge(delivery)
        node.handle(delivery)
    if not bus.connected or bus.unsent > _MAX_UNSENT:
        return  # the workers keep what they were told until the plan can be heard again
    traffic = bus.traffic
    counters = {"sent_bytes": traffic.sent_bytes, "received_bytes": traffic.received_bytes}
    for outgoing in node.tick(time.monotonic(), traffic.reconnects, counters | {"reconnects": traffic.reconnects}):
        bus.publish(outgoing.topic, outgoing.payload, retain=outgoing.retain)
