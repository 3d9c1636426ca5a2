"""One stage on a node: a thread with a bus of its own that fetches its slice, loads it, waits, runs, and leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from har_edge.errors import BrokerError, HarEdgeError, MessageError
from har_edge.inference.load_check import LoadCheck, default_check
from har_edge.mqtt.bus import Bus, Session, SessionLease, TakenOver
from har_edge.mqtt.session_lease import lease_lost
from har_edge.mqtt.transport import FinalRefusal
from har_edge.protocol.deployment import Deployment, Phase, decode_deployment, session_name
from har_edge.protocol.status import StagePhase, StageReport
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import MAX_BYTES, Lacking, fetch, fetch_session
from har_edge.runtime.build import build_setup, delegated, receive_max
from har_edge.runtime.deployment_files import files_of, materialise
from har_edge.runtime.loop import StageLoop, Stop, Totals, drain
from har_edge.runtime.stage.stage import Stage, StageSetup

_log = logging.getLogger(__name__)
# How long nothing may have come to a stage of a generation that drains before it counts as drained.
QUIET_S = 0.5
FETCH_TIMEOUT_S = 30.0
# Beats carry what went wrong, several times a second.
MAX_DETAIL = 400
_BACKOFF_S, _BACKOFF_CAP_S = 1.0, 30.0
# How long a worker that was thrown out lets the plan say so, before it looks whether the stage is still its own.
_GRACE_S = 0.25


class Away(BrokerError):
    """There is no broker now: nothing that would be better on another node."""


class Aim(Enum):
    """What a node wants of a worker: load the slice and wait; run it; leave the session to another; end the session."""

    PREPARE = "prepare"
    HOLD = "hold"
    LEAVE = "leave"
    END = "end"


LEAVING = frozenset({Aim.LEAVE, Aim.END})


@dataclass(frozen=True, slots=True, order=True)
class Post:
    """A place that a worker fills: one replica of a stage in an epoch."""

    epoch: int
    stage: int
    replica: int


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the workers of a node share.

    `max_bytes` is how large a slice may be, since it passes through memory. `loading` lets one be loaded at a time;
    `check` runs it in a process of its own before.
    """

    topics: Topics
    node: str
    connect: Callable[[Session], Bus]
    store: Store
    threads: int = 1
    max_bytes: int = MAX_BYTES
    delegate: str | None = None  # instead of what the plan says
    loading: threading.Lock = field(default_factory=threading.Lock)
    check: LoadCheck = field(default_factory=default_check)


def session_of(equipment: Equipment, deployment: Deployment, post: Post) -> Session:
    """Return the session of a post, taken as soon as the retained plan gives the post to another node, or to none.

    A plan that is older than this deployment does not count: a broker that lost its latest state may retain one.
    """
    topics, config, node = equipment.topics, deployment.config, equipment.node

    def taken(payload: bytes) -> bool:
        try:
            found = decode_deployment(payload)
        except MessageError:
            return False
        return not deployment.replaces(found) and found.holder(post.epoch, post.stage, post.replica) != node

    return Session(
        client_id=session_name(topics.base, topics.pipeline, post.epoch, post.stage, post.replica),
        expiry_s=config.session_expiry_s,
        lease=SessionLease(topics.plan(), taken),
        max_packet_bytes=config.max_payload_bytes + 4096,
    )


