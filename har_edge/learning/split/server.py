"""The command's part of split training: a pure machine that plans, feeds micro-batches, counts steps and recovers.

Messages and the time go in, messages come out. A step is counted when all stages have done it and the loss of all its
micro-batches is here. After a loss all stages go back to the last step whose states are held twice, and what was
counted after it is taken back: no batch counts twice.
"""

from __future__ import annotations

import enum
import math

from har_edge.errors import ConfigError, HarEdgeError, MessageError, ModelError
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.split.batches import BatchFeed
from har_edge.learning.split.checkpoint import SplitCheckpoint
from har_edge.learning.split.feeding import CopySchedule, StepFeed
from har_edge.learning.split.members import SplitMember, member_of, take_report
from har_edge.learning.split.record import RecoveryRow, SplitRecord, StageRow, StepRow
from har_edge.learning.split.recovery import needed_bytes, plan_recovery, with_neighbours
from har_edge.learning.split.saving import StateCollection
from har_edge.learning.split.server_progress import describe_plan, plan_shape, split_progress
from har_edge.learning.split.server_settings import SplitSettings, StageWriter
from har_edge.learning.split.state import WholeState, encode_state
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.planner.training_devices import SplitDevice
from har_edge.protocol.events import TrainingEvent, Unreadable, decode
from har_edge.protocol.split_training import (
    AssignedStage,
    MicroLoss,
    SplitAssignment,
    SplitJob,
    SplitLevel,
    SplitReport,
    SplitState,
    SplitTrainingPlan,
    StageDone,
    StateMessage,
    StateSource,
)
from har_edge.protocol.training import RunState, TrainingFile, TrainingProgress, encode_training
from har_edge.tflite.gradient.stage_spec import StageSpec
from har_edge.units import plural

# Recoveries in a row without a counted step after which a run ends: it would not get further.
_MOST_RECOVERIES = 5
# Nodes that come or go are waited for so long before there is a new plan: several may come together.
SETTLE_S = 10.0
# Loading takes longest on a slow device that checks its graphs in a process of its own first.
LOAD_S = 600.0
# A stall is so many usual steps without any news.
_STALL_STEPS = 5.0
# A worker that is silent for so many times its longest operation is taken for lost.
_SILENT_OPERATIONS = 3.0


class SplitPhase(enum.Enum):
    """The phase of a run."""

    WAITING = "waiting for nodes"
    LOADING = "nodes load their stages"
    RUNNING = "running"
    ENDED = "ended"


