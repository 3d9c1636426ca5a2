"""Estimating what was not measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from har_edge.errors import ModelError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.profile import OperatorWork, Profile, SegmentCost
from har_edge.planner.regression import SegmentSample, cross_validate, fit, nonnegative, segment_costs, work_of
from har_edge.tflite.model import read_model
from tests.tflite import models


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
def test_the_fit_is_the_one_of_lawson_and_hanson(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, target = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    found, (_, least) = nonnegative(table, target), nnls(table, target)
    assert (found >= 0).all()
    assert np.linalg.norm(table @ found - target) == pytest.approx(least, abs=1e-7)


def sample(kind: str, operations: int, size: int) -> SegmentSample:
    """Kinds at 1 and 4 ns an operation, 0.5 ns a byte, and 2 us an operator."""
    rate = {"CONV_2D": 1e-9, "ADD": 4e-9}[kind]
    return SegmentSample(2e-6 + rate * operations + 0.5e-9 * size, (OperatorWork(kind, 1, operations, size),))


def test_what_follows_from_counts_is_found_and_foretold() -> None:
    rng = np.random.default_rng(0)
    kinds = ("CONV_2D", "ADD")
    samples = [sample(kinds[i % 2], int(rng.integers(1e3, 1e6)), int(rng.integers(1e2, 1e5))) for i in range(24)]
    regression = fit(samples)
    for unseen in (sample("CONV_2D", 500_000, 1000), sample("ADD", 100, 90_000)):
        assert regression.predict(unseen.work) == pytest.approx(unseen.seconds, rel=1e-3)
    both = (*sample("CONV_2D", 4000, 100).work, *sample("ADD", 300, 200).work)
    assert regression.predict(both) == pytest.approx(
        sample("CONV_2D", 4000, 100).seconds + sample("ADD", 300, 200).seconds, rel=1e-3
    )
    assert regression.predict((OperatorWork("NEW", 1, 1000, 1000),)) > 0
    quality = cross_validate(samples)
    assert quality.samples == 24 and quality.error < 1e-3


def test_a_fit_that_cannot_foretell_says_so() -> None:
    rng = np.random.default_rng(0)
    noise = [SegmentSample(float(seconds), (OperatorWork("ADD", 1, 10, 10),)) for seconds in rng.lognormal(0, 2, 20)]
    assert cross_validate(noise).error > 0.3


def test_work_is_counted_by_kind_without_what_prepares_constants() -> None:
    model = read_model(models.skip())
    (conv,) = [work for work in work_of(model, 0, 2) if work.kind == "CONV_2D"]
    assert conv.operators == 2 and conv.operations > 0
    assert conv.bytes == sum(
        model.main.tensors[i].bytes for o in model.main.operators[:2] for i in (*o.inputs, *o.outputs)
    )
    model = read_model(models.half_weights())
    assert {work.kind for work in work_of(model, 0, 6)} == {o.name for o in model.main.operators} - {"DEQUANTIZE"}
    # Nobody counts this one's arithmetic: one operation a value it makes.
    (mystery,) = [work for work in work_of(read_model(models.custom()), 0, 3) if work.kind == "Mystery"]
    assert mystery.operations == sum(
        read_model(models.custom()).main.tensors[i].elements
        for i in read_model(models.custom()).main.operators[1].outputs
    )


def test_what_was_measured_stays_and_the_rest_is_filled() -> None:
    model = read_model(models.chain())
    bounds = segment_bounds(model)
    segments, quality = segment_costs(model, bounds, {0: 5e-6, 1: 6e-6}, 1e-6, [])
    assert [segment.measured for segment in segments] == [True, True, False, False]
    assert [segment.seconds for segment in segments[:2]] == [5e-6, 6e-6]
    assert all(segment.seconds >= 1e-6 for segment in segments) and quality is not None and quality.samples == 2
    everything, none = segment_costs(model, bounds, dict.fromkeys(bounds[:-1], 2e-6), 0.0, [])
    assert none is None and all(segment.measured for segment in everything)
    other = Profile(1, "d", "m", "other", "0", 1, (SegmentCost(0, 4, 9e-6, True, work_of(model, 0, 4)),), 1e-6)
    filled, quality = segment_costs(model, bounds, {}, 1e-6, [other])
    assert sum(segment.seconds - 1e-6 for segment in filled) == pytest.approx(8e-6)


def test_nothing_measured_is_no_ground_for_estimates() -> None:
    with pytest.raises(ModelError, match="nothing was measured, so nothing can be estimated from it; profile a model"):
        segment_costs(read_model(models.chain()), [0, 1, 2, 3, 4], {}, 0.0, [])
