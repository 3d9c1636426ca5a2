"""A fixed folder of slices at work: which of its stages are there, and whether a window goes through them."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

import msgspec

from har_edge.config.pipeline import Pipeline
from har_edge.config.wiring import find_wiring
from har_edge.errors import HarEdgeError
from har_edge.monitor.observer import UNREPORTED, Observer
from har_edge.monitor.permissions import Connect
from har_edge.monitor.probe_run import answers
from har_edge.monitor.probe_trace import ProbeTrace, last_holder
from har_edge.monitor.snapshot import EpochView, ProbeView, Snapshot, StageView
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome
from har_edge.protocol.status import ALIVE, NodeStatus
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import PROBE
from har_edge.runtime.agreement import disagreement, way_of
from har_edge.runtime.build import delegate_of, topics_of
from har_edge.runtime.probe import probe
from har_edge.runtime.stage.neighbours import index_of
from har_edge.timing import STAGE_SILENT_S
from har_edge.units import duration

# The plan in a snapshot of slices in a folder.
FIXED = "fixed"
RUNNING = "running"
SILENT = "silent"


class FixedObserver(Observer):
    """Keeps what the nodes of a fixed pipeline say, and compares it with the folder that is given."""

    def __init__(self, pipeline: Pipeline, now: float) -> None:
        super().__init__(topics_of(pipeline), now)
        self.pipeline = pipeline
        self.earlier = _earlier(pipeline)

    def age(self, index: int, now: float) -> float | None:
        """Return how old the status of a stage is, in seconds; None where only what is retained came."""
        heard = self._heard_at(index)
        return None if heard is None else now - heard

    def _heard_at(self, index: int) -> float | None:
        """Return when a stage itself last said something, not the broker what it retains; None for never."""
        node = self.state.nodes.get(f"stage-{index}")
        return None if node is None or node.said_at == -math.inf else node.said_at

    def all_heard(self) -> bool:
        """Return whether each stage that says it lives has said something since this listens."""
        alive = {index for index in self.earlier if self._lives(index)}
        return all(self._heard_at(index) is not None for index in alive)

    def silent(self, now: float) -> set[int]:
        """Return the stages that say they live and have said nothing for STAGE_SILENT_S."""
        return {
            index for index in self.earlier if self._lives(index) and now - self._last_heard(index) > STAGE_SILENT_S
        }

    def _last_heard(self, index: int) -> float:
        """Return when a stage last said something, or since when it could have."""
        heard = self._heard_at(index)
        return self.since if heard is None else heard

    def _lives(self, index: int) -> bool:
        status = self.statuses().get(f"stage-{index}")
        return status is not None and status.state in ALIVE

    def is_alive(self, name: str, now: float) -> bool:
        """Return whether a node is there: a stage says something every few seconds."""
        return super().is_alive(name, now) and name not in {f"stage-{index}" for index in self.silent(now)}

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to: stages by name too, as some brokers deliver nothing retained to a wildcard."""
        topics, count = topics_of(self.pipeline), len(self.pipeline.manifest.slices)
        return [topics.status("+"), topics.result("+"), *(topics.status(f"stage-{index}") for index in range(count))]

    def problem(self, index: int, now: float) -> tuple[str, str]:
        """Return the phase of a stage, and what is wrong with it; empty where it runs the slice of this folder."""
        name, pipeline = f"stage-{index}", self.pipeline
        status = self.statuses().get(name)
        start = f"har-edge stage --config {printable(str(pipeline.folder))} --index {index}"
        if status is None:
            return UNREPORTED, f"it was never seen; start it with: {start}"
        if index in self.silent(now):
            quiet = duration(now - self._last_heard(index))
            said = f"it said nothing of itself for {quiet}: it hangs, or computes for long"
            return SILENT, f"{said}; end it if it hangs, then start it with: {start}"
        if not self.is_alive(name, now):
            return status.state.value, f"it is {status.state.value}; start it with: {start}"
        return self._compare(status, index)

    def _compare(self, status: NodeStatus, index: int) -> tuple[str, str]:
        card, manifest = status.slice, self.pipeline.manifest
        if card is None:
            return RUNNING, ""  # an older har_edge does not say what it runs: only a window tells
        if card.model_sha256 != manifest.model_sha256:
            other = f"{printable(card.model, 80)} (sha256 {printable(card.model_sha256, 12)})"
            return "other model", f"it runs a slice of {other}, not of {printable(manifest.model, 80)}"
        if status.epoch != self.pipeline.config.epoch or card.count != len(manifest.slices):
            entry = manifest.slices[index]
            return "other cut", (
                f"it runs operators [{card.start}, {card.stop}) of {card.count} slices, this folder has "
                f"[{entry.start}, {entry.stop}) of {len(manifest.slices)}; copy one folder to every device"
            )
        return RUNNING, ""

    def _problems(self, now: float) -> dict[int, str]:
        """Return the stages that do not run their slice, with what is wrong with each."""
        found = {index: self.problem(index, now)[1] for index in range(len(self.pipeline.manifest.slices))}
        return {index: problem for index, problem in found.items() if problem}

    def _is_spared(self, problems: Collection[int]) -> bool:
        """Return whether a parity stands for the only stage with a problem."""
        return len(problems) == 1 and set(self.pipeline.manifest.spared).issuperset(problems)

    def spared(self, now: float) -> str:
        """Say for which stage, which does not run its slice, a parity stands, and why; empty where it is not so."""
        problems = self._problems(now)
        if not self._is_spared(problems):
            return ""
        return "".join(f"a parity stands for stage {index}: {problem}" for index, problem in problems.items())

    def away_turns(self) -> list[tuple[str, str]]:
        """Return what to say of stages that take turns at a slice and are away, with the command that starts each."""
        found, count = list[tuple[str, str]](), len(self.pipeline.manifest.slices)
        for name, status in sorted(self.statuses().items()):
            index = index_of(name) if status.role == "stage" and status.state not in ALIVE else None
            turn = name.removeprefix(f"stage-{index}").removeprefix("-")
            if index is not None and index < count and turn:
                said = (
                    f"{name} takes turns at slice {index} and is {status.state.value}: windows that the broker gives "
                    "to it wait, unless it was started with --forget"
                )
                folder = printable(str(self.pipeline.folder))
                found.append((said, f"har-edge stage --config {folder} --index {index} --turn {turn}"))
        return found

    def stalled(self, now: float) -> str:
        """Say which stage keeps windows from going through, and why; empty where none does."""
        problems = self._problems(now)
        if not problems or self._is_spared(problems):
            return ""
        first, *others = problems
        more = ""
        if len(set(self.pipeline.manifest.spared).intersection(problems)) > 1:
            more = f", like {listed(list(map(str, others)))}, and a parity stands for one alone"
        return f"stage {first}{more}: {problems[first]}"

    def _disagreement(self, now: float) -> str:
        """Say whether answers may depend on the stages that compute them, by what these say of themselves."""
        manifest = self.pipeline.manifest
        cards = {name: one.slice for name, one in self.statuses().items() if one.slice and self.is_alive(name, now)}
        return disagreement(
            {name: way_of(card) for name, card in sorted(cards.items())},
            {spec.dtype for spec in manifest.tensors},
            delegate=delegate_of(self.pipeline.config),
        )

    def snapshot(self, now: float, wall: float, probe: ProbeView | None = None) -> Snapshot:
        """Return the snapshot; the only generation is that of the folder, and each stage is a node of its own."""
        manifest, epoch = self.pipeline.manifest, self.pipeline.config.epoch
        cuts = tuple((entry.start, entry.stop) for entry in manifest.slices)
        return msgspec.structs.replace(
            super().snapshot(now, wall, probe),
            plan=FIXED,
            epoch=epoch,
            model=printable(manifest.model),
            epochs=(EpochView(epoch=epoch, phase=FIXED, cuts=cuts, predicted_latency_s=0.0),),
            stages=tuple(self._view_of(index, now) for index in range(len(cuts))),
        )

    def _view_of(self, index: int, now: float) -> StageView:
        name = f"stage-{index}"
        phase, problem = self.problem(index, now)
        status = self.statuses().get(name)
        counters = status.counters if status else {}
        return StageView(
            epoch=self.pipeline.config.epoch,
            stage=index,
            replica=0,
            node=name,
            standby=(),
            phase=phase,
            detail=problem,
            planned=True,
            windows=counters.get("windows", 0),
            rate=None,
            queued=0,
            waiting=0,
            queue_s=None,
            service_s=None,
            busy=None,
            idle_s=0.0,
            age_s=self.age(index, now),
            listened_s=now - self.since,
            lost=counters.get("given_up", 0) + counters.get("too_large", 0),
            errors=counters.get("rejected", 0),
        )


