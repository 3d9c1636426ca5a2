"""How far a split training is, and its plan, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from har_edge.protocol.split_training import SplitTrainingPlan
from har_edge.protocol.training import TrainingProgress

if TYPE_CHECKING:
    from har_edge.learning.split.server import SplitServer


def split_progress(server: SplitServer, time: float) -> TrainingProgress:
    """Return how far a run is; `time` is that of the wall clock."""
    settings, rows, figures = server.settings, server.record.steps, server.settings.figures
    last, step_s = rows[-1] if rows else None, server.record.step_s()
    speed = settings.order.batch / step_s if step_s else 0.0
    score = server.record.scores[-1] if server.record.scores else None
    counted = server.counted - (server.epoch - 1) * settings.order.steps_an_epoch
    stages = len(server.assignment.stages) if server.assignment is not None else 0
    return TrainingProgress(
        run=settings.job.run,
        author=settings.job.author,
        state=server.state,
        time=time,
        model=figures.model,
        round=server.counted,
        epoch=server.epoch,
        epochs=settings.epochs,
        counted=min(settings.order.samples, counted * settings.order.batch),
        samples=settings.order.samples,
        loss=last.loss if last else None,
        train_accuracy=last.accuracy if last else None,
        accuracy=score.accuracy if score else None,
        accuracy_epoch=score.epoch if score else 0,
        held_out=figures.held_out,
        samples_per_s=round(speed, 1),
        sent_bytes=server.record.sent_bytes,
        received_bytes=server.record.received_bytes,
        dropped=server.record.dropped,
        mode=f"split:{stages}",
        data=figures.data,
        real=figures.real,
        broker=figures.broker,
        detail=server.detail[:400],
        workers=tuple(server.members[name].progress(speed) for name in sorted(server.members)),
    )


def plan_shape(plan: SplitTrainingPlan) -> tuple[object, ...]:
    """Return a plan without the names of its nodes, but with their number."""
    stages = [(one.start, one.stop, one.keep, one.in_flight, one.slots, len(one.workers)) for one in plan.stages]
    return (plan.micro_batch, plan.micro_batches, len(plan.workers), *stages)


def describe_plan(plan: SplitTrainingPlan) -> str:
    """Return a plan in words."""
    stages = "; ".join(
        f"{stage.start} to {stage.stop - 1} on {', '.join(stage.workers)} "
        f"({'keeps, ' if stage.keep else ''}{stage.in_flight} under way)"
        for stage in plan.stages
    )
    count = plan.micro_batches
    return f"operators {stages}; {count} micro-batch{'' if count == 1 else 'es'} of {plan.micro_batch}"
