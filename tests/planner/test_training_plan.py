"""The plan of a split training: the best of all, by memory too, and words for what is not possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import ConfigError
from har_edge.planner.devices import BrokerLink, load_devices
from har_edge.planner.profile import MessageCost
from har_edge.planner.training_costs import StageCosts, TrainingProblem
from har_edge.planner.training_devices import SplitDevice, split_devices
from har_edge.planner.training_plan import PlannedTraining, plan_training, training_planner
from har_edge.planner.training_profile import (
    at_batch,
    load_training_profile,
    store_training_profile,
)
from har_edge.planner.training_search import (
    EXTRAS,
    ChosenStage,
    lay_out,
    needed_in_flight,
    search_training,
    whole_model,
)
from tests.planner.training_cases import even, profile, segment

MB = 10**6


def devices(*slowdowns: float, memory: int = 0, link: float = 0.0) -> tuple[SplitDevice, ...]:
    return tuple(SplitDevice(f"pi{number}", one, memory, link) for number, one in enumerate(slowdowns))


def problem(count: int = 4, among: tuple[SplitDevice, ...] = devices(1, 1), batch: int = 8) -> TrainingProblem:
    return TrainingProblem(profile(even(count)), among, batch)


def every_step_s(asked: TrainingProblem) -> Iterator[float]:
    """Yield the seconds of a step of each plan there is: all cuts, devices in all orders, replicas, micro-batches."""
    for count, size in asked.splits:
        costs = StageCosts(asked, size)
        for stages in range(1, costs.n + 1):
            for cuts in combinations(range(1, costs.n), stages - 1):
                for groups in groupings(asked, stages):
                    for extra in EXTRAS:
                        found = step_s(asked, costs, (0, *cuts, costs.n), groups, count, extra)
                        if found is not None:
                            yield found


def groupings(asked: TrainingProblem, stages: int) -> Iterator[list[list[int]]]:
    """Yield the devices of each stage; replicas are equal devices."""
    numbers = range(len(asked.devices))
    for used in range(stages, len(asked.devices) + 1):
        for order in permutations(numbers, used):
            for ends in combinations(range(1, used), stages - 1):
                groups = [list(order[a:b]) for a, b in zip((0, *ends), (*ends, used), strict=True)]
                kinds = [{asked.devices[number].kind for number in group} for group in groups]
                if all(len(kind) == 1 for kind in kinds) and max(map(len, groups)) <= asked.replicas:
                    yield groups


def step_s(
    asked: TrainingProblem, costs: StageCosts, bounds: tuple[int, ...], groups: list[list[int]], count: int, extra: int
) -> float | None:
    stages: list[ChosenStage] = []
    behind = 0
    for first, last, group in reversed(list(zip(bounds, bounds[1:], groups, strict=False))):
        in_flight = needed_in_flight(len(group), behind, count, extra)
        setup = costs.setup(first, last, asked.devices[group[0]], in_flight)
        if setup is None:
            return None
        whole = costs.whole_s()
        if whole is not None and (first, last) == (0, costs.n):
            setup = whole_model(setup, whole * asked.devices[group[0]].slowdown)
        stages.insert(0, ChosenStage(first, last, tuple(group), setup))
        behind += len(group)
    return lay_out(asked, costs, stages, count).forecast.step_s


times = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(times, times, st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=4),
    st.lists(st.sampled_from([1.0, 2.0]), min_size=1, max_size=3),
    st.sampled_from([2, 4]),
    st.sampled_from([0, 60 * MB, 90 * MB, 140 * MB]),
    st.sampled_from([0.0, 4 * MB]),
    st.integers(1, 2),
    st.booleans(),
)
def test_the_plan_is_the_best_of_all(
    parts: list[tuple[float, float, int, int]],
    slowdowns: list[float],
    batch: int,
    memory: int,
    link: float,
    replicas: int,
    whole: bool,
) -> None:
    segments = [
        segment(
            number,
            forward,
            backward,
            elements=weights * MB,
            entering=sent * MB,
            kept=2 * sent * MB,
            last=number == len(parts) - 1,
        )
        for number, (forward, backward, weights, sent) in enumerate(parts)
    ]
    figures = profile(segments, base=20 * MB, update_s=1e-7, message=MessageCost(0.01, 1e-8, "test"), whole=whole)
    asked = TrainingProblem(
        figures,
        devices(*slowdowns, memory=memory, link=link),
        batch,
        broker=BrokerLink(link or None),
        replicas=replicas,
        latency_s=0.05,
    )
    record = search_training(asked)
    best = min(every_step_s(asked), default=None)
    assert record.complete
    assert (record.best is None) == (best is None)
    if record.best is not None and best is not None:
        assert record.best.forecast.step_s == pytest.approx(best)


def test_stages_are_even_and_the_forecast_is_that_of_the_textbook() -> None:
    found = plan_training(replace(problem(), micro_batches=8))
    assert [(stage.start, stage.stop) for stage in found.plan.stages] == [(0, 2), (2, 4)]
    assert (found.plan.micro_batch, found.plan.micro_batches) == (1, 8)
    assert found.step_s == pytest.approx(6.0 * 9)
    assert found.bubble == pytest.approx(1 / 9)
    assert [stage.busy_share for stage in found.stages] == [pytest.approx(8 / 9)] * 2
    assert found.proven


def test_the_fastest_device_gets_the_most() -> None:
    found = plan_training(problem(6, devices(1, 2)))
    sizes = {stage.workers[0]: stage.stop - stage.start for stage in found.plan.stages}
    assert sizes == {"pi0": 4, "pi1": 2}


def test_one_device_is_faster_over_a_slow_link() -> None:
    """Half a second a sample of work, and ten on the link: nothing is sent away."""
    segments = [segment(k, 0.1, 0.2, entering=1 * MB, last=k == 1) for k in range(2)]
    asked = TrainingProblem(profile(segments), devices(1, 1, link=0.1 * MB), 4, broker=BrokerLink(0.1 * MB))
    found = plan_training(asked)
    assert len(found.plan.stages) == 1
    assert found.spare == ("pi1",)
    assert any(line.startswith("one device is faster: the way between") for line in found.describe())
    two = found.other("2 stages")
    assert two is not None and two.step_s is not None and two.step_s > found.step_s


def test_stages_keep_activations_where_they_fit_and_compute_them_anew_where_not() -> None:
    segments = [segment(k, elements=0, entering=1 * MB, kept=10 * MB, last=k == 1) for k in range(2)]
    asked = replace(TrainingProblem(profile(segments), devices(1, 1), 4), micro_batches=4, stages=2)
    roomy = plan_training(asked)
    assert [stage.keep for stage in roomy.plan.stages] == [True, True]
    tight = plan_training(replace(asked, devices=devices(1, 1, memory=30 * MB)))
    assert [stage.keep for stage in tight.plan.stages] == [False, True]
    assert tight.stages[0].backward_s == pytest.approx(roomy.stages[0].backward_s + roomy.stages[0].forward_s)
    assert all(stage.memory_bytes <= 30 * MB for stage in tight.stages)
    assert any("recompute" in note for note in tight.notes)


def test_memory_counts_copies_of_weights_kept_tensors_and_what_is_under_way() -> None:
    segments = [
        segment(0, elements=1000, entering=100, kept=300, workspace=50),
        segment(1, elements=2000, entering=200, kept=400, shared=200, last=True),
    ]
    costs = StageCosts(TrainingProblem(profile(segments, base=7), devices(1), 1, vectors=2), 1)
    assert costs.memory_bytes(0, 1, 3, keep=True) == 7 + 4000 * (9 + 3 + 8) + 2 * 300 + 50 + 3 * 300 + 2 * (100 + 200)
    assert costs.memory_bytes(0, 1, 3, keep=False) == 7 + 4000 * (9 + 3 + 8) + 300 + 50 + 3 * 100 + 2 * (100 + 200)
    assert costs.memory_bytes(1, 2, 1, keep=True) == 7 + 8000 * (9 + 2 + 8) + 400 + 200 + 2 * 200
    assert costs.memory_bytes(0, 2, 1, keep=True) == 7 + 12000 * (9 + 2 + 8) + 500 + 50 + 100 + 2 * 100


def test_a_layer_above_every_limit_is_refused_by_name() -> None:
    segments = [segment(0), segment(1, elements=10 * MB), segment(2, last=True)]
    asked = TrainingProblem(profile(segments), devices(1, 1, memory=100 * MB), 4)
    with pytest.raises(ConfigError, match=r"operator 1 \(CONV_2D\) of made takes 640.0 MB to train.*has 100.0 MB"):
        plan_training(asked)


def test_too_few_devices_are_refused_with_the_number_that_is_needed() -> None:
    segments = [segment(k, elements=2 * MB, last=k == 3) for k in range(4)]
    asked = TrainingProblem(profile(segments), devices(1, 1, memory=130 * MB), 4)
    with pytest.raises(ConfigError, match=r"does not fit 2 devices of at most 130.0 MB.*it needs 4 devices"):
        plan_training(asked)
    assert len(plan_training(replace(asked, devices=devices(1, 1, 1, 1, memory=130 * MB))).plan.stages) == 4


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"cuts": (9,)}, "a stage that begins at operator 9 came; made can be cut before operators 1, 2, 3"),
        ({"cuts": (2, 1)}, "expected them in order"),
        ({"stages": 3}, "3 stages came for 2 devices and 4 parts of the model; expected 1 to 2"),
        ({"devices": ()}, "no device is there to train"),
    ],
)
def test_wishes_that_cannot_be_are_refused(wish: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_training(replace(problem(), **wish))  # type: ignore[arg-type]


def test_wishes_hold() -> None:
    assert [stage.start for stage in plan_training(replace(problem(), cuts=(1,))).plan.stages] == [0, 1]
    assert len(plan_training(replace(problem(), stages=1)).plan.stages) == 1
    found = plan_training(replace(problem(batch=8), micro_batches=3))
    assert (found.plan.micro_batches, found.plan.micro_batch) == (3, 3)


def test_a_plan_says_what_it_costs_against_one_device_and_data_parallel() -> None:
    found = plan_training(replace(problem(), micro_batches=8))
    one, parallel = found.other("one device"), found.other("data parallel")
    assert one is not None and one.step_s == pytest.approx(8 * 12.0)
    assert parallel is not None and parallel.step_s == pytest.approx(4 * 12.0)
    assert found.describe()[2:] == ["1.78 times as fast as one device", "data parallel is faster: a step every 48.0 s"]


def test_what_does_not_fit_one_device_says_so() -> None:
    segments = [segment(k, elements=1 * MB, last=k == 3) for k in range(4)]
    found = plan_training(TrainingProblem(profile(segments), devices(1, 1, 1, 1, memory=70 * MB), 4))
    one, given_all, parallel = found.others[:3]
    assert one.step_s is None and "takes 240.0 MB, and has 70.0 MB" in one.reason
    assert given_all.name == "one device, given the memory" and given_all.step_s is not None
    assert parallel.step_s is None and "each device takes 240.0 MB" in parallel.reason


def test_a_planner_goes_on_with_the_devices_that_are_left() -> None:
    plan = training_planner(replace(problem(4, devices(1)), cuts=(1, 2)))
    assert [stage.start for stage in plan(devices(1, 1, 1)).stages] == [0, 1, 2]
    assert len(plan(devices(1, 1)).stages) == 2
    assert len(plan(devices(1)).stages) == 1


def test_a_plan_is_json() -> None:
    found = plan_training(problem())
    assert msgspec.json.decode(msgspec.json.encode(found), type=PlannedTraining) == found


def test_replicas_join_a_layer_that_cannot_be_cut() -> None:
    """One layer of three takes as long as the other two together twice over: two devices share it."""
    segments = [segment(0, 0.5, 1.0), segment(1, 2.0, 4.0), segment(2, 0.5, 1.0, last=True)]
    asked = TrainingProblem(profile(segments), devices(1, 1, 1, 1), 16, replicas=2)
    found = plan_training(asked)
    alone = plan_training(replace(asked, replicas=1))
    assert max(len(stage.workers) for stage in found.plan.stages) == 2
    assert found.step_s < alone.step_s


def test_profiles_are_kept_as_json(tmp_path: Path) -> None:
    made = profile(even(3), message=MessageCost(1e-3, 1e-9, "test"))
    path = tmp_path / "profiles" / "made.json"
    store_training_profile(made, path)
    assert load_training_profile(path, made.model_sha256) == made
    with pytest.raises(ConfigError, match="training profile of made, another model"):
        load_training_profile(path, "1" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "has version 9, expected 1"),
        ({"segments": []}, "no training profile of a whole model"),
        ({"add_s": -1.0}, "no training profile of a whole model"),
        ({"batches": [2, 1]}, "no training profile of a whole model"),
        ({"batches": [1]}, "no training profile of a whole model"),
        ({"whole_s": [1.0]}, "no training profile of a whole model"),
        ({"threads": "one"}, "is no training profile: Expected"),
        ({"more": 1}, "is no training profile: Object contains unknown field"),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = msgspec.to_builtins(profile(even(2)))
    path = tmp_path / "damaged.json"
    path.write_bytes(msgspec.json.encode({**content, **change}))
    with pytest.raises(ConfigError, match=message):
        load_training_profile(path)


def test_a_missing_profile_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="har-edge profile MODEL --train"):
        load_training_profile(tmp_path / "none.json")


@pytest.mark.parametrize(("size", "expected"), [(1, 0.5), (2, 0.6), (4, 0.8), (8, 1.2), (16, 2.0), (32, 3.6)])
def test_times_between_measured_micro_batches_lie_on_lines(size: int, expected: float) -> None:
    assert at_batch((1, 4, 16), (0.5, 0.8, 2.0), size) == pytest.approx(expected)


def test_devices_files_bring_speed_memory_and_link(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text('[[device]]\nname = "pi"\ncount = 2\nspeed = 0.5\nmemory_bytes = 7\nlink_bytes_per_s = 3\n')
    assert split_devices(load_devices(path), path) == [
        SplitDevice("pi-1", 2.0, 7, 3.0),
        SplitDevice("pi-2", 2.0, 7, 3.0),
    ]
    path.write_text('[[device]]\nname = "pi"\nprofile = "pi.json"\n')
    with pytest.raises(ConfigError, match=r"pi names pi\.json, a profile of inference"):
        split_devices(load_devices(path), path)


def test_steps_divide_into_all_even_and_doubled_sizes() -> None:
    assert replace(problem(), batch=12).splits == [(1, 12), (2, 6), (2, 8), (3, 4), (4, 3), (6, 2), (12, 1)]
    assert math.prod(replace(problem(), batch=7, micro_batches=100).splits[0]) == 7
