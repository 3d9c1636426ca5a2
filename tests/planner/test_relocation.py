"""Stages on nodes that come and go: every stage finds a node, and forecasts agree with the planner's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.errors import ConfigError
from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.devices import DeviceEntry, DevicesFile, PlannerDevice
from har_edge.planner.plan import Objective, make_plan
from har_edge.planner.profile import VERSION, MemoryCost, MessageCost, Profile, SegmentCost
from har_edge.planner.relocation import (
    Candidate,
    StageLoad,
    StagePlacement,
    apply_overrides,
    devices_of,
    forecast,
    quantize,
    relocate,
)
from har_edge.tflite.model import read_model
from tests.planner.test_plan import kind, planning_of
from tests.tflite import models


def load(stage: int, seconds: float = 1.0, memory: int = 10, node: str | None = None, replica: int = 0) -> StageLoad:
    return StageLoad((1, stage, replica), seconds, memory, node)


def test_a_spare_node_comes_before_one_that_works() -> None:
    loads = [load(0, node="a"), load(1, node="gone"), load(2, node="b")]
    assert relocate(loads, [Candidate("a", 1), Candidate("b", 1), Candidate("c", 1)]) == {(1, 1, 0): "c"}


def test_a_spare_that_is_far_slower_does_not() -> None:
    loads = [load(0, node="a"), load(1)]
    assert relocate(loads, [Candidate("a", 1), Candidate("zero", 0.1)]) == {(1, 1, 0): "a"}
    assert relocate(loads, [Candidate("a", 1), Candidate("zero", 0.9)]) == {(1, 1, 0): "zero"}


def test_several_stages_of_a_node_spread_over_those_that_remain() -> None:
    loads = [load(0, 3.0), load(1, 1.0), load(2, 1.0), load(3, 1.0)]
    found = relocate(loads, [Candidate("a", 1), Candidate("b", 1)])
    assert found[1, 0, 0] != found[1, 1, 0] == found[1, 2, 0] == found[1, 3, 0]


def test_memory_comes_first_and_without_any_the_least_is_lacking() -> None:
    tight, wide = Candidate("tight", 1, memory_bytes=15), Candidate("wide", 0.1, memory_bytes=100)
    assert relocate([load(0, node="tight"), load(1)], [tight, wide]) == {(1, 1, 0): "wide"}
    assert relocate([load(1, memory=400)], [tight, wide]) == {(1, 1, 0): "wide"}


def test_replicas_share_a_node_only_when_they_must() -> None:
    taken = [load(0, node="a"), load(0, replica=1)]
    assert relocate(taken, [Candidate("a", 9), Candidate("b", 0.1)]) == {(1, 0, 1): "b"}
    assert relocate(taken, [Candidate("a", 1)]) == {(1, 0, 1): "a"}


def test_loads_that_are_apart_share_a_node_only_when_they_must_or_memory_is_short() -> None:
    def apart(stage: int, node: str | None = None, group: int = 1) -> StageLoad:
        return replace(load(stage, node=node), apart=group)

    idle, slow = Candidate("idle", 9), Candidate("slow", 0.1)
    assert relocate([apart(0, "idle"), apart(1)], [idle, slow]) == {(1, 1, 0): "slow"}
    assert relocate([apart(0, "idle"), apart(1, group=2)], [idle, slow]) == {(1, 1, 0): "idle"}
    assert relocate([load(0, node="idle"), load(1)], [idle, slow]) == {(1, 1, 0): "idle"}
    assert relocate([apart(0, "idle"), apart(1)], [idle]) == {(1, 1, 0): "idle"}
    assert relocate([apart(0, "idle"), apart(1)], [idle, replace(slow, memory_bytes=5)]) == {(1, 1, 0): "idle"}
    assert set(relocate([apart(0), apart(1)], [idle, slow]).values()) == {"idle", "slow"}


def test_nobody_left_places_nothing() -> None:
    assert relocate([load(0)], []) == {}


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100), st.sampled_from("abcxyz")), min_size=1, max_size=12),
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.1, 10)), min_size=1, max_size=3, unique_by=lambda one: one[0]
    ),
)
def test_every_orphan_gets_a_living_node_and_nobody_else_moves(
    stages: list[tuple[float, int, str]], nodes: list[tuple[str, float]]
) -> None:
    loads = [load(number, *stage) for number, stage in enumerate(stages)]
    names = {name for name, _ in nodes}
    found = relocate(loads, [Candidate(name, speed, memory_bytes=200) for name, speed in nodes])
    assert found.keys() == {one.key for one in loads if one.node not in names}
    assert set(found.values()) <= names


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([models.chain(), models.skip(), models.many_ports()]), st.data())
def test_a_forecast_of_a_plan_is_what_the_planner_says(content: bytes, data: st.DataObject) -> None:
    names = ["a", "b", "c", "d"][: data.draw(st.integers(1, 4))]
    segments = len(segment_bounds(read_model(content))) - 1
    devices = [
        PlannerDevice(
            name, kind(tuple(data.draw(st.floats(1e-4, 5e-3)) for _ in range(segments)), latency_s=1e-3 * number)
        )
        for number, name in enumerate(names)
    ]
    _, planning = planning_of(content, devices, replicas=2)
    plan = make_plan(planning, data.draw(st.sampled_from(Objective)))
    places = [StagePlacement(number, name) for number, stage in enumerate(plan.stages) for name in stage.devices]
    found = forecast(planning, plan.cuts, places, {})
    assert found is not None
    assert found.period_s == pytest.approx(plan.bottleneck_s) and found.latency_s == pytest.approx(plan.latency_s)
    assert found.stages_s == pytest.approx([stage.compute_s + stage.message_s for stage in plan.stages])


def test_stages_on_one_node_add_up_but_for_its_cores() -> None:
    segments = len(segment_bounds(read_model(models.chain()))) - 1
    even = kind((10e-3,) * segments, overhead_s=0.0, message_s=0.0, message_byte_s=0.0)
    _, planning = planning_of(
        models.chain(), [PlannerDevice("a", even), PlannerDevice("b", replace(even, memory_bytes=1))]
    )
    cuts, places = planning.slice_graph.bounds[1:2], [StagePlacement(0, "a"), StagePlacement(1, "a")]
    alone = forecast(planning, cuts, places, {})
    shared = forecast(planning, cuts, places, {"a": 4})
    assert alone is not None and alone.period_s == pytest.approx(10e-3 * segments)
    assert shared is not None and shared.period_s == pytest.approx(10e-3 * (segments - 1))
    tight = forecast(planning, cuts, [StagePlacement(0, "a"), StagePlacement(1, "b")], {})
    assert tight is not None and tight.period_s == math.inf
    assert (
        forecast(planning, [999], places, {}) is None
        and forecast(planning, cuts, [StagePlacement(0, "gone")], {}) is None
    )


def test_a_plan_keeps_to_the_cuts_and_the_number_of_slices_asked_for() -> None:
    segments = len(segment_bounds(read_model(models.chain()))) - 1
    _, planning = planning_of(models.chain(), [PlannerDevice(name, kind((1e-3,) * segments)) for name in "abcd"])
    bounds = planning.slice_graph.bounds
    assert make_plan(replace(planning, cuts=bounds[1:2]), Objective.LATENCY).cuts == bounds[1:2]
    assert len(make_plan(replace(planning, least=2, most=2), Objective.THROUGHPUT).stages) == 2
    with pytest.raises(ConfigError, match="cuts 999 came; expected operators among 1"):
        make_plan(replace(planning, cuts=(999,)), Objective.THROUGHPUT)


def profile(message: MessageCost | None = None) -> Profile:
    segments = tuple(SegmentCost(k, k + 1, 1e-3, True, ()) for k in range(3))
    return Profile(
        VERSION, "here", "", "m.tflite", "a" * 64, 1, segments, 0.0, memory=MemoryCost(10, 5, 20, 5), message=message
    )


def test_cards_become_devices_and_alike_nodes_one_kind() -> None:
    nodes = [quantize(Candidate("a", 0.51, 4, 4_040_000_000)), quantize(Candidate("b", 0.5, 4, 4_000_000_001))]
    devices, remarks = devices_of(nodes, profile(), None, Path())
    assert devices[0].kind == devices[1].kind and devices[0].kind.memory_bytes == 4_000_000_000
    assert devices[0].kind.work_s[0] == pytest.approx(2e-3, rel=0.08)
    assert remarks == ["the link of a, b was not measured: taken for 5.0 MB/s and 2.00 ms one way"]
    slow = quantize(Candidate("a", 0.5, slow=2.0))
    assert devices_of([slow], profile(), None, Path())[0][0].kind.work_s[0] == pytest.approx(4e-3, rel=0.08)


def test_a_devices_file_counts_more_than_a_card() -> None:
    entry = DeviceEntry("pi", count=2, speed=0.25, link_bytes_per_s=1e6, latency_s=0.0, message_s=3e-4, memory_bytes=77)
    file = DevicesFile([entry])
    nodes = apply_overrides([Candidate("pi-2", 1.0, 4, 99, 5.0, 5.0)], file)
    found, remarks = devices_of(nodes, profile(), file, Path())
    assert [device.name for device in found] == ["pi-2"] and remarks == []
    taken = found[0].kind
    assert (taken.work_s[0], taken.memory_bytes, taken.latency_s, taken.message_s) == (4e-3, 77, 0.0, 3e-4)
