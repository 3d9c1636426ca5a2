"""The server of a training: a pure machine that gives samples out, adds what comes back, and goes on without the lost.

Messages and the time go in, messages come out. `evaluations` are measured and `checkpoints` stored by whoever runs it,
`lines` are for people. A sample counts once an epoch (learning/server/account.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from har_edge.errors import MessageError
from har_edge.learning.masking.rounds import MaskedRounds, MaskedUpdate
from har_edge.learning.optimizers.optimizers import Optimizer
from har_edge.learning.optimizers.rates import decay_between
from har_edge.learning.privacy import PrivacyAccountant, UpdatePrivacy
from har_edge.learning.server.aggregation import Aggregator, AveragingAggregator, Contribution, add_share
from har_edge.learning.server.checkpoints import Checkpoint
from har_edge.learning.server.intake import NotFinite, accept, accept_masked, is_awaited
from har_edge.learning.server.members import WorkerRecord
from har_edge.learning.server.modes import ModeChoice, TrainingMode
from har_edge.learning.server.round_messages import give_round, repeated_messages, task_messages
from har_edge.learning.server.run_record import EvaluationRequest, RunRecord
from har_edge.learning.server.run_state import AUTO, describe, progress_of, restore_run, save_run, set_up
from har_edge.learning.server.settings import ServerSettings
from har_edge.learning.server.shares import ShareRule
from har_edge.learning.server.worker_pool import UNABLE_S, WorkerPool
from har_edge.learning.updates.compression import make_compressor
from har_edge.learning.updates.vectors import Vector
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import HeartbeatEvent, TrainingEvent, Unreadable, decode
from har_edge.protocol.masks import LEAST_MASKED, MaskPart
from har_edge.protocol.topics import Kind
from har_edge.protocol.training import (
    RunState,
    SampleRange,
    TrainingJob,
    TrainingProgress,
    TrainingTask,
    Update,
    WorkerReport,
    encode_training,
)
from har_edge.units import plural

# A round is sent to a worker so often again that says it missed it: each word of it would else cost all weights.
MAX_REPEATS = 8
# Rounds in a row whose updates were all not finite, after which a run stops: it does not mend itself.
MAX_DIVERGED = 3


class TrainingServer:
    """One run; `weights` are changed in place. `rival` is the author of another training of this name that appeared."""

    def __init__(self, settings: ServerSettings, weights: Vector, now: float) -> None:
        self.settings, self.weights = settings, weights
        self.state, self.detail, self.problem, self.rival = RunState.WAITING, "", "", ""
        self.record = RunRecord()
        self.pool = WorkerPool(settings.job, self.record)
        self.epoch, self.choice = 1, ModeChoice(TrainingMode.AUTO, 1, "")
        self.optimizer: Optimizer | None = None
        self.optimizer_text, self.server_text, self.task, self.restored = settings.optimizer, "", 1, False
        self.privacy = PrivacyAccountant(settings.delta) if settings.job.noise else None
        self.evaluations: list[EvaluationRequest] = []
        self.checkpoints: list[Checkpoint] = []
        self.lacking: list[str] = []  # files that a worker did not get
        self.batch = 0
        self.masks = MaskedRounds(self) if settings.job.mask else None
        self._contributions, self._counted = dict[str, Contribution](), list[SampleRange]()
        self.compress = "none" if settings.job.compress == AUTO else settings.job.compress
        self.packing = make_compressor("none", settings.job.parameters)
        self.aggregator: Aggregator = AveragingAggregator()
        self.rule = ShareRule(self.choice, settings.job.batch, None, by_speed=False)
        self._since, self._alone_since, self._saved_at = now, now, now
        self._applied, self._diverged, self._not_finite = 0, 0, 0

    @property
    def round(self) -> int:
        """The round that runs, from 0."""
        return self.pool.round

    @property
    def lines(self) -> list[str]:
        """The news, for people; whoever prints it empties it."""
        return self.pool.lines

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (RunState.FINISHED, RunState.STOPPED)

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        settings = self.settings
        topics, run = settings.topics, settings.job.run
        levels = [topics.training(run, level, "+") for level in ("worker", "update", *(["mask"] * settings.job.mask))]
        return [*levels, topics.training(run, "job"), topics.heartbeat("+")]

    # --- what comes ---------------------------------------------------------------------------------------------------

    def handle(self, delivery: Delivery, now: float) -> list[Outgoing]:
        """Take a message; return what is to be sent."""
        event, author, members = decode(delivery, self.settings.topics), self.settings.job.author, self.pool.members
        match event:
            case HeartbeatEvent(retained=False) if event.node in members:
                members[event.node].heartbeat_at = now
            case Unreadable(topic=topic) if topic is not None and topic.kind is Kind.TRAINING:
                self.pool.reject(topic.levels[-1], event.reason)
            case TrainingEvent(message=TrainingJob() as job) if self._is_younger(job):
                self.rival = job.author
            case TrainingEvent(topic=topic, message=job) if topic.levels[1] == "job":
                # Nodes have left for an older server's job, or think that this training has ended: say it again.
                return [] if isinstance(job, TrainingJob) and job.author == author else [self.job_message()]
            case TrainingEvent(message=WorkerReport() as report) if report.author == author:
                return self._note_report(report, now)
            case TrainingEvent(message=Update() as update):
                return self._note_update(update, len(delivery.payload), now)
            case TrainingEvent(message=MaskPart() as part) if self.masks is not None:
                return self._note_mask(part, len(delivery.payload), now)
        return []

    def _is_younger(self, job: TrainingJob) -> bool:
        """Return whether a job of this name is that of a server which began later: of two, the younger one stays.

        An older one may have been left by a server that was killed. Two have one session, so that each takes the
        connection from the other, and may hear of its job only as a retained one.
        """
        own = self.settings.job
        return (job.started, job.author) > (own.started, own.author)

    def _note_report(self, report: WorkerReport, now: float) -> list[Outgoing]:
        if report.lacks:
            self.lacking.append(report.lacks)
        joined = self.pool.note_report(report)
        if joined is not None and self.state is RunState.RUNNING:
            self.lines.append(f"{joined.name} joins in round {self.round + 1}")
            self.pool.add_own(joined)
        member = self.pool.members.get(report.worker)
        pending = member.pending if member is not None else None
        if pending is not None and report.heard < pending.number and joined is None and pending.repeats < MAX_REPEATS:
            pending.repeats += 1
            return task_messages(self, {report.worker: pending.task}, pending.round, alone=True)  # what it missed
        missed = self.masks.again(report.worker) if self.masks is not None and joined is None else []
        return missed + self._advance(now)

    def _note_update(self, update: Update, size: int, now: float) -> list[Outgoing]:
        member = self._sender(update, size)
        if member is None:
            return []
        if not is_awaited(member, update):
            if update.task != member.last_task:  # that one came twice, which QoS 1 permits
                self.pool.reject(member.name, "an update of an old round came", late=True)
            self.pool.hear(member)
            return self._advance(now)
        try:
            if not self._accept(member, update, now):
                return []
        except MessageError as error:
            self._not_finite += isinstance(error, NotFinite)
            self.pool.reject(member.name, str(error))
        return self._advance(now)

    def _note_mask(self, part: MaskPart, size: int, now: float) -> list[Outgoing]:
        if self.masks is None or self._sender(part, size) is None:
            return []
        self.masks.take(part)
        return self._advance(now)

    def _sender(self, message: Update | MaskPart, size: int) -> WorkerRecord | None:
        """Return the worker that sent a message, and note its bytes; None for nobody of this run."""
        member = self.pool.members.get(message.worker)
        if member is None or message.author != self.settings.job.author:
            self.record.dropped += 1
            return None
        self.record.received_bytes += size
        member.received_bytes += size
        return member

    def _accept(self, member: WorkerRecord, update: Update, now: float) -> bool:
        """Take the update for the task of a worker; return False until all parts are here."""
        if self.masks is not None:
            words = accept_masked(member, update, self.settings.job)
            if words is not None:
                self.masks.take_update(member, words, MaskedUpdate(update.samples, update.seconds))
            return words is not None
        contribution = accept(member, update, self.settings.job, self.compress)
        if contribution is not None:
            self._count(member, contribution, update, now)
        return contribution is not None

    def _count(self, member: WorkerRecord, contribution: Contribution, update: Update, now: float) -> None:
        assert member.pending is not None
        base = member.pending.round
        counted = self.credit(member, member.pending.task, contribution.samples, update.seconds)
        member.pending, member.last_task, member.strikes = None, update.task, 0
        if self.choice.mode is TrainingMode.STALE:
            self._apply_at_once(contribution, base, now)
        else:
            self._contributions[member.name] = contribution
            self._counted += counted

    def credit(self, member: WorkerRecord, task: TrainingTask, samples: int, seconds: float) -> tuple[SampleRange, ...]:
        """Count samples of a task for its worker; return which."""
        counted = self.pool.account.count(task.number, samples)
        member.measured(samples, seconds)
        member.samples += samples
        return counted

    def take_sum(self, total: Contribution) -> None:
        """Take the sum of a masked round, whose samples are counted."""
        self._contributions[""] = total

    # --- what the time brings -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Outgoing]:
        """Do what the time has made due; return what is to be sent."""
        if self.state is RunState.RUNNING:
            self.pool.look(now)
            if self.masks is not None:
                self.masks.look(now)
            here, settings = len(self.pool.active), self.settings
            if here >= self.least_workers:
                self._alone_since, self.detail = now, ""
            elif here:
                self.detail = f"{plural(here, 'worker')} here, a masked sum needs {LEAST_MASKED}; waiting for more"
            else:
                self.detail = "no worker is here; waiting for one"
            if now - self._alone_since > settings.patience_s:
                few = f"fewer than {LEAST_MASKED} workers were" if here else "no worker was"
                self.halt(f"{few} heard for {settings.patience_s:g} s", now)
            return self._advance(now)
        if self.state is RunState.WAITING:
            return self._wait(now)
        return []

    def _wait(self, now: float) -> list[Outgoing]:
        settings, here, waited = self.settings, len(self.pool.active), now - self._since
        least = self.least_workers
        if here >= settings.workers or (here >= least and waited >= settings.wait_s):
            return self._begin(now)
        self.detail = f"{here} of {plural(settings.workers, 'worker')} ready"
        if here < least and self.pool.unable and waited > settings.wait_s + min(UNABLE_S, settings.patience_s):
            self.halt(self.pool.obstacle, now)
        elif waited > settings.wait_s + settings.patience_s:
            came = f"{plural(here, 'worker')} came in {waited:.0f} s, and a masked sum needs {least}"
            none = f"no worker came in {waited:.0f} s"
            self.halt(f"{came if here else none}; start `har-edge node` on the devices", now)
        return []

    @property
    def least_workers(self) -> int:
        """The fewest workers that a round is made with."""
        return 1 if self.masks is None else LEAST_MASKED

    def halt(self, problem: str, now: float) -> None:
        """End the run before its last epoch; its state is kept."""
        if self.ended:
            return
        if self.state is RunState.RUNNING:
            for member in self.pool.members.values():
                self.pool.release(member)
            if self.masks is not None:
                self.masks.abandon()
            self.pool.account.uncount(self._counted)  # their updates wait for the others of the round
            self._counted.clear()
            self._contributions.clear()
            self.checkpoints.append(save_run(self, now))
        self.state, self.problem, self.detail = RunState.STOPPED, problem, problem

    def _begin(self, now: float) -> list[Outgoing]:
        set_up(self)
        self.lines.append(describe(self))
        self.state, self.detail = RunState.RUNNING, ""
        self.record.begin(now)
        self._saved_at = self._alone_since = now
        return self._advance(now)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Outgoing]:
        """End the round if nothing is awaited, and begin the next; in STALE give each idle worker its next task."""
        pool, masks, stale = self.pool, self.masks, self.choice.mode is TrainingMode.STALE
        if masks is not None:
            sent = masks.advance(now)
            if masks.current is not None:
                return sent
        while self.state is RunState.RUNNING and (stale or not pool.awaited):
            self._end_round(now)
            if pool.account.ended and not self._end_epoch(now):
                break
            self._save(now)
            if self.state is not RunState.RUNNING or len(pool.active) < self.least_workers:
                break
            tasks = give_round(self, now)
            if tasks:
                return task_messages(self, tasks, self.round, alone=stale)
            if pool.awaited or not (pool.skip_absent() or (masks is not None and pool.skip_rest())):
                break
        return []

    def _end_round(self, now: float) -> None:
        if self._contributions:
            if isinstance(self.aggregator, AveragingAggregator):
                self.aggregator.decay = self._decay(self._contributions.values())
            self.aggregator.apply(self.weights, self._contributions)
            self._spend()
            scored = self.privacy is None
            self.record.add_round(self.round, self.epoch, self._contributions.values(), now, scored=scored)
            self._contributions, self._diverged, self._not_finite = {}, 0, 0
            self._counted.clear()
            self.pool.round += 1
        elif self._not_finite and not self.pool.awaited:
            self._diverged, self._not_finite = self._diverged + 1, 0
            if self._diverged >= MAX_DIVERGED:
                self.halt("the training diverges: all updates were not finite; begin anew with a lower rate", now)

    def _spend(self) -> None:
        """Note the privacy that the updates of a round spent."""
        counted = [samples for one in self._contributions.values() for samples in one.shares if samples]
        if self.privacy is not None and counted:
            job, sums = self.settings.job, self.choice.mode is TrainingMode.SYNC
            shares = [1.0] * len(counted) if sums else list(map(float, counted))
            self.privacy.spend(UpdatePrivacy(job.clip, job.noise).multiplier(shares), job.noise)

    def _apply_at_once(self, contribution: Contribution, base: int, now: float) -> None:
        """Add the change of one worker, by its share of a round and less the older it is (Xie et al. 2019)."""
        workers = max(1, len(self.pool.active))
        if contribution.samples:
            whole = self.choice.local_steps * self.settings.job.batch * workers
            share = min(1.0, contribution.samples / whole) / (1 + max(0, self.round - base))
            change = contribution.vector - np.float32(self._decay([contribution])) * self.weights
            add_share(self.weights, change, share)
            self.record.add_round(self.round, self.epoch, [contribution], now)
        self._applied += 1
        if self._applied >= workers:
            self._applied, self.pool.round = 0, self.round + 1

    def _decay(self, contributions: Iterable[Contribution]) -> float:
        """Return the part of the weights that the decay of a round takes, by the mean of its local steps."""
        shares = [samples for one in contributions for samples in one.shares]
        steps = sum(one * one for one in shares) / max(1, sum(shares)) / self.settings.job.batch
        return decay_between(self.optimizer_text, self.step, steps)

    def _end_epoch(self, now: float) -> bool:
        """Note the end of an epoch and begin the next; return whether there is one."""
        account = self.pool.account
        if account.total == 0:
            return True
        self.record.add_epoch(self.epoch, account.counted, account.skipped, now)
        self.evaluations.append(EvaluationRequest(self.epoch, self.weights.copy()))
        finished = self.epoch >= self.settings.epochs
        self.epoch += 1
        self.pool.begin_epoch()
        if finished:  # with more epochs a later run goes on from here
            self.state, self.detail = RunState.FINISHED, ""
            self.checkpoints.append(save_run(self, now))
            return False
        self._saved_at = -self.settings.checkpoint_s  # an epoch ends with a checkpoint
        return True

    def _save(self, now: float) -> None:
        if now - self._saved_at >= self.settings.checkpoint_s:
            self._saved_at = now
            self.checkpoints.append(save_run(self, now))

    @property
    def step(self) -> int:
        """How many steps of the global batch the run has made."""
        return self.record.total // max(1, self.batch)

    @property
    def is_local(self) -> bool:
        """Whether workers make steps of their own."""
        return self.choice.mode is not TrainingMode.SYNC

    # --- what others read and bring -----------------------------------------------------------------------------------

    def job_message(self) -> Outgoing:
        """Return the retained job."""
        job = self.settings.job
        return Outgoing(self.settings.topics.training(job.run, "job"), encode_training(job), retain=True)

    def again(self) -> list[Outgoing]:
        """Return what is to be said again after the connection was made anew: the tasks that are under way."""
        return repeated_messages(self)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises ModelError for one that does not fit."""
        restore_run(self, checkpoint)

    def progress(self, time: float) -> TrainingProgress:
        """Return how far the run is; `time` is that of the wall clock."""
        return progress_of(self, time)
