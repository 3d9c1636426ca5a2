"""Check what a worker sends for its task, before anything is made of it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from har_edge.errors import MessageError
from har_edge.learning.masking.fixed_point import Words
from har_edge.learning.masking.vector import EXTRA_WORDS
from har_edge.learning.masking.vector import KIND as MASKED_KIND
from har_edge.learning.server.aggregation import Contribution
from har_edge.learning.server.members import WorkerRecord
from har_edge.learning.updates.compression import PackedVector, decode, make_compressor
from har_edge.protocol.training import MAX_CLIP, TrainingJob, Update, WorkerReport


class NotFinite(MessageError):
    """The values of an update are no numbers: the training diverges at that worker."""


def check_report(report: WorkerReport, job: TrainingJob) -> str:
    """Return why a worker cannot take part: its own data has another shape or other classes; "" where it can."""
    if not job.own:
        return ""
    if not report.samples:
        return "it has no samples of its own; start it with --data"
    if report.shape != job.shape:
        return f"its samples have shape {list(report.shape)}; expected {list(job.shape)}, which the model takes"
    if report.classes != job.classes:
        return f"its data has the classes {_shown(report.classes)}; expected {_shown(job.classes)}, in this order"
    return ""


def is_awaited(member: WorkerRecord, update: Update) -> bool:
    """Return whether an update, or a part of one, is for the task that the worker has now."""
    pending = member.pending
    return pending is not None and (pending.task.number, pending.round) == (update.task, update.round)


def accept(member: WorkerRecord, update: Update, job: TrainingJob, compress: str) -> Contribution | None:
    """Return what came for the task of a worker; None until all parts are here.

    Raises MessageError for another kind or size of vector than the job's, for more samples than the task has, and for
    figures that no training gives; NotFinite for values that are no numbers.
    """
    packed = _assemble(member, update, job.parameters)
    if packed is None:
        return None
    _check_kind(packed, compressed_kind(compress))
    if not math.isfinite(update.loss):
        raise NotFinite(f"a loss of {update.loss} came; expected a finite one: the learning rate may be too high")
    vector = decode(packed, job.parameters)
    most = float(np.max(np.abs(vector), initial=0))
    if most > MAX_CLIP:
        raise NotFinite(
            f"values up to {most:.3g} came; expected at most {MAX_CLIP:g}: the learning rate may be too high"
        )
    return Contribution(member.name, update.samples, vector, update.loss, update.correct)


def accept_masked(member: WorkerRecord, update: Update, job: TrainingJob) -> Words | None:
    """Return the masked words that came for the task of a worker; None until all parts are here.

    Raises MessageError as `accept` does; of the values nothing can be said.
    """
    size = job.parameters + EXTRA_WORDS
    packed = _assemble(member, update, size)
    if packed is None:
        return None
    _check_kind(packed, MASKED_KIND)
    if len(packed.data) != 4 * size:
        raise MessageError(f"{len(packed.data)} bytes of masked words came; expected {4 * size}")
    return np.frombuffer(packed.data, "<u4").astype(np.uint32)


def _assemble(member: WorkerRecord, update: Update, size: int) -> PackedVector | None:
    """Return the vector of an update once all parts are here, with figures that its task may have."""
    pending = member.pending
    assert pending is not None
    if update.problem:
        raise NotFinite(update.problem)
    part = update.vector
    if part.size != size:
        raise MessageError(f"a vector of {part.size} numbers came; expected {size}, as the model has weights")
    if not update.samples:
        raise MessageError("an update of no samples came; expected one at least, or the problem")
    if update.samples > pending.task.samples or update.correct > update.samples:
        raise MessageError(
            f"{update.correct} correct of {update.samples} samples came; expected at most the {pending.task.samples} "
            "of its task"
        )
    return pending.assembly.add(part)


def _check_kind(packed: PackedVector, expected: str) -> None:
    if packed.kind != expected:
        raise MessageError(f"an update in format {packed.kind!r} came; expected {expected!r}")


@lru_cache(maxsize=16)
def compressed_kind(spec: str) -> str:
    """Return the format that a compression gives."""
    return make_compressor(spec, 1).encode(np.zeros(1, np.float32)).kind


def _shown(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