@dataclass(slots=True)
class _Sent:
    """A probe under way: when it left, and what became of its messages."""

    stream: str
    at: float
    trace: ProbeTrace
    outcomes: dict[str, PublishOutcome] = field(default_factory=dict)


class FixedProbeRun:
    """Sends probes through a fixed pipeline, one at a time; `view` is how the last one fared (see probe_run.py)."""

    def __init__(self, bus: Bus, observer: FixedObserver, connect: Connect, timeout_s: float) -> None:
        self._bus, self._observer, self._connect, self._timeout_s = bus, observer, connect, timeout_s
        self._epoch = observer.pipeline.config.epoch
        self._sent: _Sent | None = None
        self.view: ProbeView | None = None

    @property
    def under_way(self) -> bool:
        return self._sent is not None

    def send(self, now: float, wall: float) -> None:
        """Send a probe; `view` says at once which stage does not run, if one does not."""
        stalled = self._observer.stalled(now)
        if stalled:
            self.view = ProbeView(False, None, self._epoch, stalled)
            return
        stream = f"{PROBE}{secrets.token_hex(6)}"
        try:
            outgoing = probe(self._observer.pipeline, self._epoch, stream, wall)
        except HarEdgeError as error:
            self.view = ProbeView(False, None, self._epoch, f"no probe could be made: {printable(str(error))}")
            return
        trace = ProbeTrace(self._connect, topics_of(self._observer.pipeline), self._epoch, stream)
        sent = self._sent = _Sent(stream, time.monotonic(), trace)
        for one in outgoing:
            self._bus.publish(one.topic, one.payload, on_outcome=partial(sent.outcomes.__setitem__, one.topic))

    def handle(self, delivery: Delivery, now: float) -> None:
        """Take a message; the answer to the probe ends it."""
        sent = self._sent
        if sent is None or delivery.topic != topics_of(self._observer.pipeline).result(sent.stream):
            return
        if answers(delivery, sent.stream):
            sent.trace.close()
            spared = self._observer.spared(now)
            self.view, self._sent = ProbeView(True, now - sent.at, self._epoch, spared), None

    def tick(self, now: float, wall: float) -> None:
        """Give the probe up when it has taken too long, or when the broker refuses it.

        Before that, each stage gets the time to say something of itself: one that does not is what is wrong.
        """
        del wall
        sent = self._sent
        if sent is None:
            return
        sent.trace.poll()
        refused = PublishOutcome.REFUSED in sent.outcomes.values()
        late, known = now > sent.at + self._timeout_s, now > self._observer.since + STAGE_SILENT_S
        if refused or (late and (known or self._observer.all_heard())):
            sent.trace.close()
            self.view, self._sent = ProbeView(False, None, self._epoch, self._where(sent, now)), None

    def close(self) -> None:
        """End what a probe under way has opened."""
        if self._sent is not None:
            self._sent.trace.close()

    def _where(self, sent: _Sent, now: float) -> str:
        """Say what is known of a probe that did not come back."""
        by = {outcome: topic for topic, outcome in sent.outcomes.items()}
        if PublishOutcome.REFUSED in by:
            return (
                f"the broker refuses this user the topic {by[PublishOutcome.REFUSED]}: use one that may publish windows"
            )
        if PublishOutcome.NO_SUBSCRIBERS in by:
            return f"no stage listens to {by[PublishOutcome.NO_SUBSCRIBERS]}"
        silent = self._observer.silent(now)
        if not sent.trace.seen and (stalled := self._observer.stalled(now)):
            return stalled
        waited = duration(min(now - self._observer.since, STAGE_SILENT_S))
        where = last_holder(sent.trace.seen, self._observer.earlier, silent, waited)
        return f"no answer came in {duration(self._timeout_s)}: {where}"


def _earlier(pipeline: Pipeline) -> dict[int, tuple[int, ...]]:
    """Return the stages that each stage takes from."""
    count = len(pipeline.manifest.slices)
    wirings = [find_wiring(pipeline.manifest, pipeline.task, index) for index in range(count)]
    return {wiring.index: tuple(sorted(wiring.earlier)) for wiring in wirings}
