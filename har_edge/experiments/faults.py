"""Faults that are injected into a deployment while data flows, and the time until it has recovered from each."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from har_edge.experiments.cluster import RecordedCluster
from har_edge.experiments.load import Load
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.status import State
from har_edge.protocol.topics import COORDINATOR

RECOVER_S = 60.0
# How long a plan that reacts to a lost node is waited for.
REACT_S = 20.0
# How long a joined node is watched for a plan that gives it something to do, which is up to the coordinator.
JOIN_S = 6.0
# The rest of a round should outlast the recovery from a fault, or the gap is not seen whole.
MARGIN_S = 15.0
CALM_S = 1.0
HANG_S = (3.0, 8.0)
PAUSE_S = (0.5, 3.0)


class FaultKind(Enum):
    """A fault; the value is its name in reports."""

    CRASH = "crash"
    CRASH_COLD = "crash, slice not cached"
    HANG = "hang"
    LEAVE = "leave"
    JOIN = "join"
    COORDINATOR = "coordinator killed"
    BROKER_STOP = "broker restarted"
    BROKER_KILL = "broker killed"
    CUT = "network cut"
    REPLAN = "re-plan, other cuts"


STAGES = "--stages"
# Faults that take several times the margin: two changes of cuts, each by a coordinator that first looks around.
LONG = {FaultKind.REPLAN: 3}
REMOVES = frozenset({FaultKind.CRASH, FaultKind.CRASH_COLD, FaultKind.LEAVE})
STOPS = frozenset({FaultKind.HANG, FaultKind.CUT})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault: `noticed_s` until the plan that reacts (None where none had to), `gap_s` without results beyond usual.

    `resent` windows were sent again by sensors, `repeated` results came again and were dropped by the sink.
    """

    kind: FaultKind
    detail: str
    noticed_s: float | None
    gap_s: float
    resent: int
    repeated: int


