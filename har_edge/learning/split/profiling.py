"""Measure what training a model costs on this device, part by part: forward and backward times, memory."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.split.step import StageStep, StageTimes, measure_stage
from har_edge.learning.updates.vectors import Vector, flatten
from har_edge.planner.training_costs import GRAPH_COPIES, VALUE_BYTES
from har_edge.planner.training_profile import VERSION, SegmentTimes, TrainedSegment, TrainingProfile
from har_edge.runtime import resident_memory
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.stage_graphs import StageGraphs, training_cuts, write_stage
from har_edge.tflite.gradient.stage_spec import StageSpec, port_bytes
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model

Piece = tuple[int, int]
Watch = Callable[[Iterable[Piece], int], Iterable[Piece]]
# Micro-batches that are measured; times of others lie on lines between them.
BATCHES = (1, 4)
# Times over all segments, of which the least counts: other work on the machine makes a segment slower, never faster.
_ROUNDS, _SECONDS = 2, 0.04
_MEMORY_TIMEOUT_S = 600.0
_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class MeasuringJob:
    """A model with what is to be measured of it."""

    model: Model
    loss: Loss
    batches: tuple[int, ...] = BATCHES
    optimizer: str = "momentum:lr=0.05"
    threads: int = 1
    seconds: float = _SECONDS

    @property
    def pieces(self) -> list[Piece]:
        """The parts between neighbouring places where a training can be cut."""
        return list(pairwise((0, *training_cuts(self.model), len(self.model.main.operators))))

    def write(self, piece: Piece, batch: int, *, keep: bool) -> StageGraphs:
        """Return the graphs of a part."""
        return write_stage(self.model, *piece, batch=batch, loss=self.loss, keep=keep)


def measure_training(
    job: MeasuringJob,
    device: str,
    *,
    watch: Watch = lambda pieces, total: pieces,
    clock: Callable[[], float] | None = None,
) -> TrainingProfile:
    """Return the training profile of a model on this device. `watch` sees the parts as they are measured.

    With one thread, its processor time counts, which other work on the machine and quotas leave alone.

    Raises GradientError for what cannot be differentiated, ModelError where the runtime cannot run a part.
    """
    clock = clock or (time.thread_time if job.threads == 1 else time.perf_counter)
    pieces, weights = job.pieces, read_weights(job.model)
    specs = [[job.write(piece, size, keep=True).spec for piece in pieces] for size in job.batches]
    base, growths = measure_memory(job, pieces)
    times: dict[tuple[Piece, int], SegmentTimes] = {}
    rounds = [(number, size) for number in range(_ROUNDS) for size in job.batches]
    items = [piece for _ in rounds for piece in pieces]
    for place, piece in enumerate(watch(items, len(items))):
        size = rounds[place // len(pieces)][1]
        found = _times(job, piece, size, weights, clock)
        known = times.get((piece, size), found)
        times[piece, size] = SegmentTimes(*map(min, msgspec.structs.astuple(known), msgspec.structs.astuple(found)))
    whole = [_run(job.write((0, pieces[-1][1]), size, keep=True), weights, job, clock) for size in job.batches]
    add_s, update_s = _value_times(job.optimizer, clock)
    return TrainingProfile(
        version=VERSION,
        device=device,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        model=job.model.name,
        model_sha256=job.model.sha256,
        threads=job.threads,
        loss=job.loss.value,
        batches=job.batches,
        segments=tuple(
            _segment(
                job,
                [spec[k] for spec in specs],
                specs[0][k - 1] if k else None,
                [times[piece, size] for size in job.batches],
                [growth[k] for growth in growths],
            )
            for k, piece in enumerate(pieces)
        ),
        whole_s=tuple(one.backward_s for one in whole),
        add_s=add_s,
        update_s=update_s,
        base_bytes=base,
    )


def _times(
    job: MeasuringJob, piece: Piece, size: int, weights: dict[str, Vector], clock: Callable[[], float]
) -> SegmentTimes:
    keeping = _run(job.write(piece, size, keep=True), weights, job, clock)
    if piece[1] == len(job.model.main.operators):
        return SegmentTimes(0.0, keeping.backward_s, keeping.backward_s)
    anew = _run(job.write(piece, size, keep=False), weights, job, clock)
    return SegmentTimes(keeping.forward_s, keeping.backward_s, anew.backward_s)


def _run(graphs: StageGraphs, weights: dict[str, Vector], job: MeasuringJob, clock: Callable[[], float]) -> StageTimes:
    step = StageStep(graphs.forward, graphs.backward, graphs.spec, job.threads)
    vector = flatten({one.name: weights[one.name] for one in graphs.spec.weights}, graphs.spec.weights)
    return measure_stage(step, vector, clock, job.seconds)


def _value_times(optimizer: str, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of one value: to add it to a sum, and of the optimizer's step."""
    weights, gradient = np.zeros(_VALUES, np.float32), np.ones(_VALUES, np.float32)
    method = make_optimizer(optimizer, _VALUES)
    adds, updates = list[float](), list[float]()
    for _ in range(7):
        began = clock()
        np.add(weights, gradient, out=weights)
        middle = clock()
        method.step(weights, gradient)
        adds.append(middle - began)
        updates.append(clock() - middle)
    return median(adds) / _VALUES, median(updates) / _VALUES


