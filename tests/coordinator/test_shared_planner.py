"""Shards that the coordinator plans by itself, on nodes by their cards and on a broker in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from har_edge.coordinator.planner_thread import Planner
from har_edge.coordinator.replan import PlacementSpec, PlanRequest, PlanResponse
from har_edge.coordinator.shared_planner import SharedPlanner
from har_edge.inference.segment_timing import segment_bounds
from har_edge.planner.plan import Objective
from har_edge.planner.profile import VERSION, MemoryCost, MessageCost, PackingFigures, Profile, SegmentCost
from har_edge.protocol.deployment import Generation, Placement
from har_edge.tflite.manifest import SliceManifest, find_flaw
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.packed_cuts import PackingRequest, choose_packings
from har_edge.tflite.packing import TensorPacking
from tests.coordinator.test_planner_thread import nodes
from tests.planner.test_split_model import plain
from tests.runtime.coordinated import World
from tests.tflite.models import FLOAT

LATENCY = PlacementSpec(Objective.LATENCY, shards=True)
BASE = 50_000_000


@pytest.fixture(scope="module")
def model() -> Model:
    return read_model(plain(FLOAT))


def slow(model: Model) -> Profile:
    """A profile in which every operator takes 0.2 s, and a message 1 ms."""
    segments = tuple(SegmentCost(a, b, 0.2 * (b - a), True, ()) for a, b in pairwise(segment_bounds(model)))
    return Profile(
        VERSION,
        "here",
        "",
        model.name,
        model.sha256,
        1,
        segments,
        0.0,
        memory=MemoryCost(BASE, 1_000_000, BASE + 1_000_000, 1_000_000),
        message=MessageCost(1e-3, 1e-9, "Mosquitto"),
        packings=(PackingFigures("zstd", 2.0, 3e-9, "random inputs"),),
    )


def pack(manifest: SliceManifest, requests: Sequence[PackingRequest]) -> dict[str, TensorPacking]:
    return choose_packings(manifest, requests)


def planner(model: Model, spec: PlacementSpec = LATENCY, packings: Sequence[str] = ()) -> SharedPlanner:
    return SharedPlanner(Planner(model, spec, slow, speed=lambda: 100.0), packings, pack)


def deployed(response: PlanResponse, *homes: str) -> Generation:
    assert response.manifest is not None and response.forecast is not None
    placements = tuple(Placement(k, name) for k, name in enumerate(homes)) or response.placements
    forecast = response.forecast
    return Generation(7, response.manifest, placements, forecast.stages_s, forecast.latency_s)


def is_shared(manifest: SliceManifest | None) -> bool:
    return manifest is not None and any(entry.steps for entry in manifest.slices)


def test_two_nodes_share_layers_and_what_was_rejected_is_said(model: Model) -> None:
    found = planner(model).plan(PlanRequest(1, nodes("a", "b"), (), 0))
    assert not found.problem and is_shared(found.manifest) and found.forecast is not None
    assert found.manifest is not None and find_flaw(found.manifest) == ""
    assert {one.node for one in found.placements} == {"a", "b"} and len(found.manifest.slices) == 2
    wanted = {sha256 for entry in found.manifest.slices for sha256 in entry.files.values()}
    assert wanted == found.contents.keys()
    assert {hashlib.sha256(one).hexdigest() for one in found.contents.values()} == wanted
    alone = 0.2 * len(model.main.operators)
    assert 0.5 * alone < found.forecast.latency_s < 0.75 * alone
    assert "rejected: one device: a, on 1 node: a window every 1.20 s, each takes 1.20 s" in found.remarks
    assert sum(cost.seconds for cost in found.stage_costs[0]) > alone


def test_the_faster_node_does_more(model: Model) -> None:
    found = planner(model).plan(PlanRequest(1, (*nodes("slow", speed=50.0), *nodes("quick")), (), 0))
    assert found.forecast is not None and is_shared(found.manifest)
    by_node = {one.node: found.stage_costs[0][one.stage].seconds for one in found.placements}
    assert by_node["quick"] > 1.5 * by_node["slow"]  # on the reference device
    assert max(found.forecast.stages_s) < 1.5 * min(found.forecast.stages_s)  # on its own


def test_on_links_with_long_delays_one_device_is_faster(model: Model) -> None:
    found = planner(model).plan(PlanRequest(1, nodes("a", "b", latency_s=1.0), (), 0))
    assert not found.problem and not is_shared(found.manifest) and len(found.placements) == 1
    assert any(line.startswith("one device is faster: ") for line in found.remarks)


def test_a_link_that_limits_the_plan_is_named_with_what_a_faster_one_would_bring(model: Model) -> None:
    found = planner(model).plan(PlanRequest(1, nodes("a", "b", link_bytes_per_s=1e4), (), 0))
    assert is_shared(found.manifest)
    (limit,) = (line for line in found.remarks if "the limit" in line)
    assert limit.startswith("the devices' links are the limit: at 300 Mbit/s this plan would be 1.")


def test_a_plan_that_changes_nothing_is_not_explained_again(model: Model) -> None:
    asked = planner(model)
    first = asked.plan(PlanRequest(1, nodes("a", "b"), (), 0))
    again = asked.plan(PlanRequest(2, nodes("a", "b"), (deployed(first),), 7))
    assert again.manifest == first.manifest and again.remarks == ()
    assert again.current == again.forecast and set(again.stage_costs) == {0, 7}
    slices = asked.plan(PlanRequest(0, (), (deployed(first),), 7))
    assert slices.contents == first.contents and not slices.problem


def test_shards_that_one_node_runs_after_the_other_was_lost_are_compared(model: Model) -> None:
    asked = planner(model)
    first = asked.plan(PlanRequest(1, nodes("a", "b"), (), 0))
    both = deployed(first, "a", "a")
    alone = asked.plan(PlanRequest(2, nodes("a"), (both,), 7))
    assert alone.current is not None and alone.forecast is not None and not is_shared(alone.manifest)
    assert alone.current.period_s > alone.forecast.period_s  # halos and messages
    assert alone.current.latency_s > alone.forecast.latency_s
    joined = asked.plan(PlanRequest(3, nodes("a", "c"), (deployed(first),), 7))
    assert joined.current is None and is_shared(joined.manifest)  # b is not there


def test_a_plan_of_another_process_counts_as_that_one_predicted(model: Model) -> None:
    first = planner(model).plan(PlanRequest(1, nodes("a", "b"), (), 0))
    after = planner(model).plan(PlanRequest(1, nodes("a", "b"), (deployed(first),), 7))
    assert after.current is not None and first.forecast is not None and after.manifest == first.manifest
    assert after.current.latency_s == first.forecast.latency_s
    assert after.current.period_s == pytest.approx(first.forecast.period_s, rel=0.05)


def test_whole_layers_that_are_deployed_are_compared_with_shards(model: Model) -> None:
    whole = Planner(model, PlacementSpec(Objective.LATENCY), slow, speed=lambda: 100.0)
    before = deployed(whole.plan(PlanRequest(1, nodes("a", "b"), (), 0)))
    after = planner(model).plan(PlanRequest(2, nodes("a", "b"), (before,), 7))
    assert is_shared(after.manifest) and after.current is not None and after.forecast is not None
    assert after.forecast.latency_s < 0.75 * after.current.latency_s
    assert before.manifest.slices[0].sha256 in after.contents and set(after.stage_costs) == {0, 7}


def test_memory_limits_hold_or_are_named(model: Model) -> None:
    room = BASE + 60_000
    found = planner(model).plan(PlanRequest(1, nodes("a", "b", "c", memory_bytes=room), (), 0))
    if not found.problem:
        assert all(BASE + cost.memory_bytes <= room for cost in found.stage_costs[0])
    none = planner(model).plan(PlanRequest(1, nodes("a", "b", memory_bytes=BASE + 100), (), 0))
    assert "is too large for all devices together" in none.problem


def test_activations_are_packed_where_that_gains(model: Model) -> None:
    def packings(rate: float) -> set[str]:
        request = PlanRequest(1, nodes("a", "b", link_bytes_per_s=rate), (), 0)
        found = planner(model, packings=["zstd"]).plan(request)
        assert is_shared(found.manifest) and found.manifest is not None
        return {spec.packing for entry in found.manifest.slices for spec in entry.outputs}

    assert "zstd" in packings(1e5) and packings(1e10) == {""}


@dataclass
class AtOnce:
    """Stands for the planner's thread: a planner that answers at once."""

    planner: SharedPlanner
    model: str = ""
    asked: list[PlanRequest] = field(default_factory=list)
    _made: list[PlanResponse] = field(default_factory=list)

    def request(self, request: PlanRequest) -> None:
        self.asked += [request] if request.candidates else []
        self._made.append(self.planner.plan(request))

    def delete_session(self, client_id: str, url: str = "") -> None:
        """Sessions are none of its business here."""

    def poll(self) -> list[PlanResponse]:
        made, self._made = self._made, []
        return made