@dataclass(slots=True)
class FaultInjector:
    """Injects one fault after the other into a cluster under load, leaves at least one node, and repairs the damage.

    `coordinator` is the command to start it again with, `--stages` in it; `margin_s` is what must be left of a round of
    the load, `hang_s` for how long a node is stopped or cut off, `join_s` for how long one that joined is watched.
    """

    cluster: RecordedCluster
    load: Load
    nodes: Sequence[str]
    coordinator: Sequence[str]
    rng: random.Random
    margin_s: float = MARGIN_S
    hang_s: tuple[float, float] = HANG_S
    join_s: float = JOIN_S
    outcomes: list[Outcome] = field(default_factory=list)
    _tried: list[FaultKind] = field(default_factory=list)

    def choose(self, kinds: Collection[FaultKind]) -> FaultKind:
        """Return one of these faults that may happen now and was tried least; a join where none may."""
        done, up = Counter(self._tried), len(self.cluster.processes.alive(self.nodes))
        possible = [
            kind
            for kind in kinds
            if not (kind is FaultKind.CUT and self.cluster.environment.disconnect is None)
            and not (kind is FaultKind.JOIN and up == len(self.nodes))
            and not (kind in REMOVES and up <= 2)
        ]
        if not possible:
            possible = [FaultKind.JOIN]  # none of them may happen again before a node is back
        least = min(done[kind] for kind in possible)
        return self.rng.choice([kind for kind in possible if done[kind] == least])

    def run(self, kind: FaultKind, victim: str | None = None) -> Outcome:
        """Wait until all is well, do it, wait until all is well again; raises NodeError when that takes too long."""
        self._tried.append(kind)
        self.await_calm(self.margin_s * LONG.get(kind, 1))
        recorder, before = self.cluster.recorder, self._deployment()
        victim = victim or self._choose_victim(kind)
        self._prepare_caches(kind, victim)
        cached = self._cached(before)
        resent, repeated = recorder.sum_of("resent", "sensor"), recorder.repeated
        began, began_at = time.monotonic(), time.time()
        do, undo = _ACTIONS[kind]
        detail = do(self, victim)
        noticed = self._notice(kind, victim, before, began)
        if kind in STOPS or kind is FaultKind.COORDINATOR:  # the others go on before it is mended
            self._await_results(began_at)
        undo(self, victim)
        self._await_results(time.time())
        self.await_calm(0.0)
        pauses = [recorder.longest_pause(stream, began, time.monotonic()) for stream in self.load.streams]
        if kind in (FaultKind.CRASH, FaultKind.CRASH_COLD):
            kind = FaultKind.CRASH_COLD if self._was_cold(before, victim, cached) else FaultKind.CRASH
        self.outcomes.append(
            Outcome(
                kind=kind,
                detail=detail,
                noticed_s=noticed,
                gap_s=max(0.0, max(pauses) - self.load.spacing_s),
                resent=recorder.sum_of("resent", "sensor") - resent,
                repeated=recorder.repeated - repeated,
            )
        )
        return self.outcomes[-1]

    def await_calm(self, margin_s: float) -> None:
        """Wait until one generation runs whole and no plan has changed for a while; with a margin, under load."""
        since, revision = time.monotonic(), 0

        def is_calm() -> bool:
            nonlocal since, revision
            now = time.monotonic()
            flows = self.load.left_s > margin_s and self.load.is_flowing() if margin_s else True
            deployment = self.cluster.recorder.deployment
            settled = deployment is not None and deployment.revision == revision and self.cluster.recorder.is_settled()
            if not flows or not settled:
                since, revision = now, deployment.revision if deployment is not None else 0
            return now - since > CALM_S

        self.cluster.until(is_calm, "the pipeline has not settled", 2 * RECOVER_S)

    def _await_results(self, captured: float) -> None:
        """Wait until every stream had a result of a window captured later than this, or a new round began."""
        recorder = self.cluster.recorder
        self.cluster.until(
            lambda: all(recorder.answers_after(stream, captured) for stream in self.load.streams),
            "no results",
            RECOVER_S,
        )

    def _deployment(self) -> Deployment:
        deployment = self.cluster.recorder.deployment
        assert deployment is not None, "calm means that there is one"
        return deployment

    def _choose_victim(self, kind: FaultKind) -> str:
        up = self.cluster.processes.alive(self.nodes)
        if kind is FaultKind.JOIN:
            return self.rng.choice([name for name in self.nodes if name not in up])
        busy = [name for name in up if _slices(self._deployment(), name)]
        return self.rng.choice(busy or up)

    def _notice(self, kind: FaultKind, victim: str, before: Deployment, began: float) -> float | None:
        """Wait for the plan that reacts; return how long it took, None where there is nothing to react to."""
        held = bool(_slices(before, victim))
        if kind is not FaultKind.JOIN and (kind not in REMOVES | STOPS or not held):
            return None

        def reaction() -> float | None:
            plans = (seen for seen in self.cluster.recorder.plans if seen.at > began)
            return next((s.at for s in plans if bool(_slices(s.deployment, victim)) == (kind is FaultKind.JOIN)), None)

        if kind is FaultKind.JOIN:
            self.cluster.run_for(self.join_s)
        else:
            self.cluster.until(reaction, f"no plan reacts to {kind.value} of {victim}", REACT_S)
        at = reaction()
        return None if at is None else at - began

    def _cached(self, deployment: Deployment) -> set[tuple[str, str]]:
        slices = [entry for one in deployment.generations for entry in one.manifest.slices]
        hashes = {sha256 for entry in slices for sha256 in entry.files.values()}
        return {(node, each) for node in self.nodes for each in hashes if self.cluster.has_cached(node, each)}

    def _prepare_caches(self, kind: FaultKind, victim: str) -> None:
        """Before a crash, put the slices of a node into the caches of all others, or remove them from there."""
        for sha256 in _slices(self._deployment(), victim):
            for node in self.nodes:
                if kind is FaultKind.CRASH_COLD and node != victim:
                    self.cluster.remove_cached(node, sha256)
                elif kind is FaultKind.CRASH and node != victim:
                    self.cluster.copy_cached(node, sha256, victim)

    def _was_cold(self, before: Deployment, victim: str, cached: set[tuple[str, str]]) -> bool:
        """Return whether a slice of the victim went to a node that had to fetch it."""
        lost = _slices(before, victim)
        after = self._deployment()
        return any((node, sha256) not in cached for node in self.nodes for sha256 in lost & _slices(after, node))

    # The actions, and what repairs each.

    def _kill(self, victim: str) -> str:
        self.cluster.kill(victim)
        return victim

    def _stop(self, victim: str) -> str:
        self.cluster.processes.running[victim].send_signal(signal.SIGSTOP)
        return victim

    def _continue(self, victim: str) -> None:
        self.cluster.run_for(self.rng.uniform(*self.hang_s))
        self.cluster.processes.running[victim].send_signal(signal.SIGCONT)
        self._await_alive(victim)

    def _leave(self, victim: str) -> str:
        self.cluster.kill(victim, signal.SIGTERM)
        return f"{victim}, exit code {self.cluster.processes.running[victim].process.returncode}"

    def _join(self, victim: str) -> str:
        self.cluster.start_node(victim)
        self._await_alive(victim)
        return victim

    def _kill_coordinator(self, _: str) -> str:
        self.cluster.kill(COORDINATOR)
        return ""

    def _start_coordinator(self, _: str) -> None:
        self.cluster.run_for(self.rng.uniform(*PAUSE_S))
        self.cluster.start(*self.coordinator, name=COORDINATOR)
        self._await_alive(COORDINATOR)

    def _cut_anew(self, _: str) -> str:
        """Let a coordinator that was told another number of stages take over."""
        count = len(_slices_of(self._deployment()))
        self._ask_for(count - 1 if count > 1 else count + 1)
        return f"{count} stages, {len(_slices_of(self._deployment()))}, and {count} again"

    def _cut_as_before(self, _: str) -> None:
        self._ask_for(int(self.coordinator[self.coordinator.index(STAGES) + 1]))

    def _ask_for(self, count: int) -> None:
        """Start the coordinator again with so many stages, and wait until sensors send to them."""
        place = self.coordinator.index(STAGES) + 1
        self.cluster.kill(COORDINATOR, signal.SIGTERM)
        self.cluster.start(*self.coordinator[:place], str(count), *self.coordinator[place + 1 :], name=COORDINATOR)
        self.cluster.until(
            lambda: len(_slices_of(self._deployment())) == count and self.cluster.recorder.is_settled(),
            f"the model is not cut into {count} stages",
            RECOVER_S,
        )

    def _stop_broker(self, _: str) -> str:
        self.cluster.environment.broker.stop()
        return self._pause()

    def _kill_broker(self, _: str) -> str:
        saved = self.cluster.environment.broker.saved_s_ago
        self.cluster.environment.broker.stop(signal.SIGKILL)
        return f"{self._pause()}, " + ("no database" if saved is None else f"database saved {saved:.0f} s before")

    def _pause(self) -> str:
        """Let everybody be without the broker for a while; say how long."""
        began = time.monotonic()
        self.cluster.run_for(self.rng.uniform(*PAUSE_S))
        return f"away for {time.monotonic() - began:.1f} s"

    def _start_broker(self, _: str) -> None:
        self.cluster.environment.broker.start()

    def _disconnect(self, victim: str) -> str:
        assert self.cluster.environment.disconnect is not None
        self.cluster.environment.disconnect(victim)
        return victim

    def _reconnect(self, victim: str) -> None:
        assert self.cluster.environment.reconnect is not None
        self.cluster.run_for(self.rng.uniform(*self.hang_s))
        self.cluster.environment.reconnect(victim)
        self._await_alive(victim)

    def _nothing(self, _: str) -> None:
        """Leave it as it is: a node that is down joins later."""

    def _await_alive(self, name: str) -> None:
        """Wait until a process has said, later than now, that it is up."""
        recorder, at = self.cluster.recorder, time.time()
        up = (State.READY, State.BUSY)
        self.cluster.until(
            lambda: recorder.state(name) in up and (name == COORDINATOR or recorder.heard.get(name, 0.0) > at),
            f"{name} does not come up",
            RECOVER_S,
        )


