"""A split that a person chose, on nodes by their cards."""

import dataclasses
import logging

import msgspec
import pytest

from har_edge.config.catalog import find_model
from har_edge.config.pipeline import generation_id
from har_edge.coordinator.candidates import CandidatePool
from har_edge.coordinator.membership import Membership
from har_edge.coordinator.replan import PlacementSpec, PlanRequest
from har_edge.coordinator.split_planner import SplitPlanner
from har_edge.protocol.deployment import PROTOCOL, Generation, Placement
from har_edge.protocol.status import Heartbeat, NodeCapabilities, NodeStatus, State
from har_edge.runtime.slicing import lay_out
from har_edge.tflite.manifest import find_flaw
from har_edge.tflite.model import read_model
from har_edge.tflite.packed_cuts import choose_packings, parse_request, with_packings
from tests.coordinator.test_planner_thread import even, nodes

SPLIT = "rows:0-3@2 rows:3-6@2 rows:6-11@3,1 whole:11-17@2"


@pytest.fixture(scope="module")
def model():
    return read_model(find_model("int8").path)


@pytest.fixture
def planner(model):
    return SplitPlanner(model, lay_out(model, SPLIT), even, speed=lambda: 100.0)


def test_the_larger_share_goes_to_the_faster_node_and_all_files_are_there(planner):
    unequal = (*nodes("slow", speed=60.0), *nodes("quick"))
    found = planner.plan(PlanRequest(1, unequal, (), 0))
    assert not found.problem and found.manifest == planner.manifest
    assert found.placements == (Placement(0, "quick"), Placement(1, "slow"))
    wanted = {sha256 for entry in planner.manifest.slices for sha256 in entry.files.values()}
    assert wanted == found.contents.keys()
    first, second = found.stage_costs[0]
    assert first.seconds > second.seconds > 0 and found.forecast is not None
    assert found.forecast.latency_s == max(found.forecast.stages_s)  # of one group


def test_what_is_deployed_is_compared_and_a_lost_node_leaves_nothing_to_compare(planner):
    first = planner.plan(PlanRequest(1, nodes("a", "b"), (), 0))
    generation = Generation(7, first.manifest, first.placements)
    again = planner.plan(PlanRequest(2, nodes("a", "b"), (generation,), 7))
    assert again.current == again.forecast and set(again.stage_costs) == {0, 7}
    assert planner.plan(PlanRequest(3, nodes("a", "c"), (generation,), 7)).current is None
    assert planner.plan(PlanRequest(0, (), (generation,), 7)).contents == again.contents


def test_nodes_without_memory_are_named(planner):
    found = planner.plan(PlanRequest(1, nodes("a", "b", memory_bytes=1000), (), 0))
    assert "does not hold the 2 shards of" in found.problem


def test_another_split_is_unmet(model, planner):
    ours = Generation(7, planner.manifest, (Placement(0, "a"), Placement(1, "b")))
    spec = PlacementSpec(split=(generation_id(planner.manifest), 2))
    assert spec.most_nodes == 2 and spec.unmet(ours, model.sha256, 2) == ""
    other = SplitPlanner(model, lay_out(model, SPLIT.replace("3,1", "1,3")), even, speed=lambda: 100.0)
    theirs = msgspec.structs.replace(ours, manifest=other.manifest)
    assert spec.unmet(theirs, model.sha256, 2) == "another split was asked for"
    assert PlacementSpec().unmet(ours, model.sha256, 2) == "no split was asked for"
    alone = msgspec.structs.replace(ours, placements=(Placement(0, "a"), Placement(1, "a")))
    assert spec.unmet(alone, model.sha256, 2) == "2 stages were asked for, and there are nodes for each"


def test_packed_activations_are_another_plan_whose_manifest_says_so(model, planner):
    layout = lay_out(model, SPLIT)
    packings = choose_packings(layout.manifest, [parse_request("f2+zstd")])
    layout = dataclasses.replace(layout, manifest=with_packings(layout.manifest, packings))
    packed = SplitPlanner(model, layout, even, speed=lambda: 100.0)
    found = packed.plan(PlanRequest(1, nodes("a", "b"), (), 0))
    assert not found.problem and find_flaw(found.manifest) == ""
    travelled = {spec.packing for entry in found.manifest.slices for spec in entry.outputs} - {""}
    assert travelled == {"zstd"}  # integers are not rounded
    assert generation_id(found.manifest) != generation_id(planner.manifest)


def test_nodes_that_do_not_know_a_packing_get_no_stage(caplog):
    membership = Membership()
    for name, packings in (("old", ()), ("plain", ("f2", "q8")), ("whole", ("f2", "q8", "zstd"))):
        card = NodeCapabilities(PROTOCOL, name, "Linux", 1, 10**9, "litert", 50.0, packings=packings)
        membership.note_status(name, NodeStatus(name, "node", State.READY, "i", 1.0, device=card), 0.0)
        membership.note_heartbeat(name, Heartbeat(name, "i", 1, 0.0), 0.0)

    def of(*packings):
        pool = CandidatePool(membership, lambda generation: (), frozenset(packings))
        with caplog.at_level(logging.WARNING):
            pool.candidates()
            return [one.name for one in pool.candidates()]

    assert of() == ["old", "plain", "whole"] and caplog.text == ""
    assert of("f2") == ["plain", "whole"] and of("f2", "zstd") == ["whole"]
    assert caplog.text.count("node plain gets no stage: activations travel as zstd, which it does not know") == 1
