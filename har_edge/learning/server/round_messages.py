"""The rounds of a server as messages: who gets which samples, until when, and the weights that it begins with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from har_edge.learning.optimizers.rates import constant_at
from har_edge.learning.server.members import PendingTask
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.shares import give_tasks
from har_edge.learning.updates.vector_parts import VectorAssembly, split_vector
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.training import Round, TrainingTask, encode_training

if TYPE_CHECKING:
    from har_edge.learning.server.server import TrainingServer

# The most bytes of a packed vector against those of the plain one: indices, scales, headers.
_PACKED_MOST = 2.5


def give_round(server: TrainingServer, now: float) -> dict[str, TrainingTask]:
    """Give tasks to those that have none; in STALE to nobody who is too far ahead of the slowest.

    A masked round begins with its tasks; none are given where they would go to fewer workers than hide each other.
    """
    pool, settings, masks = server.pool, server.settings, server.masks
    idle = [one.name for one in pool.active if one.pending is None]
    if server.choice.mode is TrainingMode.STALE:
        oldest = min((one.pending.round for one in pool.active if one.pending), default=server.round)
        if server.round - oldest >= settings.staleness:
            return {}
    if masks is not None:
        idle = masks.chosen(idle)
    tasks = give_tasks(server.rule, pool.active, pool.account, server.task, idle)
    server.task += len(idle)
    if len(tasks) < server.least_workers and masks is not None:
        for task in tasks.values():
            pool.account.give_back(task.number)
        return {}
    transfer_s = _transfer_s(server, tasks)
    if masks is not None and tasks:
        masks.begin(tasks, transfer_s, now)
    for name, task in tasks.items():
        # A masked round has deadlines of its own.
        deadline = now + 2 * task.budget_s + settings.grace_s + transfer_s if masks is None else math.inf
        assembly = VectorAssembly(int(_PACKED_MOST * 4 * settings.job.parameters) + 4096)
        pool.members[name].pending = PendingTask(task, server.round, deadline, assembly)
    return tasks


def _transfer_s(server: TrainingServer, tasks: dict[str, TrainingTask]) -> float:
    """Return the most seconds that blocks, weights and updates of tasks may travel, and note who has which blocks."""
    fetched, job = 0, server.settings.job
    for name, task in tasks.items():
        held = server.pool.members[name].held
        fresh = {one.block for one in task.ranges} - held
        held |= fresh
        fetched += sum(job.blocks[block].size for block in fresh if block < len(job.blocks))
    return 4 * (fetched + 8 * job.parameters * len(tasks)) / server.settings.link_bytes_per_s


def task_messages(
    server: TrainingServer, tasks: dict[str, TrainingTask], number: int, *, alone: bool
) -> list[Outgoing]:
    """Return the messages that give tasks: one for all, or one for each."""
    if not alone:
        return _round(server, tasks, number, None)
    return [one for name, task in tasks.items() for one in _round(server, {name: task}, number, name)]


def repeated_messages(server: TrainingServer) -> list[Outgoing]:
    """Return what is to be said again after the connection was made anew: the tasks that are under way."""
    groups: dict[int, dict[str, TrainingTask]] = {}
    for one in server.pool.active:
        if one.pending is not None:
            groups.setdefault(one.pending.round, {})[one.name] = one.pending.task
    sent = [one for number, tasks in groups.items() for one in task_messages(server, tasks, number, alone=True)]
    return sent + (server.masks.again() if server.masks is not None else [])


def _round(server: TrainingServer, tasks: dict[str, TrainingTask], number: int, worker: str | None) -> list[Outgoing]:
    settings, job, masks = server.settings, server.settings.job, server.masks
    text = "" if server.choice.mode is TrainingMode.SYNC else constant_at(server.optimizer_text, server.step)
    sent = []
    for part in split_vector(server.packing.encode(server.weights)):
        message = Round(
            run=job.run,
            author=job.author,
            number=number,
            epoch=server.epoch,
            seed=job.seed,
            tasks=tasks,
            weights=part,
            optimizer=text,
            compress=server.compress,
            mask=masks.current.terms if masks is not None and masks.current is not None else None,
        )
        payload = encode_training(message)
        server.record.sent_bytes += len(payload)
        sent.append(Outgoing(settings.topics.training(job.run, "round", worker), payload))
    return sent