def _slices_of(deployment: Deployment) -> tuple[str, ...]:
    """Return the hashes of the current generation, stage by stage."""
    return tuple(entry.sha256 for entry in deployment.current.manifest.slices) if deployment.current else ()


def _slices(deployment: Deployment, node: str) -> frozenset[str]:
    """Return the hashes of what a node runs in the current generation."""
    generation = deployment.current
    if generation is None:
        return frozenset()
    return frozenset(generation.manifest.slices[one.stage].sha256 for one in generation.of(node))


_ACTIONS: dict[FaultKind, tuple[Callable[[FaultInjector, str], str], Callable[[FaultInjector, str], None]]] = {
    FaultKind.CRASH: (FaultInjector._kill, FaultInjector._nothing),
    FaultKind.CRASH_COLD: (FaultInjector._kill, FaultInjector._nothing),
    FaultKind.HANG: (FaultInjector._stop, FaultInjector._continue),
    FaultKind.LEAVE: (FaultInjector._leave, FaultInjector._nothing),
    FaultKind.JOIN: (FaultInjector._join, FaultInjector._nothing),
    FaultKind.COORDINATOR: (FaultInjector._kill_coordinator, FaultInjector._start_coordinator),
    FaultKind.BROKER_STOP: (FaultInjector._stop_broker, FaultInjector._start_broker),
    FaultKind.BROKER_KILL: (FaultInjector._kill_broker, FaultInjector._start_broker),
    FaultKind.CUT: (FaultInjector._disconnect, FaultInjector._reconnect),
    FaultKind.REPLAN: (FaultInjector._cut_anew, FaultInjector._cut_as_before),
}