class SplitServer:
    """One run. `lines` are for people; `checkpoints` are states to be stored; who takes them empties both."""

    def __init__(
        self, settings: SplitSettings, writer: StageWriter, whole: WholeState, data: Dataset, now: float
    ) -> None:
        self.settings, self.whole = settings, whole
        self.lines, self.checkpoints, self.lacking = list[str](), list[WholeState](), set[str]()
        self.members: dict[str, SplitMember] = {}
        self.record, self.phase, self.state = SplitRecord(), SplitPhase.WAITING, RunState.WAITING
        self.generation, self.committed, self.rival, self.problem = 0, whole.step, "", ""
        self.steps: StepFeed | None = None
        self.specs: list[StageSpec] = []
        self.saved: dict[int, tuple[TrainingFile, ...]] = {}
        self.stop_at = settings.total_steps
        self.writer, self._data = writer, data
        self.copies = CopySchedule(settings, whole.step, now)
        self._states = StateCollection(writer.put)
        self._since = self._progressed_at = now
        self._recoveries, self._planned = 0, frozenset[str]()
        # The nodes that the plan was made for, and since when there are others.
        self._planned_for, self._others_since = frozenset[str](), math.inf

    # --- what others read ---------------------------------------------------------------------------------------------

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        topics, run = self.settings.topics, self.settings.job.run
        named = (SplitLevel.STAGE, SplitLevel.DONE, SplitLevel.LOSS, SplitLevel.SAVED)
        return [topics.training(run, "split"), *(topics.training(run, level.value, "+") for level in named)]

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self.phase is SplitPhase.ENDED

    @property
    def counted(self) -> int:
        """How many steps are done."""
        return self.steps.counted if self.steps is not None else self.whole.step

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return min(self.settings.order.epoch(self.counted), self.settings.epochs)

    @property
    def assignment(self) -> SplitAssignment | None:
        """Who holds which stage; None before there is a plan."""
        return self.steps.assignment if self.steps is not None else None

    @property
    def assigned(self) -> tuple[str, ...]:
        """The workers that hold a stage."""
        return self.assignment.plan.workers if self.assignment is not None else ()

    def job_message(self) -> Outgoing:
        """Return the retained job."""
        job = self.settings.job
        return Outgoing(self.settings.topics.training(job.run, "split"), encode_training(job), retain=True)

    def again(self) -> list[Outgoing]:
        """Return what is to be said again after the connection was made anew."""
        return [self._assignment_message()] if self.assignment is not None else []

    def _assignment_message(self) -> Outgoing:
        topic = self.settings.topics.training(self.settings.job.run, SplitLevel.STAGES.value)
        return Outgoing(topic, encode_training(self.assignment), retain=True)

    def restore(self, whole: WholeState, found: SplitCheckpoint) -> None:
        """Go on from a checkpoint, before the run begins."""
        self.whole, self.committed = whole, whole.step
        self.copies.begin(whole.step)
        record = self.record
        record.steps, record.recoveries = list(found.steps), list(found.recoveries)
        record.scores, record.before_s = list(found.scores), found.seconds
        if whole.step >= self.settings.total_steps:
            self.phase, self.state = SplitPhase.ENDED, RunState.FINISHED

    # --- what comes ---------------------------------------------------------------------------------------------------

    def handle(self, delivery: Delivery, now: float) -> list[Outgoing]:
        """Take a message; return what follows from it."""
        event = decode(delivery, self.settings.topics)
        if isinstance(event, Unreadable):
            self._dropped(event.reason)
            return []
        message = event.message if isinstance(event, TrainingEvent) else None
        if message is None or self.ended:
            return []
        job = self.settings.job
        if isinstance(message, SplitJob):
            if message.author != job.author and message.started > job.started:
                self.rival = message.author
            return []
        if getattr(message, "author", "") != job.author:
            return []
        self.record.received_bytes += len(delivery.payload)
        try:
            return self._take(message, now)
        except MessageError as error:
            self._dropped(f"{event.topic}: {error}")
            return []

    def _take(self, message: object, now: float) -> list[Outgoing]:
        name = getattr(message, "worker", "") or getattr(message, "sender", "")
        member = self.members.get(name)
        if member is not None and not (isinstance(message, SplitReport) and message.instance != member.instance):
            member.heard_at = now
        if isinstance(message, SplitReport):
            return self._report(message, now)
        if member is None or self.steps is None or getattr(message, "generation", 0) != self.generation:
            return []
        if isinstance(message, MicroLoss):
            if self.steps.take_loss(message):
                self._progressed_at = now
        elif isinstance(message, StageDone):
            return self._done(member, message, now)
        elif isinstance(message, StateMessage):
            self._take_saved(message, now)
        return []

    def _dropped(self, reason: str) -> None:
        self.record.dropped += 1
        if self.record.dropped <= 3:
            self.lines.append(f"dropped a message: {reason}")

    def _report(self, message: SplitReport, now: float) -> list[Outgoing]:
        if message.lacks:
            self.lacking.add(message.lacks)
        if message.state in (SplitState.LOST, SplitState.STOPPED):
            known = self.members.get(message.worker)
            if known is None or known.instance != message.instance:
                return []
            del self.members[message.worker]
            how = "is lost" if message.state is SplitState.LOST else "has left"
            if message.detail:
                self.lines.append(f"{message.worker} {how}: {message.detail}")
            return self._without(message.worker, f"{message.worker} {how}", now)
        member = self.members.get(message.worker)
        if member is None or member.instance != message.instance:
            self.members[message.worker] = member_of(message, now)
            if member is not None:
                return self._without(message.worker, f"{message.worker} was started again", now)
            self.lines.append(f"{message.worker} is ready (har_edge {message.software or 'of an unknown version'})")
            return []
        if message.state is SplitState.FAILED:
            if member.refused:
                return []
            member.refused = message.detail or "it failed"
            self.lines.append(f"{message.worker} takes no part any more: {member.refused}")
            return self._without(message.worker, f"{message.worker} failed", now)
        if member.absent:
            self.lines.append(f"{message.worker} is heard again")
            member.absent = False
        take_report(member, message, now)
        self._commit()
        return []

    def _done(self, member: SplitMember, message: StageDone, now: float) -> list[Outgoing]:
        assert self.steps is not None
        member.longest_s = max(member.longest_s, message.longest_s)
        if message.problem:
            return self._end(RunState.STOPPED, f"{member.name}: {message.problem}")
        if not self.steps.take_done(message):
            return []
        self._progressed_at = now
        member.samples += self.settings.order.count(message.step - 1)
        member.peak_bytes = max(member.peak_bytes, message.peak_bytes)
        row = StageRow(
            message.step - 1,
            message.stage,
            member.name,
            message.forward_s,
            message.backward_s,
            message.update_s,
            message.idle_s,
            message.sent_bytes,
            member.peak_bytes,
        )
        self.record.stages.append(row)
        return []

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Outgoing]:
        """Return what the time has made due."""
        if self.phase is SplitPhase.WAITING:
            return self._wait(now)
        if self.phase is SplitPhase.LOADING:
            return self._load(now)
        if self.phase is SplitPhase.RUNNING:
            self._count(now)
            return self._finish(now) or self._check(now) or self._replan(now) or self._feed(now)
        return []

    def _active(self) -> list[SplitMember]:
        return [self.members[name] for name in sorted(self.members) if self.members[name].active]

    def _wait(self, now: float) -> list[Outgoing]:
        """Plan when enough nodes are there, or some after a while."""
        active = self._active()
        waited = now - self._since
        if waited > self.settings.patience_s:
            return self._end(RunState.STOPPED, f"no plan with the nodes that are there for {waited:.0f} s")
        if not active or (len(active) < self.settings.workers and waited < self.settings.wait_s):
            return []
        names = frozenset(one.name for one in active)
        if names == self._planned:  # the planner refused these
            return []
        self._planned = names
        try:
            plan = self.settings.planner(self.devices())
        except ConfigError as error:
            if self.record.began is None and len(active) >= self.settings.workers:
                raise
            self.lines.append(f"the nodes that are there do not do: {error}; waiting for others")
            return []
        return self._deploy(plan, now)

    def devices(self) -> tuple[SplitDevice, ...]:
        """Return the nodes as the planner sees them."""
        own, link = self.settings.probe_s, self.settings.link_bytes_per_s
        return tuple(
            SplitDevice(one.name, one.probe_s / own if own and one.probe_s else 1.0, one.memory_bytes, link)
            for one in self._active()
        )

    def _deploy(self, plan: SplitTrainingPlan, now: float) -> list[Outgoing]:
        """Give out the stages of a plan, to go on from the last state of the whole model."""
        self.specs, stages, files = [], list[AssignedStage](), list[TrainingFile]()
        for stage in plan.stages:
            made, spec = self.writer.files(stage, plan.micro_batch)
            file = self.writer.put(encode_state(self.whole.cut(spec), stage.start, stage.stop))
            self.specs.append(spec)
            files.append(file)
            stages.append(AssignedStage(stage, made, StateSource(file)))
        self.saved = {self.whole.step: tuple(files)}
        self.lines.append(
            f"{plural(len(stages), 'stage')} on {plural(len(plan.workers), 'node')}: {describe_plan(plan)}"
        )
        self._planned_for = frozenset(one.name for one in self._active())
        return self._assign(with_neighbours(stages), plan.micro_batch, plan.micro_batches, self.whole.step, now)

    def _assign(
        self, stages: tuple[AssignedStage, ...], micro_batch: int, micro_batches: int, step: int, now: float
    ) -> list[Outgoing]:
        settings, job = self.settings, self.settings.job
        self.generation += 1
        assignment = SplitAssignment(
            run=job.run,
            author=job.author,
            generation=self.generation,
            step=step,
            stages=stages,
            micro_batch=micro_batch,
            micro_batches=micro_batches,
            optimizer=settings.optimizer,
        )
        feed = BatchFeed(self._data, settings.order, micro_batch, self.specs[0], self.specs[-1], settings.layout)
        self.steps = StepFeed(settings.topics, assignment, feed, step, step)
        self.record.go_back(step)
        self.phase, self._since, self._progressed_at = SplitPhase.LOADING, now, now
        self._states.begin(self.specs)
        self.copies.begin(step)
        self.committed = step
        self.writer.publish(self._fetched())
        return [self._assignment_message()]

    def _fetched(self) -> list[TrainingFile]:
        """Return the states that workers fetch, since none of them has them."""
        stages = self.assignment.stages if self.assignment is not None else ()
        return [one.state.file for one in stages if not one.state.holder]

    def _load(self, now: float) -> list[Outgoing]:
        """Begin when all have loaded their stages; leave out those that do not in time."""
        late = [name for name in self.assigned if self.members[name].loaded < self.generation]
        if not late:
            self.phase, self.state, self._progressed_at = SplitPhase.RUNNING, RunState.RUNNING, now
            self.record.began = now if self.record.began is None else self.record.began
            return self.writer.withdraw(self._fetched())
        for one in self.steps.assignment.stages if self.steps is not None else ():
            holder = self.members.get(one.state.holder)
            known = {held.sha256 for held in holder.held} if holder is not None else set()
            if holder is not None and holder.generation == self.generation and one.state.file.sha256 not in known:
                return self._recover(f"{holder.name} has no state of step {self.counted} any more", now)
        silent = [name for name in late if now - self.members[name].heard_at > 2 * self.settings.grace_s]
        if now - self._since >= LOAD_S:
            silent = late
        if not silent:
            return []
        for name in silent:
            self.members[name].absent = True
        return self._recover(f"{', '.join(silent)} did not load in {now - self._since:.0f} s", now)

    def _feed(self, now: float) -> list[Outgoing]:
        """Give micro-batches as far as the stages take them."""
        sent: list[Outgoing] = []
        steps = self.steps
        assert steps is not None
        stop_at = self.copies.stop_at(self.stop_at)
        while steps.step < stop_at and steps.ready():
            if steps.at_start:
                wanted = now - self._others_since >= SETTLE_S
                steps.flags = self.copies.flags(steps.step, now, self.committed, self.stop_at, replan=wanted)
                stop_at = self.copies.stop_at(self.stop_at)
            sent += steps.give(self.committed)
        self.record.sent_bytes += sum(len(one.payload) for one in sent)
        return sent

    def _count(self, now: float) -> None:
        """Count the steps that all stages have done."""
        assert self.steps is not None
        order = self.settings.order
        for step, losses in self.steps.take_counted():
            samples = order.count(step)
            loss, correct = math.fsum(one.loss for one in losses), sum(one.correct for one in losses)
            self.record.count(
                StepRow(step, order.epoch(step), samples, loss / samples, correct / samples, self.record.seconds(now))
            )
            self._recoveries = 0

    def _finish(self, now: float) -> list[Outgoing]:
        """End when the last step is counted and its state is here."""
        if self.counted < self.stop_at or self.whole.step < self.stop_at:
            return []
        done = self.stop_at >= self.settings.total_steps
        return self._end(RunState.FINISHED if done else RunState.STOPPED, self.problem)

    def _check(self, now: float) -> list[Outgoing]:
        """Find workers that are silent, and a run in which nothing comes any more."""
        grace = self.settings.grace_s
        for name in self.assigned:
            member = self.members[name]
            if now - member.heard_at > grace + _SILENT_OPERATIONS * member.longest_s:
                member.absent = True
                return self._recover(f"{name} was not heard for {now - member.heard_at:.1f} s", now)
        step_s = self.record.step_s()
        stall_s = 4 * grace + _STALL_STEPS * step_s if step_s else max(4 * grace, self.settings.patience_s)
        if now - self._progressed_at > stall_s:
            return self._recover(f"nothing came for {now - self._progressed_at:.1f} s", now)
        return []

    # --- other nodes --------------------------------------------------------------------------------------------------

    def _replan(self, now: float) -> list[Outgoing]:
        """Plan anew when other nodes are there than the plan was made for, between two steps."""
        names = frozenset(one.name for one in self._active())
        if names == self._planned_for:
            self._others_since = math.inf
        elif self._others_since == math.inf:
            self._others_since = now
        at = self.copies.replan_at
        if at < 0 or self.whole.step < at or self.counted < at:
            return []
        self.copies.replan_at, self._others_since, self._planned_for = -1, math.inf, names
        assignment = self.assignment
        assert assignment is not None
        try:
            plan = self.settings.planner(self.devices())
        except ConfigError as error:
            self.lines.append(f"the plan stays: {error}")
            return []
        if plan_shape(plan) == plan_shape(assignment.plan):
            return []
        self.lines.append("other nodes are there: a new plan, between two steps")
        return self._deploy(plan, now)

    # --- losses -------------------------------------------------------------------------------------------------------

    def _without(self, name: str, reason: str, now: float) -> list[Outgoing]:
        """Go on without a worker."""
        if name not in self.assigned or self.phase not in (SplitPhase.LOADING, SplitPhase.RUNNING):
            return []
        return self._recover(reason, now)

    def _recover(self, reason: str, now: float) -> list[Outgoing]:
        """Go back to the last step whose states are here, with the workers that are left."""
        assignment = self.assignment
        assert assignment is not None
        self._recoveries += 1
        counted = self.counted
        if self._recoveries > _MOST_RECOVERIES:
            return self._end(RunState.STOPPED, f"{reason}; {_MOST_RECOVERIES} times in a row no step was done")
        # Workers drop what is older, and say so only later.
        alive = {one.name: [held for held in one.held if held.step >= self.committed] for one in self._active()}
        spares = [one.name for one in self._by_memory() if one.name not in self.assigned]
        self._planned = self._planned_for = frozenset()
        try:
            found = plan_recovery(assignment.stages, alive, self.saved, spares, self._fits)
        except HarEdgeError as error:
            back = self.whole.step
            self._note(reason, counted, back, now)
            self.lines.append(f"{reason}; {error}")
            self.steps, self.phase, self._since = None, SplitPhase.WAITING, now
            self.record.go_back(back)
            return []
        self._note(reason, counted, found.step, now)
        return self._assign(found.stages, assignment.micro_batch, assignment.micro_batches, found.step, now)

    def _note(self, reason: str, counted: int, back: int, now: float) -> None:
        self.record.recoveries.append(RecoveryRow(reason, counted, back, self.record.seconds(now), -1.0))
        self.lines.append(
            f"{reason}; back from step {counted} to {back}: {plural(counted - back, 'step')} computed again"
        )

    def _by_memory(self) -> list[SplitMember]:
        return sorted(self._active(), key=lambda one: (-one.memory_bytes, one.probe_s, one.name))

    def _fits(self, name: str, numbers: tuple[int, ...]) -> bool:
        """Return whether a worker has memory for these stages together, as far as that is known."""
        assignment = self.assignment
        assert assignment is not None
        limit = self.members[name].memory_bytes
        needed = needed_bytes(self.specs, [one.stage for one in assignment.stages], numbers, self.settings.optimizer)
        return not limit or needed <= limit

    # --- copies -------------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Find the last step whose state each stage has twice, or once where nobody else is there."""
        assignment = self.assignment
        if assignment is None:
            return
        held: dict[tuple[int, int, int], set[str]] = {}
        for one in self._active():
            for state in one.held:
                held.setdefault((state.start, state.stop, state.step), set()).add(one.name)
        steps = {step for _, _, step in held if step > self.committed}
        for step in sorted(steps, reverse=True):
            if all(
                len(held.get((one.stage.start, one.stage.stop, step), ())) >= (2 if one.neighbour else 1)
                for one in assignment.stages
            ):
                self.committed = step
                return

    def _take_saved(self, message: StateMessage, now: float) -> None:
        """Take a part of a state for the checkpoint; keep the whole when all stages are here."""
        if message.held.step in self.saved:
            return
        self._progressed_at = now
        try:
            found = self._states.add(message)
        except ModelError as error:
            self.lines.append(f"the state after step {message.held.step} is not kept: {error}")
            return
        if found is not None:
            self.whole = found.whole
            if found.problem:  # the states of before stay here, and workers have those of this step
                self.lines.append(f"the state after step {self.whole.step} is held in memory only: {found.problem}")
            else:
                self.saved = {self.whole.step: found.files}
            self.committed, self.copies.save_asked = max(self.committed, self.whole.step), -1
            self.checkpoints.append(self.whole)

    # --- the end ------------------------------------------------------------------------------------------------------

    def halt(self, reason: str, now: float) -> None:
        """Stop after the steps that are under way, with the state of the last one saved."""
        if self.ended or self.problem:
            return
        self.problem = reason
        self.lines.append(f"{reason}; the state after the steps under way is saved")
        if self.phase is not SplitPhase.RUNNING or self.steps is None:
            self._end(RunState.STOPPED, reason)
            return
        # The next step that is begun is the last one, since those under way were not told to save.
        self.stop_at = min(self.stop_at, self.steps.step + (1 if self.steps.at_start else 2))

    def _end(self, state: RunState, problem: str) -> list[Outgoing]:
        self.phase, self.state, self.problem = SplitPhase.ENDED, state, problem
        if problem:
            self.lines.append(problem)
        return []

    @property
    def detail(self) -> str:
        """The state of the run in words, beside its figures."""
        return self.problem or ("" if self.phase is SplitPhase.RUNNING else self.phase.value)

    def progress(self, time: float) -> TrainingProgress:
        """Return how far the run is, for people; `time` is that of the wall clock."""
        return split_progress(self, time)
