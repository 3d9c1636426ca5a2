"""The server of a training: a pure machine that gives samples out, adds what comes back, and goes on without the lost.

Messages and the time go in, messages come out. `evaluations` are measured and `checkpoints` stored by whoever runs it,
`lines` are for people. A sample counts once an epoch (learning/account.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from har_edge.errors import MessageError
from har_edge.learning.aggregation import Aggregator, AveragingAggregator, Contribution, GradientAggregator, add_share
from har_edge.learning.checkpoints import Checkpoint
from har_edge.learning.compression import make_compressor
from har_edge.learning.intake import NotFinite, accept, is_awaited
from har_edge.learning.members import PendingTask, WorkerRecord
from har_edge.learning.modes import ModeChoice, TrainingMode
from har_edge.learning.optimizers import Optimizer, make_optimizer
from har_edge.learning.privacy import PrivacyAccountant, UpdatePrivacy
from har_edge.learning.rates import constant_at, with_steps
from har_edge.learning.run_record import EvaluationRequest, RunRecord
from har_edge.learning.run_state import describe, pick_mode, progress_of, restore_run, save_run
from har_edge.learning.server_settings import ServerSettings
from har_edge.learning.shares import ShareRule, give_tasks
from har_edge.learning.vector_parts import VectorAssembly, split_vector
from har_edge.learning.vectors import Vector
from har_edge.learning.worker_pool import UNABLE_S, WorkerPool
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import HeartbeatEvent, TrainingEvent, Unreadable, decode
from har_edge.protocol.topics import Kind
from har_edge.protocol.training import (
    Round,
    RunState,
    SampleRange,
    TrainingJob,
    TrainingProgress,
    TrainingTask,
    Update,
    WorkerReport,
    encode_training,
)

# Rounds in a row whose updates were all not finite, after which a run stops: it does not mend itself.
MAX_DIVERGED = 3
# The most bytes of a packed vector against those of the plain one: indices, scales, headers.
_PACKED_MOST = 2.5


# The packing of updates that is chosen with the mode.
AUTO = "auto"


class TrainingServer:
    """One run; `weights` are changed in place. `rival` is the author of another training of this name that appeared."""

    def __init__(self, settings: ServerSettings, weights: Vector, now: float) -> None:
        self.settings, self.weights = settings, weights
        self.state, self.detail, self.problem, self.rival = RunState.WAITING, "", "", ""
        self.record = RunRecord()
        self.pool = WorkerPool(settings.job, self.record)
        self.epoch, self.choice = 1, ModeChoice(TrainingMode.AUTO, 1, "")
        self.optimizer: Optimizer | None = None
        self.optimizer_text, self.task, self.restored = settings.optimizer, 1, False
        self.privacy = PrivacyAccountant(settings.delta) if settings.job.noise else None
        self.evaluations: list[EvaluationRequest] = []
        self.checkpoints: list[Checkpoint] = []
        self.lacking: list[str] = []  # files that a worker did not get
        self.batch = 0
        self._contributions, self._counted = dict[str, Contribution](), list[SampleRange]()
        self.compress = "none" if settings.job.compress == AUTO else settings.job.compress
        self._packing = make_compressor("none", settings.job.parameters)
        self._aggregator: Aggregator = AveragingAggregator()
        self._rule = ShareRule(self.choice, settings.job.batch, None, by_speed=False)
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
        topics, run = self.settings.topics, self.settings.job.run
        levels = [topics.training(run, "worker", "+"), topics.training(run, "update", "+"), topics.training(run, "job")]
        return [*levels, topics.heartbeat("+")]

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
            case TrainingEvent(message=WorkerReport() as report) if report.author == author:
                return self._note_report(report, now)
            case TrainingEvent(message=Update() as update):
                return self._note_update(update, len(delivery.payload), now)
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
        if pending is not None and report.heard < pending.number and joined is None:
            return self._messages({report.worker: pending.task}, pending.round, alone=True)  # what it missed
        return self._advance(now)

    def _note_update(self, update: Update, size: int, now: float) -> list[Outgoing]:
        member = self.pool.members.get(update.worker)
        if member is None or update.author != self.settings.job.author:
            self.record.dropped += 1
            return []
        self.record.received_bytes += size
        member.received_bytes += size
        if not is_awaited(member, update):
            if update.task != member.last_task:  # that one came twice, which QoS 1 permits
                self.pool.reject(member.name, "an update of an old round came", late=True)
            self.pool.hear(member)
            return self._advance(now)
        try:
            contribution = accept(member, update, self.settings.job, self.compress)
        except MessageError as error:
            self._not_finite += isinstance(error, NotFinite)
            self.pool.reject(member.name, str(error))
            return self._advance(now)
        if contribution is None:
            return []
        self._count(member, contribution, update, now)
        return self._advance(now)

    def _count(self, member: WorkerRecord, contribution: Contribution, update: Update, now: float) -> None:
        assert member.pending is not None
        base = member.pending.round
        counted = self.pool.account.count(update.task, contribution.samples)
        member.pending, member.last_task, member.strikes = None, update.task, 0
        member.measured(contribution.samples, update.seconds)
        member.samples += contribution.samples
        if self.choice.mode is TrainingMode.STALE:
            self._apply_at_once(contribution, base, now)
        else:
            self._contributions[member.name] = contribution
            self._counted += counted

    # --- what the time brings -----------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Outgoing]:
        """Do what the time has made due; return what is to be sent."""
        if self.state is RunState.RUNNING:
            self.pool.look(now)
            if self.pool.active:
                self._alone_since, self.detail = now, ""
            else:
                self.detail = "no worker is here; waiting for one"
            if now - self._alone_since > self.settings.patience_s:
                self.halt(f"no worker was heard for {self.settings.patience_s:g} s", now)
            return self._advance(now)
        if self.state is RunState.WAITING:
            return self._wait(now)
        return []

    def _wait(self, now: float) -> list[Outgoing]:
        settings, here, waited = self.settings, len(self.pool.active), now - self._since
        if here >= settings.workers or (here and waited >= settings.wait_s):
            return self._begin(now)
        self.detail = f"{here} of {settings.workers} workers are ready"
        if not here and self.pool.unable and waited > settings.wait_s + min(UNABLE_S, settings.patience_s):
            self.halt(self.pool.obstacle, now)
        elif waited > settings.wait_s + settings.patience_s:
            self.halt(f"no worker came in {waited:.0f} s; start `har-edge node` on the devices", now)
        return []

    def halt(self, problem: str, now: float) -> None:
        """End the run before its last epoch; its state is kept."""
        if self.ended:
            return
        if self.state is RunState.RUNNING:
            for member in self.pool.members.values():
                self.pool.release(member)
            self.pool.account.uncount(self._counted)  # their updates wait for the others of the round
            self._counted.clear()
            self._contributions.clear()
            self.checkpoints.append(save_run(self, now))
        self.state, self.problem, self.detail = RunState.STOPPED, problem, problem

    def _begin(self, now: float) -> list[Outgoing]:
        settings, pool = self.settings, self.pool
        if not self.restored:
            self.choice = pick_mode(settings, pool.active, self._packed_bytes)
            pool.begin_epoch()
        if settings.job.compress == AUTO and self.choice.mode is not TrainingMode.SYNC and self.choice.workers > 1:
            self.compress = "float16"
            self._packing = make_compressor(self.compress, settings.job.parameters)
        for member in pool.active:
            pool.add_own(member)
        if not self.restored:
            self.batch = settings.global_batch or settings.job.batch * len(pool.active)
            steps = -(-pool.account.total // self.batch) * settings.epochs
            self.optimizer_text = with_steps(settings.optimizer, steps)
        if self.choice.mode is TrainingMode.SYNC:
            self.optimizer = self.optimizer or make_optimizer(self.optimizer_text, settings.job.parameters)
            self._aggregator = GradientAggregator(self.optimizer)
        self._rule = ShareRule(self.choice, settings.job.batch, settings.global_batch, settings.by_speed)
        self.lines.append(describe(self))
        self.state, self.detail = RunState.RUNNING, ""
        self.record.begin(now)
        self._saved_at = self._alone_since = now
        return self._advance(now)

    def _packed_bytes(self, compress: str) -> int:
        """Return the bytes of a vector as it is packed, from packing one."""
        return len(make_compressor(compress, self.settings.job.parameters).encode(self.weights).data)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Outgoing]:
        """End the round if nothing is awaited, and begin the next; in STALE give each idle worker its next task."""
        pool, stale = self.pool, self.choice.mode is TrainingMode.STALE
        while self.state is RunState.RUNNING and (stale or not pool.awaited):
            self._end_round(now)
            if pool.account.ended and not self._end_epoch(now):
                break
            self._save(now)
            if self.state is not RunState.RUNNING or not pool.active:
                break
            tasks = self._give(now)
            if tasks:
                return self._messages(tasks, self.round, alone=stale)
            if pool.awaited or not pool.skip_absent():
                break
        return []

    def _end_round(self, now: float) -> None:
        if self._contributions:
            self._aggregator.apply(self.weights, self._contributions)
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
        counted = [one.samples for one in self._contributions.values() if one.samples]
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
            add_share(self.weights, contribution.vector, share)
            self.record.add_round(self.round, self.epoch, [contribution], now)
        self._applied += 1
        if self._applied >= workers:
            self._applied, self.pool.round = 0, self.round + 1

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

    def _give(self, now: float) -> dict[str, TrainingTask]:
        """Give tasks to those that have none; in STALE to nobody who is too far ahead of the slowest."""
        pool = self.pool
        idle = [one.name for one in pool.active if one.pending is None]
        if self.choice.mode is TrainingMode.STALE:
            oldest = min((one.pending.round for one in pool.active if one.pending), default=self.round)
            if self.round - oldest >= self.settings.staleness:
                return {}
        tasks = give_tasks(self._rule, pool.active, pool.account, self.task, idle)
        self.task += len(idle)
        fetched = self._fetched_bytes(tasks)
        for name, task in tasks.items():
            wait_s = 2 * task.budget_s + self.settings.grace_s
            wait_s += 4 * (fetched + 8 * self.settings.job.parameters * len(tasks)) / self.settings.link_bytes_per_s
            assembly = VectorAssembly(int(_PACKED_MOST * 4 * self.settings.job.parameters) + 4096)
            pool.members[name].pending = PendingTask(task, self.round, now + wait_s, assembly)
        return tasks

    def _fetched_bytes(self, tasks: dict[str, TrainingTask]) -> int:
        """Return the bytes of blocks that workers must fetch for tasks, and note that they have them then."""
        fetched, blocks = 0, self.settings.job.blocks
        for name, task in tasks.items():
            held = self.pool.members[name].held
            fresh = {one.block for one in task.ranges} - held
            held |= fresh
            fetched += sum(blocks[block].size for block in fresh if block < len(blocks))
        return fetched

    def _messages(self, tasks: dict[str, TrainingTask], number: int, *, alone: bool) -> list[Outgoing]:
        """Return the messages that give tasks: one for all, or one for each."""
        if not alone:
            return self._round(tasks, number, None)
        return [one for name, task in tasks.items() for one in self._round({name: task}, number, name)]

    def _round(self, tasks: dict[str, TrainingTask], number: int, worker: str | None) -> list[Outgoing]:
        settings, job = self.settings, self.settings.job
        text = "" if self.choice.mode is TrainingMode.SYNC else constant_at(self.optimizer_text, self._step)
        sent = []
        for part in split_vector(self._packing.encode(self.weights)):
            message = Round(
                run=job.run,
                author=job.author,
                number=number,
                epoch=self.epoch,
                seed=job.seed,
                tasks=tasks,
                weights=part,
                optimizer=text,
                compress=self.compress,
            )
            payload = encode_training(message)
            self.record.sent_bytes += len(payload)
            sent.append(Outgoing(settings.topics.training(job.run, "round", worker), payload))
        return sent

    @property
    def _step(self) -> int:
        """How many steps of the global batch the run has made."""
        return self.record.total // max(1, self.batch)

    # --- what others read and bring -----------------------------------------------------------------------------------

    def job_message(self) -> Outgoing:
        """Return the retained job."""
        job = self.settings.job
        return Outgoing(self.settings.topics.training(job.run, "job"), encode_training(job), retain=True)

    def again(self) -> list[Outgoing]:
        """Return what is to be said again after the connection was made anew: the tasks that are under way."""
        pending: Iterable[WorkerRecord] = [one for one in self.pool.active if one.pending is not None]
        groups: dict[int, dict[str, TrainingTask]] = {}
        for one in pending:
            assert one.pending is not None
            groups.setdefault(one.pending.round, {})[one.name] = one.pending.task
        return [message for number, tasks in groups.items() for message in self._messages(tasks, number, alone=True)]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Raises ModelError for one that does not fit."""
        restore_run(self, checkpoint)

    def progress(self, time: float) -> TrainingProgress:
        """Return how far the run is; `time` is that of the wall clock."""
        return progress_of(self, time)
