"""Where a model is cut into stages for equal devices."""

from __future__ import annotations

from itertools import pairwise

import pytest

from har_edge.config.catalog import find_model
from har_edge.errors import CutError
from har_edge.inference.segment_timing import Segment, segment_bounds
from har_edge.runtime.slicing import MESSAGE_S, even_stages, plan_cuts
from har_edge.tflite.cuts import list_cuts
from har_edge.tflite.model import Model, read_model
from tests.tflite import models


def timed(model: Model, seconds: float) -> list[Segment]:
    return [Segment(start, stop, seconds) for start, stop in pairwise(segment_bounds(model))]


def test_a_model_that_computes_longer_than_messages_take_is_cut_by_time() -> None:
    plan = even_stages(read_model(models.chain()), timed(read_model(models.chain()), 50 * MESSAGE_S), 0.0, 2)
    assert plan.cuts == (2,)
    assert plan.seconds == pytest.approx((100 * MESSAGE_S, 100 * MESSAGE_S))


def test_what_each_run_costs_counts_once_a_slice() -> None:
    model = read_model(models.chain())
    seconds = 50 * MESSAGE_S
    assert even_stages(model, timed(model, seconds), seconds, 2).seconds == pytest.approx((seconds, seconds))


def test_a_model_that_computes_less_than_messages_take_is_cut_where_stages_hear_fewer() -> None:
    model = read_model(find_model("int8").path)  # three branches, one a sensor, that join at operator 7
    cuts = even_stages(model, timed(model, MESSAGE_S / 50), 0.0, 3).cuts
    assert cuts[0] >= 7
    slow = even_stages(model, timed(model, MESSAGE_S * 50), 0.0, 3).cuts
    assert slow == (6, 11)


def test_cuts_that_were_measured_are_legal_and_as_many_as_asked_for() -> None:
    model = read_model(models.skip())
    plan = plan_cuts(model, 3)
    assert len(plan.cuts) == 2 and len(plan.seconds) == 3 and all(seconds > 0 for seconds in plan.seconds)
    assert set(plan.cuts) <= {cut.index for cut in list_cuts(model) if cut.refusal is None}


def test_one_stage_is_timed_as_a_whole_and_no_segment_of_it() -> None:
    def watch(segments: object, total: int) -> list[Segment]:
        raise AssertionError("a segment was timed")

    plan = plan_cuts(read_model(models.chain()), 1, watch=watch)
    assert plan.cuts == () and len(plan.seconds) == 1 and plan.seconds[0] > 0


def test_too_many_stages_are_refused_before_anything_is_timed() -> None:
    def watch(segments: object, total: int) -> list[Segment]:
        raise AssertionError("timed")

    with pytest.raises(CutError, match="cannot make 9 stages; this model has 3 legal cuts, so 1 to 4 stages"):
        plan_cuts(read_model(models.chain()), 9, watch=watch)
