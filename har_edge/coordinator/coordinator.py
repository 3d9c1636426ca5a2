"""The coordinator: watches nodes, places stages, and changes cuts while data flows (docs/explanation/coordinator.md).

A pure machine: messages and the time go in, messages to publish come out. All that it must remember over a restart
stands in the plan that it retains; slow work is asked for with a PlanRequest and answered with a PlanResponse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from har_edge.coordinator.artifact_publisher import ArtifactPublisher
from har_edge.coordinator.candidates import CandidatePool
from har_edge.coordinator.config import CoordinatorConfig, arrangement_of, hashes_of, names_of, promise_of
from har_edge.coordinator.failover import Reassigner
from har_edge.coordinator.flow_assigner import FlowAssigner
from har_edge.coordinator.liveness import FlowLiveness
from har_edge.coordinator.membership import (
    BLIND_S,
    PAUSE_S,
    Health,
    HealthChange,
    Membership,
    names_in,
)
from har_edge.coordinator.model_replacement import HEARS_OF_MODELS
from har_edge.coordinator.plan_store import PlanStore
from har_edge.coordinator.readiness import PATIENCE, ReadinessProbe
from har_edge.coordinator.recovery import recover
from har_edge.coordinator.refusals import Refusals
from har_edge.coordinator.replan import SLICES, PlanRequest, PlanResponse, Replan
from har_edge.coordinator.rollout import Rollout, Step, StepOutcome, StepResult, is_running, unready
from har_edge.coordinator.session_gc import SessionCollector
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.planner.relocation import Key
from har_edge.protocol.deployment import Deployment, Generation, session_name
from har_edge.protocol.events import (
    Event,
    HeaderEvent,
    HeartbeatEvent,
    PlanEvent,
    ResultsEvent,
    StatusEvent,
    Unreadable,
    decode,
)
from har_edge.protocol.status import State
from har_edge.protocol.topics import Kind
from har_edge.runtime.agreement import plan_disagreement
from har_edge.timing import NODE_LOST_S, RECONNECT_GRACE_S
from har_edge.units import duration

_log = logging.getLogger(__name__)
NAME = "coordinator"
RETAINED_S = 1.0  # how long after the connection retained messages may take to come
LOADING_S = 120.0  # how long the broker may take to get all slices of a new generation
_EVENTFUL = frozenset({Health.LOST, Health.GONE, Health.LEAVING})


class Coordinator:
    """Decides what is deployed where.

    `lines` are texts for a person, `requests` go to the planner; the sessions in `ended` are to be deleted, each
    at the broker with the address beside it (empty: the central one).
    """

    def __init__(self, setup: CoordinatorConfig, now: float) -> None:
        self.membership, self.rollout = Membership(), Rollout()
        self.lines: list[str] = []
        self.requests: list[PlanRequest] = []
        self.ended: list[tuple[str, str]] = []
        self.moved = self.switched = self.withdrawn = self.rejected = self.stood = 0
        self._setup = setup
        self._store = PlanStore(setup.topics, setup.author, setup.started, setup.first_epoch - 1)
        self._publisher = ArtifactPublisher(
            setup.topics, {setup.hashes[name]: content for name, content in setup.files.items()}
        )
        self._reassigner = Reassigner(self.membership)
        self._pool = CandidatePool(self.membership, self._reassigner.costs_of, setup.packings)
        self._flows = FlowAssigner(self.membership, setup.config.task, setup.local_brokers)
        self._collector = SessionCollector()
        self._readiness = ReadinessProbe(setup.author, setup.probe)
        self._liveness = FlowLiveness(self.membership, setup.config.task)
        self._replan = Replan(setup.spec, setup.margin, setup.settle_s)
        self._read_at = float("inf")
        self._ticked, self._changed_at, self._reconnects = now, now, -1
        self._trouble = self._waiting = self._disagreement = self._standing = ""
        self._remarks: tuple[str, ...] = ()
        self._connected = False
        # While another model is about to take the place of this one, no plan is made; `remark` is for the status.
        self.held, self.remark, self.hears_of_models = False, "", False
        self._refusals = Refusals()
        # For signed plans: counts on from the number that a node says to have accepted.
        self.outdo: Callable[[int], None] | None = None

    @property
    def deployment(self) -> Deployment | None:
        """The plan that nodes and sensors follow."""
        return self._store.deployment

    @property
    def successor(self) -> str:
        """The younger coordinator that has taken over; empty while there is none."""
        return self._store.successor

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        topics = self._setup.topics
        probes = [topics.result(stream) for stream in self._readiness.streams]
        return [topics.plan(), topics.status("+"), topics.heartbeat("+"), self._publisher.filter, *probes]

    @property
    def state(self) -> State:
        """INIT until a first probe came back; then READY while probes do, BUSY while none does."""
        if self.deployment is not None and self._readiness.current.is_ready(self.deployment.epoch):
            return State.READY
        return State.BUSY if self._readiness.was_ready else State.INIT

    @property
    def detail(self) -> str:
        """The text in the status for people."""
        current = self.deployment.current if self.deployment else None
        if current is None:
            return self._refusals.detail or self.remark or self._trouble or self._waiting or "nothing is deployed yet"
        step = "" if self.rollout.step is Step.IDLE else f"rollout: {self.rollout.step.value}"
        parts = [arrangement_of(current), unready(self.membership, current), step]
        kept_out = f"no stage for {', '.join(sorted(self._pool.failing))} for a while" if self._pool.failing else ""
        parts += [self._refusals.detail, self._waiting, self._standing, kept_out, self._trouble, self.remark]
        return f"epoch {current.epoch}: {'; '.join(filter(None, parts))}"

    @property
    def counters(self) -> dict[str, int]:
        deployment, current = self.deployment, self.deployment.current if self.deployment else None
        return {
            "epoch": deployment.epoch if deployment else 0,
            "revision": deployment.revision if deployment else 0,
            "stages": len(current.manifest.slices) if current else 0,
            "nodes": len(self.membership.live()),
            "asked": self._setup.spec.most_nodes or 0,
            "probe_us": round(self._readiness.current.took_s * 1e6),
            "relocations": self.moved,
            "rollouts": self.switched,
            "withdrawn": self.withdrawn,
            "rejected": self.rejected,
            "stood_still": self.stood,
            "kept_out": len(self._pool.failing),
            HEARS_OF_MODELS: int(self.hears_of_models),
        }

    def note_link(self, connected: bool, reconnects: int, unsent: int, now: float) -> None:
        """Take note of our own connection: without it, or just after it came back, silence tells nothing of others.

        `unsent` is how many messages the broker has not taken yet.
        """
        self._publisher.note_unsent(unsent)
        self._connected = connected
        if not connected:
            self._liveness.restart(now + RECONNECT_GRACE_S)
            self.membership.discard_pending_wills()
            self.membership.extend_deadlines(now + RECONNECT_GRACE_S)
            return
        if reconnects != self._reconnects:
            if self._reconnects >= 0:
                self._say("the connection to the broker is back: everybody gets time to be heard")
            self._reconnects, self._read_at = reconnects, now + RETAINED_S
            self._publisher.forget_broker()
            self._store.republish()
            self._readiness.current.invalidate(now)
            self._liveness.restart(now + RECONNECT_GRACE_S)
            self.membership.discard_pending_wills()
            self.membership.extend_deadlines(now + RECONNECT_GRACE_S)

    def handle(self, delivery: Delivery, now: float) -> list[Outgoing]:
        """Take one message; return what it makes urgent. A useless message is dropped, counted and logged."""
        try:
            urgent = self._take(decode(delivery, self._setup.topics), now)
        except MessageError as error:
            self.rejected += 1
            _log.warning("dropped %s: %s", delivery.topic, error)
            return []
        return self.tick(now) if urgent else []

    def tick(self, now: float) -> list[Outgoing]:
        """Do what time and messages have made due; return what to publish, in this order."""
        pause_s = now - self._ticked
        if pause_s > BLIND_S:
            self.membership.extend_deadlines(now + NODE_LOST_S)
            self._liveness.restart(now + NODE_LOST_S)
        elif pause_s > PAUSE_S:
            self.membership.shift_deadlines(pause_s)
            self._liveness.note_pause(pause_s, now)
        self._ticked = now
        if now < self._read_at:
            return []
        if self.deployment is None:
            self._begin(now)
            for name in self.membership.members:
                self._note_revision(name)
        self._note_events(self.membership.tick(now), now)
        self._reassign_stages(now)
        self._roll(now)
        self._assign_flows(now)
        outgoing = [
            *self._store.flush(),
            *self._publisher.fill(self._wanted()),
            *self._probe(now),
            *self._remove_unreferenced(),
            *self._clear(now),
        ]
        self._consider(now)
        self.ended += [(self._session(key), url) for key, url in self._collector.due(self.membership, now)]
        return outgoing

    def receive(self, response: PlanResponse, now: float) -> list[Outgoing]:
        """Take an answer of the planner."""
        if response.number == SLICES:
            self._publisher.add(response.contents)
            return self.tick(now)
        current = self._store.deployed.current
        decision = self._replan.judge(response, current, self._unmet(), now)
        if decision is None:
            return []
        self._publisher.add(response.contents)
        self._reassigner.stage_costs.update({epoch: costs for epoch, costs in response.stage_costs.items() if epoch})
        self._pool.reference_speed = response.reference_speed or self._pool.reference_speed
        for remark in response.remarks:
            if remark not in self._remarks:  # what the last plan said as well is known
                self._say(remark)
        self._remarks = response.remarks
        self._trouble = decision.text if response.problem else ""
        if not decision.go:
            self._say(decision.text)
            return self.tick(now)
        gone = [name for name in names_in(response.placements) if self.membership.health(name) is not Health.LIVE]
        if gone or self.rollout.step is not Step.IDLE:
            return self.tick(now)  # made for nodes that are not there any more: it is asked for again
        assert response.forecast is not None
        generation = response.generation(self._store.next_epoch())
        self._reassigner.stage_costs[generation.epoch] = tuple(response.stage_costs.get(0, ()))
        self._replan.started(generation.manifest, response.placements)
        arrangement, promise = arrangement_of(generation), promise_of(response.forecast)
        self._say(f"epoch {generation.epoch}: {arrangement}; predicted: {promise}; because: {decision.text}")
        self.rollout.enter(Step.LOADING, now, generation)
        return self.tick(now)

    # --- incoming

    def _take(self, event: Event, now: float) -> bool:
        """Take a message; return whether it is urgent. Raises MessageError for one that cannot be used."""
        match event:
            case HeartbeatEvent():
                return self._take_heartbeat(event, now)
            case StatusEvent() if event.node != NAME:
                self._note_refusal(event)
                changes = self.membership.note_status(event.node, event.status, now, retained=event.retained)
                self._note_events(changes, now)
                return any(change.health in _EVENTFUL for change in changes)
            case PlanEvent() | Unreadable(kind=Kind.PLAN):
                self._take_plan(event, now)
            case HeaderEvent() | Unreadable(kind=Kind.SLICE):
                self._publisher.handle(event)
            case ResultsEvent():
                return self._readiness.answer(event.stream, event.results, now)
        if isinstance(event, Unreadable):
            raise MessageError(event.reason)
        return False

    def _note_refusal(self, event: StatusEvent) -> None:
        """Take note of whether a node follows our plans."""
        self._say(self._refusals.note(event.node, event.status, self._store.published))
        newest = self._refusals.newest(event.node)
        if newest is not None and self.outdo is not None:
            self.outdo(newest)

    def _take_heartbeat(self, event: HeartbeatEvent, now: float) -> bool:
        node = event.node
        self._note_events(self.membership.note_heartbeat(node, event.heartbeat, now), now)
        failed, lines = self._pool.note_stages(node, self.deployment)
        self.lines += lines
        return any((self._note_revision(node), self._note_lacks(node, now), failed))

    def _take_plan(self, event: PlanEvent | Unreadable, now: float) -> None:
        begun = self.deployment is not None
        self._say(self._store.take(event))
        if begun and self.deployment is None:  # it came late, and nothing was published until then
            if self.rollout.step is not Step.IDLE:
                self.rollout.enter(Step.IDLE, now)
            self._replan.outstanding = None
            self._begin(now)

    def _note_events(self, events: list[HealthChange], now: float) -> None:
        for event in events:
            if event.health is not Health.NEW:
                self._say(event.text)
                self._changed_at = now
            if event.health is Health.GONE:
                self._pool.forget(event.node)

    def _note_revision(self, node: str) -> bool:
        """Go on from the revision that a node follows; tell whether our plan must go out again."""
        member = self.membership.members.get(node)
        if member is None or member.heartbeat is None or not self._store.continue_from(member.heartbeat):
            return False
        self._say(f"node {node} follows revision {member.heartbeat.revision} of a lost plan: ours counts on from there")
        return self._store.dirty

    def _note_lacks(self, node: str, now: float) -> bool:
        """Publish again what a node could not get; return whether there was such a file."""
        if self.deployment is None:
            return False
        lacks = {report.lacks for report in self.membership.reports(node)} & self._wanted()
        lost = [sha256 for sha256 in sorted(lacks) if self._publisher.republish(sha256, now)]
        for sha256 in lost:
            self._say(f"node {node} could not get {sha256} from the broker: it is published again")
        return bool(lost)

    def _begin(self, now: float) -> None:
        """Go on with the plan that is retained, or begin one."""
        found, recovery = self._store.found, recover(self._store.found, self._setup)
        begun = recovery.deployment
        self._store.open(begun)
        if found is None:
            return
        for remark in recovery.remarks:
            self._say(remark)
        self._follow(found, now)
        self.membership.expect(names_of(begun), now)
        self.membership.extend_deadlines(now + RECONNECT_GRACE_S)
        if begun.generations:  # the broker may have lost their slices, and a plan may be long in coming
            self.requests.append(PlanRequest(SLICES, (), begun.generations, begun.epoch))
        self.rollout.resume(begun, now)
        self._say(f"adopted the plan of {found.author}, revision {found.revision}: {self.detail}")

    # --- decisions

    def _reassign_stages(self, now: float) -> None:
        """Give every stage that sensors need a node that lives."""
        self._pool.update(self._store.deployed, now)
        standing = self._find_standing(now)
        mended, reassignments = self._reassigner.reassign(
            self._store.deployed, self._pool.candidates(), self._pool.failing, now, standing
        )
        if mended == self._store.deployed:
            return
        self._change(mended, now)
        for move in reassignments:
            self._say(move.text)
        self.moved += len(reassignments)
        if reassignments:
            self._readiness.current.invalidate(now)

    def _find_standing(self, now: float) -> Mapping[Key, str]:
        """Return the stage that keeps windows from going through, and why it moves; keep its node out for a while."""
        current, series = self._store.deployed.current, self._readiness.current
        running = current is not None and is_running(self.membership, current)
        found = self._liveness.look(current, running, series, now) if self._connected else None
        if self._liveness.is_quiet(series, now):
            series.hasten()
        if current is not None and series.is_ready(current.epoch):
            self._standing = ""
        if found is None:
            return {}
        self.stood += 1
        epoch, stage, _ = found.key
        if all(member.name == found.node for member in self.membership.live()):
            self._standing = f"stage {stage} stands still, and there is no other node: {found.reason}"
            self._say(f"epoch {epoch}: {self._standing}")
            return {}
        ban_s = self._pool.ban(found.node, now)
        self._standing = f"stage {stage} stood still: {found.reason}; {found.node} gets no stage for {ban_s:.0f} s"
        self._say(f"epoch {epoch}: {self._standing}")
        return dict.fromkeys((found.key, *found.also), f"it stood still on {found.node}")

    def _assign_flows(self, now: float) -> None:
        """Give every flow a broker: no other cuts, no other nodes, so nothing to settle down after."""
        before, note = self._store.deployed, self._flows.note
        assigned, lines = self._flows.assign(before, now)
        if assigned != before:
            self._store.change(assigned)
            self._liveness.restart(now)
        for line in [*lines, *([self._flows.note] if self._flows.note != note else [])]:
            self._say(line)

    def _roll(self, now: float) -> None:
        """Look whether the step of the rollout is done."""
        step, rollout = self.rollout.step, self.rollout
        self._liveness.watch_trial(rollout.generation if step in (Step.PREPARING, Step.PROBING) else None, now)
        if step is Step.LOADING:
            self._loaded(now)
        elif step is Step.PREPARING:
            self._judge(rollout.prepared(self.membership, now), Step.PROBING, now)
        elif step is Step.PROBING:
            assert rollout.generation is not None
            series = self._readiness.candidate
            answered, patience_s = series.is_ready(rollout.generation.epoch), PATIENCE * series.expected_s
            self._judge(rollout.probed(self.membership, answered, now, patience_s), Step.DRAINING, now)
        elif step is Step.DRAINING:
            self._judge(rollout.drained(self._store.deployed, self.membership, now), Step.IDLE, now)

    def _loaded(self, now: float) -> None:
        """Publish the generation once the broker has all its slices."""
        generation, deployment = self.rollout.generation, self._store.deployed
        assert generation is not None
        missing = self._publisher.missing(hashes_of(generation) | set(deployment.files.values()))
        if not missing:
            self._change(msgspec.structs.replace(deployment, generations=(*deployment.generations, generation)), now)
            self.rollout.enter(Step.PREPARING, now)
        elif now > self.rollout.since + LOADING_S:
            text = f"the broker has not taken {len(missing)} files: see its access list and size limit"
            self._withdraw(StepResult(StepOutcome.FAILED, text), now)

    def _judge(self, result: StepResult, following: Step, now: float) -> None:
        """Take the rollout to its next step, or withdraw it."""
        if result.outcome is StepOutcome.FAILED:
            self._withdraw(result, now)
        if result.outcome is not StepOutcome.DONE:
            return
        deployment, generation = self._store.deployed, self.rollout.generation
        self._say(result.text)
        if following is Step.PROBING:
            self._readiness.candidate.invalidate(now)
        elif following is Step.DRAINING:
            assert generation is not None
            self._change(msgspec.structs.replace(deployment, epoch=generation.epoch), now)
            self._replan.succeeded()
            self._readiness.switch()
            self.switched, self._trouble = self.switched + 1, ""
            took = self._readiness.current.took_s
            self._say(f"epoch {generation.epoch}: a probe came through in {duration(took)}; sensors switch to it")
        else:
            kept = tuple(one for one in deployment.generations if one.epoch == deployment.epoch)
            gone = [one.epoch for one in deployment.generations if one not in kept]
            if gone:
                self._change(msgspec.structs.replace(deployment, generations=kept), now)
                self._say(f"epoch {', '.join(map(str, gone))} is over")
        self.rollout.enter(following, now)

    def _withdraw(self, result: StepResult, now: float) -> None:
        """Take a generation back that cannot get ready; the current one stays."""
        generation = self.rollout.generation
        assert generation is not None
        kept = tuple(one for one in self._store.deployed.generations if one.epoch != generation.epoch)
        banned = {result.node} if result.node else set[str]()
        if self.rollout.step is Step.PROBING and not result.node:
            banned = self._blame_trial(generation, now)
        self._change(msgspec.structs.replace(self._store.deployed, generations=kept), now)
        for name in banned:
            self._pool.ban(name, now)
        self.withdrawn += 1
        wait_s = self._replan.failed(now)
        self.rollout.enter(Step.IDLE, now)
        self._trouble = f"epoch {generation.epoch} was withdrawn: {result.text}"
        without = f", without {', '.join(sorted(banned))}" if banned else ""
        self._say(f"{self._trouble}; trying again in {wait_s:.0f} s{without}")

    def _blame_trial(self, generation: Generation, now: float) -> set[str]:
        """Return the nodes that a failed trial counts against: the one where a stage stood still, else those new in it.

        If none is new, the cuts are to blame, and are not tried again for a while.
        """
        found = self._liveness.blame_trial(self._readiness.candidate, self.rollout.since, now)
        if found is not None:
            self._say(f"epoch {generation.epoch}: stage {found.key[1]} stood still: {found.reason}")
            return {found.node}
        current = self._store.deployed.current
        names = names_in(generation.placements)
        new = names - names_in(current.placements) if current is not None else set[str]()
        if not new:
            self._replan.refuse(now)
        return new

    def _consider(self, now: float) -> None:
        """Ask for a plan when there may be a better one."""
        if self.rollout.step is not Step.IDLE or self.held:
            return
        candidates, deployment = self._pool.candidates(), self._store.deployed
        waiting = "" if candidates else "waiting for nodes: start `har-edge node` on a device"
        if waiting and waiting != self._waiting:
            self._say(waiting)
        self._waiting = waiting
        order = self._replan.due(
            candidates, deployment.generations, deployment.epoch, self._unmet(), self._changed_at, now
        )
        if order is not None:
            self.requests.append(order)

    def _unmet(self) -> str:
        """Say what of the spec the current generation does not meet; empty where nothing is."""
        current, setup = self._store.deployed.current, self._setup
        nodes = {candidate.name for candidate in self._pool.candidates()}
        return setup.spec.unmet(current, setup.model_sha256, nodes) if current else ""

    # --- outgoing

    def _change(self, after: Deployment, now: float) -> None:
        """Change the plan: a new revision, to be published."""
        before = self._store.deployed
        self._store.change(after)
        self._follow(before, now)

    def _follow(self, before: Deployment, now: float) -> None:
        """Take note of a plan that has changed."""
        after = self._store.deployed
        self._collector.note(before, after, now)
        self.membership.named = names_of(after)
        self._changed_at = now
        self._compare()

    def _compare(self) -> None:
        """Warn, once for each finding, where the nodes of the plan may give other bits than each other."""
        members = self.membership.members.items()
        statuses = {name: member.status for name, member in members if member.status is not None}
        warning = plan_disagreement(self._store.deployed, statuses)
        if warning and warning != self._disagreement:
            self._say(f"warning: {warning}")
        self._disagreement = warning

    def _wanted(self) -> set[str]:
        """Return the hashes of everything that is deployed or about to be."""
        deployment, loading = self._store.deployed, self.rollout.generation
        generations = [*deployment.generations, *([loading] if loading is not None else [])]
        return set(deployment.files.values()).union(*map(hashes_of, generations))

    def _remove_unreferenced(self) -> list[Outgoing]:
        """Remove what no generation names: from the broker, and from memory."""
        if self.rollout.step is not Step.IDLE or self._replan.outstanding is not None:
            return []
        epochs = {one.epoch for one in self._store.deployed.generations}
        for epoch in self._reassigner.stage_costs.keys() - epochs:
            del self._reassigner.stage_costs[epoch]
        return self._publisher.remove_unreferenced(self._wanted())

    def _clear(self, now: float) -> list[Outgoing]:
        """Remove the retained statuses of those that have long been gone."""
        gone = self.membership.stale(now)
        for name in gone:
            self._say(f"{name} has been gone for more than an hour: its status is removed")
        return [Outgoing(self._setup.topics.status(name), b"", retain=True) for name in gone]

    def _probe(self, now: float) -> list[Outgoing]:
        """Ask the current generation now and then whether it answers, and a new one before sensors switch to it."""
        if not self._connected:  # nobody would answer, and all of them would leave at once later
            return []
        current = self._store.deployed.current
        trial = self.rollout.generation if self.rollout.step is Step.PROBING else None
        asked = self._readiness.ask(current, current is not None and is_running(self.membership, current), trial, now)
        for problem in asked.problems:
            if problem != self._trouble:
                self._say(problem)
            self._trouble = problem
        return asked.messages

    def _session(self, key: Key) -> str:
        epoch, stage, replica = key
        return session_name(self._setup.topics.base, self._setup.topics.pipeline, epoch, stage, replica)

    def _say(self, text: str) -> None:
        if text:
            self.lines.append(text)
