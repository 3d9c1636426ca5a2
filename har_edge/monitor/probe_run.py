"""Trying a deployment out: a probe window goes through it, or else where it got stuck."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from har_edge.config.pipeline import Pipeline
from har_edge.errors import HarEdgeError
from har_edge.inference.codecs import MAX_FILE_BYTES
from har_edge.monitor.observer import Observer, is_running
from har_edge.monitor.snapshot import ProbeView
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session
from har_edge.protocol.deployment import Deployment, Generation
from har_edge.protocol.events import ResultsEvent, decode
from har_edge.protocol.status import StagePhase, StageReport
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import PROBE, Topics, is_id
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import fetch, fetch_session
from har_edge.runtime.deployment_files import files_of, materialise
from har_edge.runtime.probe import probe

Connect = Callable[[Session], Bus]
Key = tuple[str, int, int, int]
MOST_SWITCHES = 3
HINT = "a user that may not read slices needs --no-probe"
NO_PLAN = "there is no plan: start `har-edge coordinator`"


@dataclass(slots=True)
class _Sent:
    """A probe under way: when it left, what every stage had handled by then, what became of its messages.

    `left` is how often another may follow it, when sensors switch to another generation meanwhile.
    """

    stream: str
    epoch: int
    at: float
    windows: dict[Key, int]
    left: int
    outcomes: dict[str, PublishOutcome] = field(default_factory=dict)


class ProbeRun:
    """Sends probes, one at a time, on a bus that is subscribed to results; `view` is how the last one fared.

    The files that sensors need come from the broker into `store` first, over a connection of their own.
    """

    def __init__(
        self, bus: Bus, topics: Topics, observer: Observer, store: Store, connect: Connect, timeout_s: float
    ) -> None:
        self._bus, self._topics, self._observer, self._store = bus, topics, observer, store
        self._connect, self._timeout_s = connect, timeout_s
        self._sent: _Sent | None = None
        self._laid_out: tuple[tuple[int, frozenset[str]], Pipeline] | None = None
        self.view: ProbeView | None = None

    @property
    def under_way(self) -> bool:
        return self._sent is not None

    def send(self, now: float, wall: float, left: int = MOST_SWITCHES) -> None:
        """Send a probe to the current generation; `view` says at once what stands in the way, if something does."""
        deployment = self._observer.deployment
        current = deployment.current if deployment else None
        if deployment is None or current is None:
            self.view = ProbeView(False, None, 0, self._not_yet(deployment, now))
            return
        stream = f"{PROBE}{secrets.token_hex(6)}"
        try:
            outgoing = probe(self._pipeline(deployment, current), current.epoch, stream, wall)
        except HarEdgeError as error:
            self.view = ProbeView(
                False, None, current.epoch, f"no probe could be made: {printable(str(error))}; {HINT}"
            )
            return
        before = {key: report.windows for key, report in self._observer.reports().items()}
        sent = self._sent = _Sent(stream, current.epoch, now, before, left)
        for one in outgoing:
            self._bus.publish(one.topic, one.payload, on_outcome=partial(sent.outcomes.__setitem__, one.topic))

    def handle(self, delivery: Delivery, now: float) -> None:
        """Take a message; the answer to the probe ends it."""
        sent = self._sent
        if sent is None or delivery.topic != self._topics.result(sent.stream):
            return
        if answers(delivery, sent.stream):
            self.view, self._sent = ProbeView(True, now - sent.at, sent.epoch, ""), None

    def tick(self, now: float, wall: float) -> None:
        """Give the probe up when it has taken too long; send another when sensors switch to another generation."""
        sent, deployment = self._sent, self._observer.deployment
        if sent is None:
            return
        moved = deployment is None or deployment.generation(sent.epoch) is None
        if deployment is not None and deployment.epoch != sent.epoch and sent.left:
            self._sent = None
            self.send(now, wall, sent.left - 1)
        elif moved or now > sent.at + self._timeout_s or PublishOutcome.REFUSED in sent.outcomes.values():
            where = "its epoch has gone from the plan" if moved else self._where(sent, now)
            self.view, self._sent = ProbeView(False, None, sent.epoch, where), None

    def _pipeline(self, deployment: Deployment, current: Generation) -> Pipeline:
        """Return the pipeline of a generation as a sensor lays it out; fetch what it lacks."""
        needed = files_of(deployment, None)
        if self._laid_out is None or self._laid_out[0] != (current.epoch, needed):
            if not all(map(self._store.has, needed)):
                bus = self._connect(fetch_session())
                try:
                    fetch(bus, self._topics, needed, self._store, lambda: False, MAX_FILE_BYTES, self._timeout_s)
                finally:
                    bus.close(forget=True)
            self._laid_out = (current.epoch, needed), materialise(deployment, current, self._store, ())
        return self._laid_out[1]

    def _not_yet(self, deployment: Deployment | None, now: float) -> str:
        """Say why there is no generation to send to."""
        if deployment is None:
            return self._observer.plan_problem or no_plan(self._observer, now)
        if not deployment.generations:
            return "the plan is empty: start nodes, `har-edge node`"
        newest = max(deployment.generations, key=lambda one: one.epoch)
        idle = stalled(self._observer, newest, now)
        return f"epoch {newest.epoch} gets ready: {idle or 'the coordinator tries it out'}"

    def _where(self, sent: _Sent, now: float) -> str:
        """Say how far a probe came, from what the broker and the heartbeats of the stages say."""
        refused = [topic for topic, outcome in sent.outcomes.items() if outcome is PublishOutcome.REFUSED]
        if refused:
            return (
                f"the broker refuses this user the topic {refused[0]}: use one that may publish windows, or --no-probe"
            )
        unheard = [topic for topic, outcome in sent.outcomes.items() if outcome is PublishOutcome.NO_SUBSCRIBERS]
        deployment = self._observer.deployment
        generation = deployment.generation(sent.epoch) if deployment else None
        assert generation is not None
        idle = stalled(self._observer, generation, now)
        if idle:
            return idle
        if unheard:
            return f"no stage listens to {unheard[0]}"
        return last_seen(generation, sent.windows, self._observer.reports())


def answers(delivery: Delivery, stream: str) -> bool:
    """Return whether a message holds a result of this stream."""
    event = decode(delivery)
    return isinstance(event, ResultsEvent) and any(result.stream == stream for result in event.results)


def no_plan(observer: Observer, now: float) -> str:
    """Say that there is no plan, and what the coordinator says of that, if there is one."""
    for name, status in observer.statuses().items():
        if status.role == "coordinator" and observer.is_alive(name, now):
            return f"there is no plan; the coordinator says: {printable(status.detail) or 'nothing'}"
    return fixed_here(observer, now) or NO_PLAN


def obstacle(observer: Observer, now: float) -> str:
    """Say what, of all that can be seen without a probe, keeps windows from going through; empty for nothing."""
    deployment = observer.deployment
    if observer.plan_problem or deployment is None:
        return observer.plan_problem or no_plan(observer, now)
    if deployment.current is None:
        return f"revision {deployment.revision} of the plan has no epoch yet that answers"
    return stalled(observer, deployment.current, now)


def fixed_here(observer: Observer, now: float) -> str:
    """Say that stages of a fixed folder live under this name, and no coordinator; empty where that is not so."""
    alive = [(name, status) for name, status in observer.statuses().items() if observer.is_alive(name, now)]
    stages = [name for name, status in alive if status.role == "stage" and is_id(name)]
    if not stages or any(status.role == "coordinator" for _, status in alive):
        return ""
    return f"stages of a fixed folder live here ({listed(sorted(stages))}): say --config FOLDER"


def stalled(observer: Observer, generation: Generation, now: float) -> str:
    """Say which stage of a generation does not run, and why; empty when all do."""
    reports = observer.reports()
    for placement in sorted(generation.placements, key=lambda one: one.key):
        what = f"stage {placement.stage} on {placement.node}"
        report = reports.get((placement.node, generation.epoch, *placement.key))
        if not observer.is_alive(placement.node, now):
            return f"{what}: that node does not answer"
        if report is None:
            return f"{what}: the node does not speak of it"
        if not is_running(report):
            said, failed = printable(report.detail), report.phase is StagePhase.FAILED
            return f"{what} {'has' if failed else 'is'} {report.phase.value}{': ' if said else ''}{said}"
    return ""


def last_seen(generation: Generation, before: dict[Key, int], reports: Mapping[Key, StageReport]) -> str:
    """Say which stage handled a window last since `before`, and what the next one says."""
    told: list[tuple[str, bool, StageReport]] = []
    for placement in sorted(generation.placements, key=lambda one: one.key):
        key = (placement.node, generation.epoch, *placement.key)
        report = reports.get(key)
        if report is not None:
            told.append((f"stage {placement.stage} on {placement.node}", report.windows > before.get(key, 0), report))
    moved = [what for what, handled, _ in told if handled]
    stuck = next(((what, report) for what, handled, report in told if not handled), None)
    if stuck is None:
        return f"{moved[-1]} handled windows, but no answer came: see whether it may publish results"
    what, report = stuck
    waits = f"{report.queued} messages in its queue, {report.waiting} windows wait for parts, {report.errors} errors"
    first = f"{moved[-1]} was the last to handle a window" if moved else "no stage handled a window"
    return f"{first}; {what} handled none since: {waits}"
