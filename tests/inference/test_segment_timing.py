"""Timing the parts of a model."""

from __future__ import annotations

from typing import Any

import pytest

from har_edge.config.catalog import find_model
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Delegate, Interpreter
from har_edge.inference.segment_timing import (
    Segment,
    fastest_times,
    measure_segments,
    overhead_s,
    segment_bounds,
    time_whole,
)
from har_edge.tflite.model import read_model
from tests.tflite import models


def test_segments_lie_between_legal_cuts() -> None:
    assert segment_bounds(read_model(models.chain())) == [0, 1, 2, 3, 4]
    assert segment_bounds(read_model(models.recurrent(shared=True))) == [0, 3, 4]
    # Operators that only unpack weights join their neighbours.
    assert segment_bounds(read_model(models.half_weights())) == [0, 4, 5, 6]


def test_segments_cover_the_model() -> None:
    segments = list(measure_segments(read_model(models.skip()), rounds=1, repeats=3))
    assert [(segment.start, segment.stop) for segment in segments] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert all(segment.seconds > 0 for segment in segments)


@pytest.mark.parametrize("delegate", list(Delegate))
def test_what_is_timed_runs_with_the_delegate_that_was_asked_for(
    delegate: Delegate, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: set[Delegate] = set()
    timed = Interpreter.time

    def time(self: Interpreter, values: Any, clock: Any) -> Any:
        applied.add(self.delegate)
        return timed(self, values, clock)

    monkeypatch.setattr(Interpreter, "time", time)
    model = read_model(find_model("float").path)
    assert len(list(measure_segments(model, rounds=1, repeats=1, delegate=delegate))) == len(segment_bounds(model)) - 1
    assert applied == {delegate}  # every segment of this model has what XNNPACK takes
    applied.clear()
    assert time_whole(model, rounds=1, repeats=1, delegate=delegate) > 0
    assert applied == {delegate}


def test_the_median_counts() -> None:
    ticks = iter([0.0, 1.0, 10.0, 15.0, 20.0, 22.0])
    segments = measure_segments(read_model(models.chain()), repeats=3, clock=lambda: next(ticks))
    assert next(segments).seconds == 2.0


def test_the_least_of_all_rounds_counts() -> None:
    assert [one.start for one in measure_segments(read_model(models.chain()), rounds=2, repeats=1)] == [0, 1, 2, 3] * 2
    rounds = [Segment(0, 1, 2.0), Segment(1, 2, 1.0), Segment(0, 1, 3.0), Segment(1, 2, 0.5)]
    assert fastest_times(rounds) == [Segment(0, 1, 2.0), Segment(1, 2, 0.5)]
    assert fastest_times(rounds[:3]) == [Segment(0, 1, 2.0), Segment(1, 2, 1.0)]  # the second round went wrong


def test_segments_run_on_true_values_and_sizes() -> None:
    # The shape that the second operator gets crosses a cut: made-up numbers would not fit.
    segments = list(measure_segments(read_model(models.reshaped()), rounds=1, repeats=1))
    assert [segment.start for segment in segments] == [0, 1, 2, 3]


def test_what_cannot_run_here_names_the_operators_and_the_way_out() -> None:
    with pytest.raises(
        ModelError, match=r"cannot time operators 1 to 1 here: .*Mystery.*choose the cuts yourself with --at"
    ):
        list(measure_segments(read_model(models.custom())))


def test_what_each_run_costs_by_itself_is_found() -> None:
    # Work of 1, 2 and 3 s, and half a second a run.
    segments = [Segment(i, i + 1, work + 0.5) for i, work in enumerate((1.0, 2.0, 3.0))]
    assert overhead_s(segments, whole_s=6.5) == pytest.approx(0.5)
    assert overhead_s(segments, whole_s=99.0) == 0.0
    assert overhead_s(segments, whole_s=1.0) == 1.5  # no more than the quickest of them takes
    assert overhead_s(segments[:1], whole_s=1.5) == 0.0


def test_of_the_whole_the_least_median_of_the_rounds_counts() -> None:
    ticks = iter([0.0, 4.0, 10.0, 15.0, 20.0, 29.0, 30.0, 31.0, 40.0, 45.0, 50.0, 52.0])
    assert time_whole(read_model(models.chain()), rounds=2, repeats=3, clock=lambda: next(ticks)) == 2.0