def shared_world(model: Model, *names: str, margin: float = 0.15) -> World:
    world = World(LATENCY, margin=margin)
    world.drawer = AtOnce(planner(model))  # type: ignore[assignment]
    for name in names:
        world.join(name)
    world.start(model=model.sha256)
    world.until(lambda: world.ready)
    return world


def shards_of(world: World) -> int:
    assert world.plan is not None and world.plan.current is not None
    return sum(bool(entry.steps) for entry in world.plan.current.manifest.slices)


def test_a_coordinator_plans_shards_and_moves_that_of_a_lost_node_at_once(model: Model) -> None:
    world = shared_world(model, "a", "b")
    assert shards_of(world) == 2 and world.homes == {0: "a", 1: "b"}
    assert world.said("2 stages that share operators: 0 on a, 1 on b") and world.said("rejected: one device: a")
    epoch = world.plan.epoch if world.plan else 0
    world.crash("b")
    world.run(0.2)
    assert world.plan is not None and world.plan.epoch == epoch and set(world.homes.values()) == {"a"}
    world.until(lambda: world.ready, 5)  # the same shards on one node
    world.until(lambda: world.said("another plan: a window takes 1.21 s instead of 1.22 s; that gains 1%"), 20)
    world.join("b")
    world.until(lambda: set(world.homes.values()) == {"a", "b"} and world.ready, 30)
    assert world.plan.epoch > epoch and shards_of(world) == 2


