"""The state of a run as a checkpoint, its progress, and the choice and description of its mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from har_edge.errors import ConfigError, ModelError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.rates import AUTO as RATE_AUTO
from har_edge.learning.optimizers.rates import with_steps
from har_edge.learning.server.account import SampleAccount
from har_edge.learning.server.aggregation import AveragingAggregator, GradientAggregator
from har_edge.learning.server.checkpoints import VERSION, Checkpoint, bytes_of, vector_of
from har_edge.learning.server.members import WorkerRecord
from har_edge.learning.server.modes import ModeChoice, TrainingCosts, TrainingMode, choose_mode
from har_edge.learning.server.recipes import choose_optimizer, choose_server_optimizer, explain_recipe
from har_edge.learning.server.settings import ServerSettings
from har_edge.learning.server.shares import ShareRule
from har_edge.learning.updates.compression import make_compressor
from har_edge.protocol.training import TrainingProgress
from har_edge.units import plural

if TYPE_CHECKING:
    from har_edge.learning.server.server import TrainingServer

# The packing of updates that is chosen with the mode.
AUTO = "auto"


def pick_mode(
    settings: ServerSettings, members: Sequence[WorkerRecord], packed_bytes: Callable[[str], int]
) -> ModeChoice:
    """Return the mode that was asked for, or that the measured speeds and the link speak for."""
    if settings.mode is TrainingMode.SYNC:
        return ModeChoice(TrainingMode.SYNC, 1, "as asked", len(members))
    job, dense = settings.job, 4 * settings.job.parameters
    auto = settings.job.compress == AUTO
    update = packed_bytes("none" if auto else settings.job.compress)
    local = 2 * packed_bytes("float16") if auto and len(members) > 1 else dense + update
    slowest = min((one.samples_per_s for one in members if one.samples_per_s > 0), default=0.0)
    costs = TrainingCosts(
        step_s=job.batch / slowest if slowest else 0.1,
        batch=job.batch,
        workers=len(members),
        samples=sum(one.samples for one in job.blocks) or sum(one.own_samples for one in members),
        sent_bytes=dense,
        update_bytes=update,
        link_bytes_per_s=settings.link_bytes_per_s,
        local_bytes=local,
    )
    found = choose_mode(costs)
    if settings.mode is TrainingMode.AUTO:
        return found
    return ModeChoice(settings.mode, settings.local_steps or found.local_steps, "as asked", len(members))


def set_up(server: TrainingServer) -> None:
    """Choose the mode for the workers that are there, unless the run goes on, and what follows from it."""
    settings, job, pool = server.settings, server.settings.job, server.pool
    if not server.restored:
        server.choice = pick_mode(settings, pool.active, lambda compress: _packed_bytes(server, compress))
        pool.begin_epoch()
    if job.compress == AUTO and server.is_local and server.choice.workers > 1:
        server.compress = "float16"
        server.packing = make_compressor(server.compress, job.parameters)
    for member in pool.active:
        pool.add_own(member)
    if not server.restored:
        server.batch = settings.global_batch or job.batch * len(pool.active)
        steps = -(-pool.account.total // server.batch) * settings.epochs
        _choose_optimizers(server, steps)
    if not server.is_local:
        server.optimizer = server.optimizer or make_optimizer(server.optimizer_text, job.parameters)
        server.aggregator = GradientAggregator(server.optimizer)
    elif server.server_text:
        server.optimizer = server.optimizer or make_optimizer(server.server_text, job.parameters)
        server.aggregator = AveragingAggregator(server.optimizer)
    by_speed, least_s = settings.by_speed, settings.least_budget_s
    server.rule = ShareRule(server.choice, job.batch, settings.global_batch, by_speed, job.mask, least_s)


def _choose_optimizers(server: TrainingServer, steps: int) -> None:
    settings, mode = server.settings, server.choice.mode
    found = choose_optimizer(settings.optimizer, mode, server.batch, server.compress, decays=settings.decays)
    server.optimizer_text = with_steps(found, steps)
    server.server_text = settings.server_optimizer if mode is TrainingMode.LOCAL else ""
    if settings.optimizer == RATE_AUTO and found.startswith("momentum"):
        chooses = not settings.server_optimizer and not settings.job.noise  # momentum would keep noise up
        server.server_text = (
            choose_server_optimizer(mode, server.batch, server.choice.workers) if chooses else server.server_text
        )
        steps_too = chooses and bool(server.server_text)
        server.lines.append(explain_recipe(mode, server.batch, server_steps=steps_too))
    if settings.server_optimizer and not server.server_text:
        server.lines.append(f"no optimizer steps by mean changes in mode {mode.value}: {settings.server_optimizer}")


def _packed_bytes(server: TrainingServer, compress: str) -> int:
    """Return the bytes of a vector as it is packed, from packing one."""
    return len(make_compressor(compress, server.settings.job.parameters).encode(server.weights).data)


def describe(server: TrainingServer) -> str:
    """Return the mode of a run in words, with why it was chosen."""
    choice, job = server.choice, server.settings.job
    steps = f"{plural(choice.local_steps, 'step')} of {job.batch} samples a round on each, global batch {server.batch}"
    how = {
        TrainingMode.SYNC: f"synchronous, {server.batch} samples a step",
        TrainingMode.LOCAL: f"local, {steps}",
        TrainingMode.STALE: f"local without waiting, {steps}, at most {server.settings.staleness} rounds behind",
        TrainingMode.AUTO: "not chosen yet",
    }[choice.mode]
    sends = f"updates {'masked' if job.mask else server.compress}; {server.optimizer_text}"
    if server.server_text:
        sends += f"; server {server.server_text}"
    return f"{plural(len(server.pool.active), 'worker')}; {how} ({choice.reason}); {sends}"


def save_run(server: TrainingServer, now: float) -> Checkpoint:
    """Return the state of a run; samples that are out with tasks are free in it, since their updates are not."""
    pool, record = server.pool, server.record
    whole = SampleAccount(dict(pool.account.sizes), dict(pool.account.homes))
    free = [one for ranges in pool.account.free.values() for one in ranges]
    free += [one for ranges in pool.account.out.values() for one in ranges]
    whole.restore(sorted(free), pool.account.counted, pool.account.skipped)
    state = server.optimizer.state() if server.optimizer is not None else {}
    steps = state.pop("step", 0)
    assert isinstance(steps, int)
    return Checkpoint(
        version=VERSION,
        settings=server.settings.hash,
        run=server.settings.job.run,
        round=pool.round,
        epoch=server.epoch,
        task=server.task,
        total=record.total,
        seconds=record.seconds(now),
        mode=server.choice.mode.value,
        local_steps=server.choice.local_steps,
        optimizer=server.optimizer_text,
        server_optimizer=server.server_text,
        workers=server.choice.workers,
        weights=bytes_of(server.weights),
        steps=steps,
        state={name: bytes_of(vector) for name, vector in state.items() if not isinstance(vector, int)},
        free=tuple(one for ranges in whole.free.values() for one in ranges),
        counted=whole.counted,
        skipped=whole.skipped,
        homes=dict(whole.homes),
        sizes=dict(whole.sizes),
        batch=server.batch,
        speeds={name: one.samples_per_s for name, one in pool.members.items()},
        held={name: tuple(sorted(one.held)) for name, one in pool.members.items()},
        rounds=tuple(record.rounds),
        epochs=tuple(record.epochs),
        privacy=server.privacy.state() if server.privacy is not None else {},
    )


def restore_run(server: TrainingServer, found: Checkpoint) -> None:
    """Bring a server that has not begun into the state of a checkpoint. Raises ModelError where it does not fit."""
    blocks = server.settings.job.blocks
    if not server.settings.job.own and found.sizes != {index: one.samples for index, one in enumerate(blocks)}:
        raise ModelError("the checkpoint was made with other blocks of samples; begin anew with --fresh")
    try:
        mode, _ = TrainingMode(found.mode), make_optimizer(found.optimizer, 1)
        stepping = found.optimizer if mode is TrainingMode.SYNC else found.server_optimizer
        optimizer = make_optimizer(stepping, server.settings.job.parameters) if stepping else None
    except (ValueError, ConfigError) as error:
        raise ModelError(f"the checkpoint is damaged: {error}; begin anew with --fresh") from None
    account = SampleAccount(dict(found.sizes), dict(found.homes))
    account.restore(found.free, found.counted, found.skipped)
    server.weights[:] = vector_of(found.weights)
    server.choice = ModeChoice(mode, found.local_steps, "as before", found.workers)
    server.optimizer_text, server.server_text = found.optimizer, found.server_optimizer
    server.epoch, server.task, server.optimizer = found.epoch, found.task, optimizer
    if server.optimizer is not None:
        state = {name: vector_of(data) for name, data in found.state.items()}
        server.optimizer.load_state({"step": found.steps, **state})
    pool, record = server.pool, server.record
    pool.account, pool.round = account, found.round
    pool.known = {name: (speed, set(found.held.get(name, ()))) for name, speed in found.speeds.items()}
    record.rounds, record.epochs = list(found.rounds), list(found.epochs)
    record.total, record.before_s = found.total, found.seconds
    server.batch, server.restored = found.batch, True
    if server.privacy is not None and found.privacy:
        server.privacy.load_state(found.privacy)
        noise = server.settings.job.noise
        server.privacy.spend(noise, noise)  # the round that was under way, of which nothing is known


def progress_of(server: TrainingServer, time: float) -> TrainingProgress:
    """Return how far a run is, for people; `time` is that of the wall clock."""
    settings, record, account = server.settings, server.record, server.pool.account
    figures, evaluated = settings.figures, record.evaluated
    return TrainingProgress(
        run=settings.job.run,
        author=settings.job.author,
        state=server.state,
        time=time,
        model=figures.model,
        round=server.round,
        epoch=min(server.epoch, settings.epochs),
        epochs=settings.epochs,
        counted=account.total if server.epoch > settings.epochs else account.counted,
        samples=account.total,
        loss=record.loss,
        train_accuracy=record.train_accuracy,
        accuracy=evaluated.accuracy if evaluated else None,
        accuracy_epoch=evaluated.epoch if evaluated else 0,
        held_out=figures.held_out,
        samples_per_s=record.samples_per_s,
        sent_bytes=record.sent_bytes,
        received_bytes=record.received_bytes,
        dropped=record.dropped,
        mode=f"{server.choice.mode.value}:{server.choice.local_steps}",
        data=figures.data,
        real=figures.real,
        broker=figures.broker,
        detail=(server.problem or server.detail)[:400],
        privacy=privacy_of(server),
        workers=tuple(server.pool.members[name].progress() for name in sorted(server.pool.members)),
    )


def privacy_of(server: TrainingServer) -> str:
    """Return in words what hides the updates of single workers; "" for nothing."""
    masked = server.masks is not None
    if server.privacy is not None:
        return server.privacy.describe(masked=masked)
    return "updates are masked: server and broker see their sums alone" if masked else ""
