"""One stage on a node: a thread with a bus of its own that fetches its slice, loads it, waits, runs, and leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from har_edge.config.message_sizes import sends_bytes
from har_edge.config.pipeline_config import LEAST_PAYLOAD_LIMIT, PACKET_BYTES, payload_limit
from har_edge.errors import BrokerError, HarEdgeError
from har_edge.inference.load_check import LoadCheck, default_check
from har_edge.mqtt.bus import PollableBus, Session, TakenOver
from har_edge.mqtt.clients.session_lease import lease_lost
from har_edge.mqtt.clients.transport import FinalRefusal
from har_edge.mqtt.link import link_opener
from har_edge.mqtt.routed import RoutedBus
from har_edge.protocol.artifacts import MAX_BYTES
from har_edge.protocol.deployment import Deployment, Phase, session_name
from har_edge.protocol.flow_routes import FlowRoutes, flow_routes
from har_edge.protocol.leases import placement_lease
from har_edge.protocol.status import DETAIL, StagePhase, StageReport
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import ArtifactUnavailable, fetch, fetch_session
from har_edge.runtime.build import build_setup, delegated, receive_max
from har_edge.runtime.deployment_files import files_of, materialise
from har_edge.runtime.node.run_watchdog import RunWatchdog
from har_edge.runtime.sender import drain
from har_edge.runtime.stage.loop import StageLoop, StageMetrics
from har_edge.runtime.stage.setup import StageSetup
from har_edge.runtime.stage.shard import make_stage
from har_edge.runtime.stop import Stop
from har_edge.timing import HEARTBEAT_S, WORKER_GRACE_S

_log = logging.getLogger(__name__)
# How long nothing may have come to a stage of a generation that drains before it counts as drained.
QUIET_S = 0.5
FETCH_TIMEOUT_S = 30.0
# Beats carry what went wrong, several times a second.
MAX_DETAIL = 400
_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 30.0
# How long a connected worker may take to leave: a connection that is being made, and the last bytes of one that closes.
LEAVING_S = 20.0


class BrokerUnavailable(BrokerError):
    """There is no broker now: nothing that would be better on another node."""


class DesiredState(Enum):
    """The state that a node asks of a worker: load the slice and wait; run it; leave the session to another; end the
    session.
    """

    PREPARE = "prepare"
    HOLD = "hold"
    LEAVE = "leave"
    END = "end"


LEAVING = frozenset({DesiredState.LEAVE, DesiredState.END})


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """The identity of a worker: one replica of a stage in a generation."""

    epoch: int
    stage: int
    replica: int


def no_way(url: str, _: Session) -> PollableBus:
    """Refuse to connect to the broker of a node."""
    raise BrokerError(f"this process knows no way to brokers of nodes, and the plan names {url}")


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The objects that all workers of a node share.

    `max_bytes` bounds the size of a slice, since it passes through memory. `loading` lets one worker load at a time;
    `check` runs a slice in a process of its own first. `connect` leads to the central broker, `connect_to` to the
    broker of a node, by the address that the plan gives. With `sandbox`, slices run in processes without rights.
    """

    topics: Topics
    node: str
    connect: Callable[[Session], PollableBus]
    store: Store
    threads: int = 1
    max_bytes: int = MAX_BYTES
    delegate: str | None = None  # instead of what the plan says
    loading: threading.Lock = field(default_factory=threading.Lock)
    check: LoadCheck = field(default_factory=default_check)
    connect_to: Callable[[str, Session], PollableBus] = no_way
    trusts: Callable[[bytes], bool] = lambda _: True  # whether these bytes are a plan that was verified
    sandbox: bool = False


def session_of(context: WorkerContext, deployment: Deployment, replica_id: ReplicaId) -> Session:
    """Return the session of a replica, taken as soon as the retained plan gives that to another node, or to none."""
    topics, config = context.topics, deployment.config
    key, generation = (replica_id.epoch, replica_id.stage, replica_id.replica), deployment.generation(replica_id.epoch)
    limit = LEAST_PAYLOAD_LIMIT if generation is None else payload_limit(config, generation.manifest)
    return Session(
        client_id=session_name(topics.base, topics.pipeline, *key),
        expiry_s=config.session_expiry_s,
        lease=placement_lease(topics, deployment, key, context.node, context.trusts),
        max_packet_bytes=limit + PACKET_BYTES,
    )


