"""The figures of a deployment: messages go in, a snapshot comes out. It reads no clock.

protocol/events.py bounds what comes over the network, and this module makes it printable, so that code which shows a
snapshot need not do so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from har_edge.monitor.sent import sent_views, unanswered
from har_edge.monitor.snapshot import (
    CountsView,
    EpochView,
    FlowView,
    HopView,
    NodeView,
    ProbeView,
    Snapshot,
    StageView,
)
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.cluster_state import ClusterState, NodeRecord, StageKey
from har_edge.protocol.deployment import Deployment, Placement
from har_edge.protocol.events import Event, HeartbeatEvent, ResultsEvent, StatusEvent, decode
from har_edge.protocol.results import Result
from har_edge.protocol.status import Heartbeat, NodeStatus, StagePhase, StageReport
from har_edge.protocol.text import printable
from har_edge.protocol.topics import Topics, is_probe
from har_edge.runtime.agreement import plan_disagreement
from har_edge.tflite.manifest import SliceManifest

HORIZON_S = 10.0
REMEMBERED = 2000
_BIG = 2**53
UNREPORTED = "unreported"


@dataclass(slots=True)
class _Stretch:
    """The last seconds of one stage: reports, and when they came."""

    reports: deque[tuple[float, StageReport]] = field(default_factory=lambda: deque(maxlen=64))

    def add(self, now: float, report: StageReport) -> None:
        if self.reports and report.windows < self.reports[-1][1].windows:  # it has begun anew
            self.reports.clear()
        self.reports.append((now, report))
        while self.reports[0][0] < now - HORIZON_S:
            self.reports.popleft()

    def rate(self) -> float | None:
        (first, before), (last, after) = self.reports[0], self.reports[-1]
        return (after.windows - before.windows) / (last - first) if last - first > 0.2 else None

    def mean(self, field: str) -> float | None:
        """Return the mean of a figure over the windows of these seconds; None when there were none."""
        pairs = zip(list(self.reports), list(self.reports)[1:], strict=False)
        shares = [(after.windows - before.windows, getattr(after, field)) for (_, before), (_, after) in pairs]
        if not any(count for count, _ in shares):
            return float(getattr(self.reports[-1][1], field)) or None
        return float(sum(count * value for count, value in shares) / sum(count for count, _ in shares))

    def busy(self) -> float:
        return sum(report.busy for _, report in self.reports) / len(self.reports)


@dataclass(slots=True)
class _Figures:
    """The summary of the heartbeats of one start of a node: how far its clock is ahead, how its stages did lately."""

    instance: str
    ahead_s: float = -math.inf
    stretches: dict[tuple[int, int, int], _Stretch] = field(default_factory=dict)

    def add(self, heartbeat: Heartbeat, now: float, wall: float) -> None:
        """Take a heartbeat that came at `now`, which is `wall` by our clock (seconds since 1970)."""
        self.ahead_s = max(self.ahead_s, heartbeat.time - wall)
        told = {(report.epoch, report.stage, report.replica): report for report in heartbeat.stages}
        self.stretches = {key: self.stretches.get(key) or _Stretch() for key in told}
        for key, report in told.items():
            self.stretches[key].add(now, report)


class Observer:
    """Reads the state of a cluster, and says what it amounts to. Unusable messages are counted; nothing raises."""

    def __init__(self, topics: Topics, now: float) -> None:
        self._topics, self.since = topics, now
        self.state = ClusterState(now)
        self._figures: dict[str, _Figures] = {}
        self._answers: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        topics = self._topics
        return [topics.status("+"), topics.heartbeat("+"), topics.plan(), topics.result("+")]

    @property
    def deployment(self) -> Deployment | None:
        """The deployment of the last plan that could be read."""
        return self.state.deployment

    @property
    def plan_problem(self) -> str:
        """The error in the last plan, fit for a terminal; empty where there is none."""
        return printable(self.state.plan_problem)

    @property
    def unusable(self) -> int:
        """How many messages could not be used."""
        return self.state.unreadable.total()

    def handle(self, delivery: Delivery, now: float, wall: float) -> Event:
        """Take one message in, that came at `now` (monotonic seconds) and `wall` (seconds since 1970, our clock)."""
        event = decode(delivery, self._topics)
        self.state.apply(event, now)
        match event:
            case HeartbeatEvent(retained=False) if event.node in self.state.nodes:
                heartbeat = event.heartbeat
                figures = self._figures.get(event.node)
                if figures is None or figures.instance != heartbeat.instance:
                    figures = self._figures[event.node] = _Figures(heartbeat.instance)
                figures.add(heartbeat, now, wall)
            case StatusEvent(status=None):
                self._figures.pop(event.node, None)
            case ResultsEvent():
                self._note_results(event.results, now)
        return event

    def _note_results(self, results: list[Result], now: float) -> None:
        for result in results:
            seconds = result.emitted - result.captured
            if not is_probe(result.stream) and abs(seconds) < _BIG:
                self._answers.append((now, seconds))

    def reports(self) -> Mapping[StageKey, StageReport]:
        """Return the last report of each stage by node, generation, stage and replica."""
        return self.state.reports

    def statuses(self) -> dict[str, NodeStatus]:
        """Return the last status of each node by name."""
        return self.state.statuses

    def is_alive(self, name: str, now: float) -> bool:
        """Return whether a node is there."""
        return self.state.is_alive(name, now)

    def snapshot(self, now: float, wall: float, probe: ProbeView | None = None) -> Snapshot:
        """Return what is known; `ready` says that this probe was answered."""
        plan, deployment = "none", self.deployment
        if self.plan_problem:
            plan = self.plan_problem
        elif deployment is not None:
            plan = "current" if deployment.current else "preparing"
        newest = max(deployment.generations, key=lambda one: one.epoch, default=None) if deployment else None
        stages, sent = self._stages(), sent_views(self.statuses(), lambda name: self.is_alive(name, now))
        return Snapshot(
            pipeline=self._topics.pipeline,
            base=self._topics.base,
            time=wall,
            ready=probe is not None and probe.answered,
            probe=probe,
            plan=plan,
            author=printable(deployment.author) if deployment else "",
            revision=deployment.revision if deployment else 0,
            epoch=deployment.epoch if deployment else 0,
            model=printable(newest.manifest.model) if newest else "",
            epochs=self._epochs(),
            nodes=tuple(self._view(name, node, now) for name, node in sorted(self.state.nodes.items())),
            stages=stages,
            flow=self._flow(stages, now),
            counts=self._counts(now, unanswered(sent)),
            sent=sent,
            disagreement=self._disagreement(now),
        )

    def _disagreement(self, now: float) -> str:
        """Say whether answers may depend on the node that computes them, of the living nodes that the plan names."""
        if self.deployment is None:
            return ""
        alive = {name: status for name, status in self.statuses().items() if self.is_alive(name, now)}
        return plan_disagreement(self.deployment, alive)

    def _epochs(self) -> tuple[EpochView, ...]:
        deployment = self.deployment
        if deployment is None:
            return ()
        return tuple(
            EpochView(
                epoch=one.epoch,
                phase=deployment.phase(one.epoch).value,
                cuts=tuple((entry.start, entry.stop) for entry in one.manifest.slices),
                predicted_latency_s=one.predicted_latency_s,
                flows=dict(sorted(one.flows.items())),
            )
            for one in sorted(deployment.generations, key=lambda one: one.epoch)
        )

    def _view(self, name: str, node: NodeRecord, now: float) -> NodeView:
        status, heartbeat = node.status, node.heartbeat
        figures = self._figures.get(name) or _Figures("")
        card = status.device if status else None
        return NodeView(
            name=name,
            role=printable(status.role, 40) if status else "",
            state=status.state.value if status else UNREPORTED,
            alive=self.is_alive(name, now),
            version=printable(status.version, 40) if status else "",
            detail=printable(status.detail) if status else "",
            epoch=status.epoch if status else 0,
            revision=heartbeat.revision if heartbeat else 0,
            protocol=card.protocol if card else None,
            machine=printable(card.machine, 64) if card else "",
            cores=card.cores if card else 0,
            memory_bytes=card.memory_bytes if card else 0,
            speed=min(card.speed, _BIG) if card else 0.0,
            ahead_s=figures.ahead_s if heartbeat else None,
            beat_age_s=now - node.heartbeat_at if heartbeat else None,
            stages=tuple(f"{stage}.{replica}@{epoch}" for epoch, stage, replica in sorted(figures.stretches)),
            counters={printable(key, 40): value for key, value in sorted(status.counters.items())[:64]}
            if status
            else {},
            runtime=printable(card.runtime, 40) if card else "",
            delegate=printable(card.delegate, 16) if card else "",
            broker=printable(card.broker.url, 120) if card and card.broker else "",
            lost_at=status.lost_at if status and math.isfinite(status.lost_at) else 0.0,
        )

    def _stages(self) -> tuple[StageView, ...]:
        """Return every placement of the plan, and what nodes still run beside it."""
        generations = self.deployment.generations if self.deployment else ()
        placed = {
            (placement.node, one.epoch, *placement.key): placement
            for one in generations
            for placement in one.placements
        }
        standby = {
            (name, one.epoch, *placement.key)
            for one in generations
            for placement in one.placements
            for name in placement.standby
        }
        views = [self._stage(key, placement) for key, placement in placed.items()]
        beside = [key for key in self.reports() if key not in placed and key not in standby]
        views += [self._stage(key, None) for key in beside]
        return tuple(
            sorted(views, key=lambda view: (view.epoch, view.stage, view.replica, not view.planned, view.node))
        )

    def _stage(self, key: tuple[str, int, int, int], placement: Placement | None) -> StageView:
        name, epoch, stage, replica = key
        figures = self._figures.get(name)
        stretch = figures.stretches.get((epoch, stage, replica)) if figures else None
        report = stretch.reports[-1][1] if stretch else None
        return StageView(
            epoch=epoch,
            stage=stage,
            replica=replica,
            node=name,
            standby=placement.standby if placement else (),
            phase=report.phase.value if report else UNREPORTED,
            detail=printable(report.detail) if report else "",
            planned=placement is not None,
            windows=report.windows if report else 0,
            rate=stretch.rate() if stretch else None,
            queued=report.queued if report else 0,
            waiting=report.waiting if report else 0,
            queue_s=stretch.mean("queue_s") if stretch else None,
            service_s=stretch.mean("service_s") if stretch else None,
            busy=stretch.busy() if stretch else None,
            idle_s=report.idle_s if report else 0.0,
            lost=report.lost if report else 0,
            errors=report.errors if report else 0,
        )

    def _flow(self, stages: tuple[StageView, ...], now: float) -> FlowView:
        recent = [(came, seconds) for came, seconds in self._answers if came > now - 6 * HORIZON_S]
        latest = sum(came > now - HORIZON_S for came, _ in recent)
        took = sorted(seconds for _, seconds in recent)
        hops = self._hops(stages)
        middle = percentile(took, 0.5)
        rest = None if middle is None or not hops else middle - sum(hop.queue_s + hop.service_s for hop in hops)
        if rest is not None and rest < 0:  # shards compute at the same time, and a window may not wait for all of them
            rest = None
        return FlowView(
            results=self.state.results,
            rate=latest / max(0.5, min(HORIZON_S, now - self.since)),
            p50_s=middle,
            p95_s=percentile(took, 0.95),
            p99_s=percentile(took, 0.99),
            hops=hops,
            elsewhere_s=rest,
        )

    def _hops(self, stages: tuple[StageView, ...]) -> tuple[HopView, ...]:
        """Return the stages on the longest way through the current generation; none until all have reported."""
        current = self.deployment.current if self.deployment else None
        if current is None:
            return ()
        hops: dict[int, HopView] = {}
        for index in range(len(current.manifest.slices)):
            here = [view for view in stages if view.planned and (view.epoch, view.stage) == (current.epoch, index)]
            known = [view for view in here if view.service_s is not None]
            if not known:
                return ()
            hops[index] = HopView(
                stage=index,
                queue_s=sum(view.queue_s or 0.0 for view in known) / len(known),
                service_s=sum(view.service_s or 0.0 for view in known) / len(known),
            )
        return tuple(hops[index] for index in longest_way(current.manifest, hops))

    def _counts(self, now: float, lost: int) -> CountsView:
        reports = self.reports()
        counters = [status.counters for name, status in self.statuses().items() if self.is_alive(name, now)]

        def add(name: str, among: list[dict[str, int]]) -> int:
            return sum(one.get(name, 0) for one in among)

        beating = {name for name, *_ in reports}
        others = [
            status.counters
            for name, status in self.statuses().items()
            if name not in beating and self.is_alive(name, now)
        ]
        return CountsView(
            lost=sum(report.lost for report in reports.values()) + add("given_up", others),
            errors=sum(report.errors for report in reports.values()) + add("rejected", others),
            dropped=add("dropped", counters),
            resent=add("resent", [status.counters for status in self.statuses().values()]),
            unusable=self.unusable,
            unanswered=lost,
        )


def percentile(ordered: list[float], share: float) -> float | None:
    """Return a percentile of values in order, by the nearest rank; None for none."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else None


def longest_way(manifest: SliceManifest, hops: dict[int, HopView]) -> tuple[int, ...]:
    """Return the stages on the way that takes longest, where each waits for those whose tensors it takes."""
    ways: list[tuple[float, tuple[int, ...]]] = []
    for index, entry in enumerate(manifest.slices):
        needs = {tensor.name for tensor in entry.inputs}
        before = [ways[k] for k in range(index) if needs & {tensor.name for tensor in manifest.slices[k].outputs}]
        seconds, way = max(before, default=(0.0, ()))
        ways.append((seconds + hops[index].queue_s + hops[index].service_s, (*way, index)))
    return max(ways)[1]


def is_running(report: StageReport | None) -> bool:
    """Return whether a stage takes windows."""
    return report is not None and report.phase in (StagePhase.RUNNING, StagePhase.DRAINED)
