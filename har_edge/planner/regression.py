"""Estimate the seconds of operators that were not measured from those that were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import numpy as np

from har_edge.errors import ModelError
from har_edge.planner.problem import Floats
from har_edge.planner.profile import Fit, OperatorWork, Profile, SegmentCost
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.operations import count_operations

ANY = "*"
_TINY_S = 1e-7
_JUDGED = 60  # samples that are left out in turn, at most


@dataclass(frozen=True, slots=True)
class SegmentSample:
    """Seconds of a segment beyond the overhead of a run, and its work."""

    seconds: float
    work: tuple[OperatorWork, ...]


@dataclass(frozen=True, slots=True)
class Regression:
    """Seconds for each feature: operators, operations and bytes of all kinds, and the last two by kind."""

    seconds: dict[tuple[str, str], float]

    def predict(self, work: Sequence[OperatorWork]) -> float:
        """Return the seconds of this work; an unknown kind counts by the features of all kinds."""
        return sum(self.seconds.get(name, 0.0) * value for name, value in _features(work).items())


def work_of(model: Model, start: int, stop: int) -> tuple[OperatorWork, ...]:
    """Return the work of operators [start, stop) by kind, without operators that only prepare constants, which run
    once.
    """
    graph, folded = model.main, trace_dataflow(model).folded
    found: dict[str, list[int]] = {}
    for operator in graph.operators[start:stop]:
        if operator.index in folded:
            continue
        row = found.setdefault(operator.name, [0, 0, 0])
        row[0] += 1
        row[1] += _operations(model, operator)
        row[2] += sum(graph.tensors[i].bytes for i in (*operator.inputs, *operator.outputs))
    return tuple(OperatorWork(kind, *row) for kind, row in sorted(found.items()))


def _operations(model: Model, operator: Operator) -> int:
    """Return the arithmetic operations of one operator; an uncounted kind has one for each value of its outputs."""
    alone = replace(model, graphs=(replace(model.main, operators=(operator,)),))
    try:
        return count_operations(alone)
    except ModelError:
        return sum(model.main.tensors[i].elements for i in operator.outputs)


def fit(samples: Sequence[SegmentSample]) -> Regression:
    """Return the least-squares fit with no negative seconds.

    The weight of each error is the inverse square root of the measured time, so that neither long nor short segments
    rule alone. Raises ModelError without samples.
    """
    if not samples:
        raise ModelError(
            "nothing was measured, so nothing can be estimated from it; profile a model that this device can run first"
        )
    rows = [_features(sample.work) for sample in samples]
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    target = np.array([sample.seconds for sample in samples])
    weight = 1 / np.sqrt(np.maximum(target, _TINY_S))
    scale = np.maximum(np.abs(table).max(axis=0), 1.0)
    solution = nonnegative(table / scale * weight[:, None], target * weight) / scale
    return Regression(dict(zip(names, solution.tolist(), strict=True)))


def cross_validate(samples: Sequence[SegmentSample]) -> Fit:
    """Return how well a fit predicts segments that it has not seen (leave-one-out)."""
    errors = []
    for number in range(0, len(samples), 1 + len(samples) // _JUDGED):
        sample = samples[number]
        others = [*samples[:number], *samples[number + 1 :]]
        if others and sample.seconds > _TINY_S:
            errors.append(abs(fit(others).predict(sample.work) - sample.seconds) / sample.seconds)
    return Fit(len(samples), median(errors) if errors else 1.0)


def segment_costs(
    model: Model, bounds: Sequence[int], measured: Mapping[int, float], overhead_s: float, others: Sequence[Profile]
) -> tuple[tuple[SegmentCost, ...], Fit | None]:
    """Return the cost of every segment, and the quality of the fit that estimated those not measured.

    `measured` maps the first operator of a segment to its seconds. `others` are profiles of other models on the same
    device, which improve the estimate. Raises ModelError when something is missing and nothing was measured.
    """
    spans = list(pairwise(bounds))
    work = {start: work_of(model, start, stop) for start, stop in spans}
    known = [SegmentSample(max(0.0, seconds - overhead_s), work[start]) for start, seconds in measured.items()]
    if len(measured) == len(spans):
        return tuple(SegmentCost(a, b, measured[a], True, work[a]) for a, b in spans), None
    for other in others:
        known += [SegmentSample(max(0.0, s.seconds - other.overhead_s), s.work) for s in other.segments if s.measured]
    regression = fit(known)
    seconds = {start: overhead_s + regression.predict(work[start]) for start, _ in spans} | dict(measured)
    return tuple(SegmentCost(a, b, seconds[a], a in measured, work[a]) for a, b in spans), cross_validate(known)


def nonnegative(table: Floats, target: Floats) -> Floats:
    """Return x >= 0 with the least |table x - target| (Lawson, Hanson, Solving Least Squares Problems, 1974, 23.3)."""
    n = table.shape[1]
    free, x = np.zeros(n, np.bool_), np.zeros(n)
    for _ in range(3 * n):
        slope = np.where(free, -np.inf, table.T @ (target - table @ x))
        best = int(slope.argmax())
        if slope[best] <= 1e-10 * (np.abs(table.T @ target).max() + 1e-30):
            break
        free[best] = True
        while True:
            trial = np.zeros(n)
            trial[free] = np.linalg.lstsq(table[:, free], target, rcond=None)[0]
            wrong = free & (trial <= 0)
            if not wrong.any():
                break
            step = (x[wrong] / np.maximum(x[wrong] - trial[wrong], 1e-300)).min()
            x = x + step * (trial - x)
            free &= x > 1e-14
            if not free.any():
                trial = np.zeros(n)
                break
        x = trial
    return x


def _features(work: Sequence[OperatorWork]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for part in work:
        for name, value in (
            ((ANY, "operators"), part.operators),
            ((ANY, "operations"), part.operations),
            ((ANY, "bytes"), part.bytes),
            ((part.kind, "operations"), part.operations),
            ((part.kind, "bytes"), part.bytes),
        ):
            found[name] = found.get(name, 0.0) + value
    return found
