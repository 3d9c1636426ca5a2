"""A training profile is measured of real parts of a model, and adds up."""

from __future__ import annotations

import pytest

from har_edge.learning.lenet import write_lenet5
from har_edge.learning.split.profiling import MeasuringJob, measure_training
from har_edge.planner.training_costs import StageCosts, TrainingProblem
from har_edge.planner.training_devices import SplitDevice
from har_edge.planner.training_profile import TrainingProfile
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.stage_graphs import training_cuts, write_stage
from har_edge.tflite.model import Model, read_model


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(bytes(write_lenet5()))


@pytest.fixture(scope="module")
def found(model: Model) -> TrainingProfile:
    return measure_training(MeasuringJob(model, Loss.CROSS_ENTROPY, batches=(1, 3), seconds=0.0), "here")


def test_the_parts_are_those_that_a_training_can_be_cut_into(found: TrainingProfile, model: Model) -> None:
    assert found.bounds == (0, *training_cuts(model), len(model.main.operators))
    assert sum(one.elements for one in found.segments) == 61_706
    assert found.model_sha256 == model.sha256


def test_times_are_measured(found: TrainingProfile) -> None:
    last = found.segments[-1]
    assert all(times.forward_s == 0 < times.backward_s for times in last.times)
    weighted = [one for one in found.segments[:-1] if one.elements]
    assert all(times.forward_s > 0 and times.backward_s > 0 for one in weighted for times in one.times)
    assert len(found.whole_s) == 2 and min(found.whole_s) > 0
    assert found.add_s > 0 and found.update_s > 0


def test_bytes_of_parts_are_those_of_the_stages(found: TrainingProfile, model: Model) -> None:
    """What the planner adds up for a stage of several parts is what the stage itself says."""
    costs = StageCosts(TrainingProblem(found, (SplitDevice("here"),), 4), 4)
    bounds = found.bounds
    for first, last in ((0, 3), (2, 6), (1, 2)):
        spec = write_stage(model, bounds[first], bounds[last], batch=4, loss=Loss.CROSS_ENTROPY, keep=True).spec
        assert costs.entering_bytes(first) == spec.entering_bytes
        assert costs.gradient_bytes(first) == spec.returned_bytes
        assert costs.weight_bytes(first, last) == spec.weight_bytes
        held = (costs.kept[last] - costs.kept[first]) * 4 + found.segments[first].shared_bytes * 4
        assert held == spec.held_bytes


def test_memory_is_that_of_a_process(found: TrainingProfile) -> None:
    assert 20_000_000 < found.base_bytes < 500_000_000