class Worker:
    """Runs a replica as it is directed, until it is told to leave; failures are reported and tried again after a while.

    Only its own thread touches its bus; `direct`, `report` and `alive` are for the thread that owns the node.
    """

    def __init__(
        self, context: WorkerContext, replica_id: ReplicaId, deployment: Deployment, desired: DesiredState
    ) -> None:
        self.replica_id, self.desired = replica_id, desired
        self._context, self._deployment = context, deployment
        # Phase, detail, and what it lacks: one value, so that another thread never sees a part of it.
        self._state: tuple[StagePhase, str, str] = (StagePhase.FETCHING, "", "")
        self._setup: StageSetup | None = None
        self._loop: StageLoop | None = None
        self._stop, self._wake = Stop(), threading.Event()
        self._stop.asked = desired is not DesiredState.HOLD
        self._orphaned = False  # whether a session may be left that nobody else ends
        self._failures, self._retry = 0, False
        self._routed: tuple[int, tuple[str, ...]] = (0, ())  # as the report says them, in one value
        self._seen: tuple[StageLoop | None, StageMetrics, float] = (None, StageMetrics(0.0), 0.0)
        self._refused: dict[int, int] = {}
        self._watchdog, self._watched_at, self._leaving_s = RunWatchdog(), 0.0, 0.0
        name = f"stage-{replica_id.stage}.{replica_id.replica}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def direct(self, desired: DesiredState, deployment: Deployment | None = None) -> None:
        """Say what is wanted from now on, under this deployment; who was told to leave stays so."""
        self._deployment = deployment or self._deployment
        if desired is self.desired or self.desired in LEAVING:
            return
        self._orphaned = desired is DesiredState.END and self.desired is DesiredState.HOLD
        self.desired, self._stop.asked = desired, desired is not DesiredState.HOLD
        self._wake.set()

    def retry_now(self) -> None:
        """Say that the broker is back: whoever waits after a failure tries again at once."""
        self._retry = True
        self._wake.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until the worker has ended, at most so long."""
        self._thread.join(timeout_s)

    def watch(self, now: float) -> None:
        """Look whether its thread still works; call it often."""
        loop, passed_s = self._loop, min(HEARTBEAT_S, now - self._watched_at)
        self._watched_at = now
        leaves = self.desired in LEAVING and loop is not None
        self._leaving_s = self._leaving_s + passed_s if leaves else 0.0
        generation, stage = self._deployment.generation(self.replica_id.epoch), self.replica_id.stage
        predicted = generation.predicted_s if generation is not None else ()
        self._watchdog.predicted_s = predicted[stage] if stage < len(predicted) else 0.0
        if loop is None:
            self._watchdog.look(0.0, 0.0, 1, now)
            return
        metrics = loop.metrics
        usual_s = metrics.busy_s / metrics.windows if metrics.windows else 0.0
        self._watchdog.look(loop.called_at, usual_s, loop.stage.batch, now)

    @property
    def unending(self) -> bool:
        """Whether its thread will not end, whatever it is told."""
        return self._watchdog.unending or self._leaving_s > LEAVING_S

    # --- what the node reads ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> StagePhase:
        """How far the stage is now."""
        return self._phase_at(time.monotonic(), self._state[0])

    def _phase_at(self, now: float, phase: StagePhase) -> StagePhase:
        loop = self._loop
        if self._watchdog.stuck:
            return StagePhase.FAILED
        if phase is not StagePhase.RUNNING or loop is None:
            return phase
        draining = self._deployment.phase(self.replica_id.epoch) is Phase.DRAINING
        working, metrics = loop.working, loop.metrics  # in this order: what was worked on before is in the totals
        quiet = not working and metrics.at_rest and now - metrics.heard_at >= QUIET_S
        return StagePhase.DRAINED if draining and quiet else phase

    def report(self, now: float) -> StageReport:
        """Say what the stage does; means and shares are over the time since the last report."""
        loop, replica_id, (phase, detail, lacks) = self._loop, self.replica_id, self._state
        metrics = loop.metrics if loop is not None else StageMetrics(now)
        before, then = (self._seen[1], self._seen[2]) if self._seen[0] is loop else (StageMetrics(now), now)
        self._seen = loop, metrics, now
        windows, handled = metrics.windows - before.windows, metrics.handled - before.handled
        busy_s, passed_s = metrics.busy_s - before.busy_s, now - then
        refused, known = dict(loop.stage.refused) if loop is not None else {}, self._refused
        self._refused = refused
        if self._watchdog.stuck:
            detail = f"a run of its slice has gone on for {self._watchdog.run_s:.1f} s"
        return StageReport(
            epoch=replica_id.epoch,
            stage=replica_id.stage,
            replica=replica_id.replica,
            phase=self._phase_at(now, phase),
            detail=detail[:DETAIL],
            windows=metrics.windows,
            lost=metrics.lost,
            errors=metrics.errors,
            queued=metrics.queued,
            waiting=metrics.waiting,
            service_s=busy_s / windows if windows else 0.0,
            queue_s=(metrics.queued_s - before.queued_s) / handled if handled else 0.0,
            busy=min(1.0, busy_s / passed_s) if passed_s > 0 else 0.0,
            idle_s=max(0.0, now - metrics.heard_at),
            lacks=lacks,
            routed=self._routed[0],
            unreachable=self._routed[1],
            refuses=tuple(sorted(stage for stage, count in refused.items() if count != known.get(stage, 0))),
            running_s=self._watchdog.run_s,
        )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self.desired not in LEAVING:
            desired, self._retry = self.desired, False
            try:
                self._work()
            except TakenOver:
                _log.info("%s: another process has it now", self._name)
                self._enter(StagePhase.PREPARED, "another process has this stage")
                self._rest(desired, WORKER_GRACE_S)
            except BrokerUnavailable as error:
                self._fail(
                    desired, str(error), phase=StagePhase.FETCHING if self._setup is None else StagePhase.PREPARED
                )
            except (HarEdgeError, OSError) as error:
                self._fail(desired, str(error), error.sha256 if isinstance(error, ArtifactUnavailable) else "")
            except Exception as error:  # one stage must not end the others
                _log.exception("%s failed", self._name)
                self._fail(desired, f"{type(error).__name__}: {error}")
        if self._orphaned:
            self._sweep()

    def _work(self) -> None:
        """Load the slice unless it is loaded, wait until the stage is to run here, and run it."""
        if self._setup is None:
            self._enter(StagePhase.FETCHING)
            self._setup = self._prepare()
        if self._setup is None:
            return
        self._enter(StagePhase.PREPARED)
        while self.desired is DesiredState.PREPARE:
            self._wake.wait()
            self._wake.clear()
        if self.desired is DesiredState.HOLD:
            self._hold(self._setup)

    def _prepare(self) -> StageSetup | None:
        """Fetch what is missing, load the slice and run it once; None when told to leave before."""
        context, deployment, replica_id = self._context, self._deployment, self.replica_id
        generation = deployment.generation(replica_id.epoch)
        if generation is None:
            return None
        wanted = files_of(deployment, generation, (replica_id.stage,))
        missing = [sha256 for sha256 in sorted(wanted) if not context.store.has(sha256)]
        if missing:
            self._enter(StagePhase.FETCHING, f"fetching {len(missing)} of {len(wanted)} files")
            bus = self._connect(fetch_session())
            try:
                fetch(
                    bus,
                    context.topics,
                    wanted,  # also what is here: it must not go for what comes
                    context.store,
                    lambda: self.desired in LEAVING,
                    context.max_bytes,
                    FETCH_TIMEOUT_S,
                )
            finally:
                bus.close(forget=True)
        with context.loading:
            if self.desired in LEAVING:
                return None
            pipeline = materialise(deployment, generation, context.store, (replica_id.stage,))
            return build_setup(
                delegated(pipeline, context.delegate),
                replica_id.stage,
                threads=context.threads,
                replicas=generation.replicas(replica_id.stage),
                deployed=True,
                check=context.check,
                sandbox=context.sandbox,
            )

    def _hold(self, setup: StageSetup) -> None:
        """Connect as the stage and run it until something else is wanted."""
        session = session_of(self._context, self._deployment, self.replica_id)
        # A node that was away for a while may act on a plan that is old by now.
        if session.lease is not None and lease_lost(session.lease, self._connect):
            raise TakenOver(session.client_id)
        wiring, deployment = setup.wiring, self._deployment
        sends = sends_bytes(wiring.entry, wiring.sends)
        session = replace(session, receive_max=receive_max(wiring), sends_bytes=sends)
        opener = link_opener(session, self._context.connect, self._context.connect_to)
        bus = RoutedBus(self._connect(session), opener, self._routes(deployment, setup, FlowRoutes()))
        try:
            # A stage of its own for each connection: a join would acknowledge what came over another.
            self._loop = StageLoop(bus, make_stage(setup, clock=time.time, monotonic=time.monotonic), self._stop)
            while not self._stop.asked:
                if self._deployment is not deployment:
                    deployment = self._deployment
                    self._reroute(bus, self._routes(deployment, setup, bus.routes))
                self._loop.turn()
                self._note_routes(bus, deployment)
                if self._state[0] is not StagePhase.RUNNING and bus.connected:
                    self._enter(StagePhase.RUNNING)
                    self._failures = 0
            drain(bus)
            self._orphaned &= not bus.connected
        finally:
            self._enter(StagePhase.PREPARED)
            self._loop, self._routed = None, (0, ())
            bus.close(forget=self.desired is DesiredState.END)

    def _routes(self, deployment: Deployment, setup: StageSetup, before: FlowRoutes) -> FlowRoutes:
        """Return the routes of the stage; those of before where its generation has gone."""
        generation = deployment.generation(self.replica_id.epoch)
        return before if generation is None else flow_routes(self._context.topics, generation, setup.wiring)

    def _reroute(self, bus: RoutedBus[FlowRoutes], routes: FlowRoutes) -> None:
        if routes != bus.routes:
            bus.reroute(routes)

    def _note_routes(self, bus: RoutedBus[FlowRoutes], deployment: Deployment) -> None:
        """Keep for the report how far the connections follow the plan."""
        generation, (routed, _) = deployment.generation(self.replica_id.epoch), self._routed
        names = {url: node for node, url in generation.brokers.items()} if generation else {}
        unreachable = tuple(sorted({names[one] for one in bus.unreachable if one in names}))
        self._routed = (deployment.revision if bus.connected else routed, unreachable)

    def _connect(self, session: Session) -> PollableBus:
        """Connect; raises BrokerUnavailable where a later attempt may succeed."""
        try:
            return self._context.connect(session)
        except FinalRefusal:
            raise
        except BrokerError as error:
            raise BrokerUnavailable(str(error)) from None

    def _sweep(self) -> None:
        """End the session of a stage whose generation is gone, where nobody is connected to end it.

        The coordinator ends those at brokers of nodes.
        """
        session = session_of(self._context, self._deployment, self.replica_id)
        try:
            self._context.connect(Session(session.client_id, clean_start=True)).close(forget=True)
        except BrokerError as error:
            _log.info("%s: its session stays until it expires: %s", self._name, error)

    @property
    def _name(self) -> str:
        return f"stage {self.replica_id.stage} of epoch {self.replica_id.epoch}"

    def _enter(self, phase: StagePhase, detail: str = "", lacks: str = "") -> None:
        self._state = phase, detail[:MAX_DETAIL], lacks

    def _fail(self, desired: DesiredState, detail: str, lacks: str = "", phase: StagePhase = StagePhase.FAILED) -> None:
        delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        _log.warning("%s failed, trying again in %g s: %s", self._name, delay_s, detail)
        self._enter(phase, detail, lacks)
        self._rest(desired, delay_s)

    def _rest(self, desired: DesiredState, seconds: float) -> None:
        """Wait so long, or until something else is wanted than what failed, or the broker is back."""
        until = time.monotonic() + seconds
        while self.desired is desired and not self._retry and (left_s := until - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()
        if self._retry:
            self._failures = 0