def test_one_node_that_is_left_with_costly_messages_runs_the_whole_model(model: Model) -> None:
    world = shared_world(model, "a", "b", "c", "d", margin=0.005)
    assert shards_of(world) == 4
    for name in "bcd":
        world.crash(name)
    world.until(lambda: shards_of(world) == 0 and world.ready, 60)
    assert set(world.homes.values()) == {"a"}


def test_a_node_that_joins_gets_a_share_by_a_new_generation(model: Model) -> None:
    world = shared_world(model, "a", "b")
    before = world.plan
    assert before is not None
    world.join("c")
    world.join("d")
    world.until(lambda: shards_of(world) > 2, 30)
    assert world.plan is not None and world.plan.epoch > before.epoch
    assert {"c", "d"} & set(world.homes.values())
    # The older generation stayed until the new one had answered a probe.
    changes = [plan for plan in world.plans if len(plan.generations) == 2]
    assert changes[0].epoch == before.epoch and {before.epoch, world.plan.epoch} <= world.answered
    world.until(lambda: world.plan is not None and len(world.plan.generations) == 1, 60)


def test_shards_stay_after_a_restart_of_the_coordinator(model: Model) -> None:
    world = shared_world(model, "a", "b")
    before = world.plan
    world.kill()
    world.drawer = AtOnce(planner(model))  # type: ignore[assignment]
    world.start(model=model.sha256)
    world.run(20)
    assert world.plan is not None and before is not None and world.plan.epoch == before.epoch and world.ready


def test_shards_are_unmet_only_where_nobody_asked_for_them(model: Model) -> None:
    assert PlacementSpec(shards=True).most_nodes is None
    first = planner(model).plan(PlanRequest(1, nodes("a", "b"), (), 0))
    assert LATENCY.unmet(deployed(first), model.sha256, "ab") == ""
    assert PlacementSpec().unmet(deployed(first), model.sha256, "ab") == "no split was asked for"