def _segment(
    job: MeasuringJob,
    specs: Sequence[StageSpec],
    before: StageSpec | None,
    times: Sequence[SegmentTimes],
    growths: Sequence[int],
) -> TrainedSegment:
    """Return a part with its figures; `specs` and `growths` are of each micro-batch, `before` of the part in front."""
    spec, size = specs[0], job.batches[0]
    operators = job.model.main.operators[spec.start : spec.stop]
    kept = [one.held_bytes if not one.last else _made_bytes(one) for one in specs]
    return TrainedSegment(
        start=spec.start,
        stop=spec.stop,
        layer=", ".join(dict.fromkeys(operator.name for operator in operators)),
        elements=spec.elements,
        entering_bytes=spec.entering_bytes // size,
        gradient_bytes=spec.returned_bytes // size,
        kept_bytes=kept[0] // size,
        shared_bytes=_shared_bytes(spec, before) // size,
        times=tuple(times),
        workspace_bytes=tuple(
            max(0, growth - one.elements * VALUE_BYTES * (GRAPH_COPIES - one.last) - held * (1 if one.last else 2))
            for one, growth, held in zip(specs, growths, kept, strict=True)
        ),
    )


def _made_bytes(spec: StageSpec) -> int:
    """Return the bytes of what the last stage takes in, which its graph holds up to the end."""
    return sum(map(port_bytes, spec.x))


def _shared_bytes(spec: StageSpec, before: StageSpec | None) -> int:
    """Return the bytes that a part keeps of what enters it, and that the part in front keeps of what leaves it."""
    if before is None:
        return 0
    left = {port.port: port.name for port in before.y}
    names = {left[port.port] for port in before.kept if port.port in left}
    own = {port.port: port for port in spec.x}
    kept = spec.x if spec.last else [own[port.port] for port in spec.kept if port.port in own]
    return sum(port_bytes(port) for port in kept if port.name in names)


def measure_memory(job: MeasuringJob, pieces: Sequence[Piece]) -> tuple[int, list[list[int]]]:
    """Return the resident bytes of a process without a stage, and what each part adds, for each micro-batch.

    Zeros where this cannot be measured, which takes Linux.
    """
    base, found = 0, list[list[int]]()
    for size in job.batches:
        if not resident_memory.STATUS.is_file():
            found.append([0] * len(pieces))
            continue
        with tempfile.TemporaryDirectory(prefix="har-edge-profile-") as folder:
            for number, piece in enumerate(pieces):
                graphs = job.write(piece, size, keep=True)
                (Path(folder) / f"{number}.json").write_bytes(graphs.spec.encode())
                for name in ("forward", "backward"):
                    content = getattr(graphs, name)
                    if content is not None:
                        (Path(folder) / f"{number}.{name}").write_bytes(content)
            command = [sys.executable, "-m", "har_edge.learning.split.stage_memory", folder, str(len(pieces))]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MEMORY_TIMEOUT_S, check=True)
        base, *growths = map(int, done.stdout.split()[-1 - len(pieces) :])
        found.append(growths)
    return base, found