class Worker:
    """Fills a post as it is directed, until it is told to leave; failures are reported and tried again after a while.

    Only its own thread touches its bus; `direct`, `report` and `alive` are for the thread that owns the node.
    """

    def __init__(self, equipment: Equipment, post: Post, deployment: Deployment, aim: Aim) -> None:
        self.post, self.aim = post, aim
        self._equipment, self._deployment = equipment, deployment
        # Phase, detail, and what it lacks: one value, so that another thread never sees a part of it.
        self._state: tuple[StagePhase, str, str] = (StagePhase.FETCHING, "", "")
        self._setup: StageSetup | None = None
        self._loop: StageLoop | None = None
        self._stop, self._wake = Stop(), threading.Event()
        self._stop.asked = aim is not Aim.HOLD
        self._orphaned = False  # whether a session may be left that nobody else ends
        self._failures, self._stirred = 0, False
        self._seen: tuple[StageLoop | None, Totals, float] = (None, Totals(0.0), 0.0)
        self._thread = threading.Thread(target=self._run, name=f"stage-{post.stage}.{post.replica}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def direct(self, aim: Aim, deployment: Deployment | None = None) -> None:
        """Say what is wanted from now on, under this deployment; who was told to leave stays so."""
        self._deployment = deployment or self._deployment
        if aim is self.aim or self.aim in LEAVING:
            return
        self._orphaned = aim is Aim.END and self.aim is Aim.HOLD
        self.aim, self._stop.asked = aim, aim is not Aim.HOLD
        self._wake.set()

    def stir(self) -> None:
        """Say that the broker is back: whoever waits after a failure tries again at once."""
        self._stirred = True
        self._wake.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until the worker has ended, at most so long."""
        self._thread.join(timeout_s)

    # --- what the node reads ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> StagePhase:
        """How far the stage is now."""
        return self._phase_at(time.monotonic(), self._state[0])

    def _phase_at(self, now: float, phase: StagePhase) -> StagePhase:
        loop = self._loop
        if phase is not StagePhase.RUNNING or loop is None:
            return phase
        draining = self._deployment.phase(self.post.epoch) is Phase.DRAINING
        working, totals = loop.working, loop.totals  # in this order: what was worked on before is in the totals
        quiet = not working and totals.at_rest and now - totals.heard_at >= QUIET_S
        return StagePhase.DRAINED if draining and quiet else phase

    def report(self, now: float) -> StageReport:
        """Say what the stage does; means and shares are over the time since the last report."""
        loop, post, (phase, detail, lacks) = self._loop, self.post, self._state
        totals = loop.totals if loop is not None else Totals(now)
        before, then = (self._seen[1], self._seen[2]) if self._seen[0] is loop else (Totals(now), now)
        self._seen = loop, totals, now
        windows, handled = totals.windows - before.windows, totals.handled - before.handled
        busy_s, passed_s = totals.busy_s - before.busy_s, now - then
        return StageReport(
            epoch=post.epoch,
            stage=post.stage,
            replica=post.replica,
            phase=self._phase_at(now, phase),
            detail=detail,
            windows=totals.windows,
            lost=totals.lost,
            errors=totals.errors,
            queued=totals.queued,
            waiting=totals.waiting,
            service_s=busy_s / windows if windows else 0.0,
            queue_s=(totals.queued_s - before.queued_s) / handled if handled else 0.0,
            busy=min(1.0, busy_s / passed_s) if passed_s > 0 else 0.0,
            idle_s=max(0.0, now - totals.heard_at),
            lacks=lacks,
        )

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self.aim not in LEAVING:
            aim, self._stirred = self.aim, False
            try:
                self._work()
            except TakenOver:
                _log.info("%s: another process has it now", self._name)
                self._enter(StagePhase.PREPARED, "another process has this stage")
                self._rest(aim, _GRACE_S)
            except Away as error:
                self._fail(aim, str(error), phase=StagePhase.FETCHING if self._setup is None else StagePhase.PREPARED)
            except (HarEdgeError, OSError) as error:
                self._fail(aim, str(error), error.sha256 if isinstance(error, Lacking) else "")
            except Exception as error:  # one stage must not end the others
                _log.exception("%s failed", self._name)
                self._fail(aim, f"{type(error).__name__}: {error}")
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
        while self.aim is Aim.PREPARE:
            self._wake.wait()
            self._wake.clear()
        if self.aim is Aim.HOLD:
            self._hold(self._setup)

    def _prepare(self) -> StageSetup | None:
        """Fetch what is missing, load the slice and run it once; None when told to leave before."""
        equipment, deployment, post = self._equipment, self._deployment, self.post
        generation = deployment.generation(post.epoch)
        if generation is None:
            return None
        wanted = files_of(deployment, generation, (post.stage,))
        missing = [sha256 for sha256 in sorted(wanted) if not equipment.store.has(sha256)]
        if missing:
            self._enter(StagePhase.FETCHING, f"fetching {len(missing)} of {len(wanted)} files")
            bus = self._connect(fetch_session())
            try:
                fetch(
                    bus,
                    equipment.topics,
                    wanted,  # also what is here: it must not go for what comes
                    equipment.store,
                    lambda: self.aim in LEAVING,
                    equipment.max_bytes,
                    FETCH_TIMEOUT_S,
                )
            finally:
                bus.close(forget=True)
        with equipment.loading:
            if self.aim in LEAVING:
                return None
            pipeline = materialise(deployment, generation, equipment.store, (post.stage,))
            return build_setup(
                delegated(pipeline, equipment.delegate),
                post.stage,
                threads=equipment.threads,
                replicas=generation.replicas(post.stage),
                deployed=True,
                check=equipment.check,
            )

    def _hold(self, setup: StageSetup) -> None:
        """Connect as the stage and run it until something else is wanted."""
        session = session_of(self._equipment, self._deployment, self.post)
        # A node that was away for a while may act on a plan that is old by now.
        if session.lease is not None and lease_lost(session.lease, self._connect):
            raise TakenOver(session.client_id)
        bus = self._connect(replace(session, receive_max=receive_max(setup.wiring)))
        try:
            # A stage of its own for each connection: a join would acknowledge what came over another.
            self._loop = StageLoop(bus, Stage(setup, clock=time.time, monotonic=time.monotonic), self._stop)
            while not self._stop.asked:
                self._loop.turn()
                if self._state[0] is not StagePhase.RUNNING and bus.connected:
                    self._enter(StagePhase.RUNNING)
                    self._failures = 0
            drain(bus)
            self._orphaned &= not bus.connected
        finally:
            self._enter(StagePhase.PREPARED)
            self._loop = None
            bus.close(forget=self.aim is Aim.END)

    def _connect(self, session: Session) -> Bus:
        """Connect; raises Away where a later attempt may succeed."""
        try:
            return self._equipment.connect(session)
        except FinalRefusal:
            raise
        except BrokerError as error:
            raise Away(str(error)) from None

    def _sweep(self) -> None:
        """End the session of a stage whose generation is gone, where nobody is connected to end it."""
        session = session_of(self._equipment, self._deployment, self.post)
        try:
            self._equipment.connect(Session(session.client_id, clean_start=True)).close(forget=True)
        except BrokerError as error:
            _log.info("%s: its session stays until it expires: %s", self._name, error)

    @property
    def _name(self) -> str:
        return f"stage {self.post.stage} of epoch {self.post.epoch}"

    def _enter(self, phase: StagePhase, detail: str = "", lacks: str = "") -> None:
        self._state = phase, detail[:MAX_DETAIL], lacks

    def _fail(self, aim: Aim, detail: str, lacks: str = "", phase: StagePhase = StagePhase.FAILED) -> None:
        delay_s = min(_BACKOFF_CAP_S, _BACKOFF_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        _log.warning("%s failed, trying again in %g s: %s", self._name, delay_s, detail)
        self._enter(phase, detail, lacks)
        self._rest(aim, delay_s)

    def _rest(self, aim: Aim, seconds: float) -> None:
        """Wait so long, or until something else is wanted than what failed, or the broker is back."""
        until = time.monotonic() + seconds
        while self.aim is aim and not self._stirred and (left_s := until - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()
        if self._stirred:
            self._failures = 0
