"""A split that a person chose, on nodes by their cards."""

import dataclasses
import logging
from itertools import accumulate

import msgspec
import numpy as np
import pytest

from har_edge.config.catalog import find_model
from har_edge.config.pipeline import generation_id
from har_edge.coordinator.candidates import CandidatePool
from har_edge.coordinator.membership import Membership
from har_edge.coordinator.replan import PlacementSpec, PlanRequest
from har_edge.coordinator.split_planner import SplitPlanner, placeable_homes
from har_edge.errors import ConfigError
from har_edge.planner.relocation import MESSAGE_S
from har_edge.planner.slice_graph import HEAD_BYTES, RESULT_BYTES
from har_edge.protocol.deployment import PROTOCOL, Generation, Placement
from har_edge.protocol.status import Heartbeat, NodeCapabilities, NodeStatus, State
from har_edge.runtime.slicing import lay_out
from har_edge.tflite.manifest import find_flaw
from har_edge.tflite.model import read_model
from har_edge.tflite.packed_cuts import choose_packings, parse_request, with_packings
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan
from har_edge.tflite.split.plan_file import PlanFile, PlannedGroup
from har_edge.tflite.split.program import ordinary, split_model
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
    stages_s, loads = found.forecast.stages_s, planner.loads
    slowest = max(s + one.bytes / 1e9 for s, one in zip(stages_s, loads, strict=True))  # of one group
    assert found.forecast.latency_s == pytest.approx(slowest, rel=1e-4)


CODED = "whole:0-10 parity:10-15@2 parity:15-16@2 whole:16-17=0,0,1"


@pytest.mark.parametrize(("count", "most"), [(3, 3), (4, 1), (5, 1)])
def test_no_node_has_two_shards_that_one_parity_stands_for(model, count, most):
    """Spare nodes are taken however slow they are: a node with two shards would take both along."""
    coded = SplitPlanner(model, lay_out(model, CODED), even, speed=lambda: 100.0)
    assert coded.manifest.spared == [1, 2]
    unequal = tuple(one for k in range(count) for one in nodes(f"n{k}", speed=100.0 / 9**k))
    found = coded.plan(PlanRequest(1, unequal, (), 0))
    home = {one.stage: one.node for one in found.placements}
    assert not found.problem and sorted(home) == [0, 1, 2, 3] and home[1] != home[2]
    assert max(list(home.values()).count(name) for name in home.values()) == most


def test_messages_count_for_every_flow_at_both_ends(planner):
    """Two shards: three sources each, and rows that each takes of the other, and a result."""
    pieces = [spec for entry in planner.manifest.slices for spec in entry.outputs]
    flows = [len({spec.flow for spec in entry.outputs if spec.region}) for entry in planner.manifest.slices]
    first, second = planner.loads
    assert [first.sent, second.sent] == [flows[0] + 1, flows[1]] and max(flows) > 1
    assert [first.received, second.received] == [3 + flows[1], 3 + flows[0]]
    made = sum(np.prod(spec.shape) for spec in pieces if spec.region)
    assert first.sent_bytes + second.sent_bytes == made + sum(flows) * HEAD_BYTES + RESULT_BYTES
    costs = planner.plan(PlanRequest(1, nodes("a", "b"), (), 0)).stage_costs[0]
    work = sum(program.macs for program in planner.layout.programs)
    (whole,) = split_model(planner.model, [ordinary(0, 17)]).programs
    messages = sum(load.received + load.sent for load in planner.loads)
    assert sum(one.seconds for one in costs) == pytest.approx(17e-3 * work / whole.macs + messages * MESSAGE_S)


def test_a_slow_link_sets_the_pace(planner):
    found = planner.plan(PlanRequest(1, nodes("a", "b", link_bytes_per_s=1e3), (), 0)).forecast
    assert found.period_s > 0.9 * max(load.bytes for load in planner.loads) / 1e3 > max(found.stages_s)


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
    assert spec.most_nodes == 2 and spec.unmet(ours, model.sha256, "ab") == ""
    other = SplitPlanner(model, lay_out(model, SPLIT.replace("3,1", "1,3")), even, speed=lambda: 100.0)
    theirs = msgspec.structs.replace(ours, manifest=other.manifest)
    assert spec.unmet(theirs, model.sha256, "ab") == "another split was asked for"
    assert PlacementSpec().unmet(ours, model.sha256, "ab") == "no split was asked for"
    alone = msgspec.structs.replace(ours, placements=(Placement(0, "a"), Placement(1, "a")))
    assert spec.unmet(alone, model.sha256, "ab") == "2 stages were asked for, and there are nodes for each"


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


def plan_file(model, *groups):
    return PlanFile(model.sha256, groups)


def shared(start, stop, *devices, shares):
    bounds = tuple(accumulate(shares, initial=0))
    split = SplitPlan(len(devices), (Block(start, stop, SplitMethod.ROWS, bounds),))
    return PlannedGroup(start, stop, devices, split)


def of_plan(model, plan):
    layout = split_model(model, [one.split or ordinary(one.start, one.stop) for one in plan.stages])
    homes = placeable_homes(plan, layout.manifest, find_model("int8").entry.task)
    return SplitPlanner(model, layout, even, speed=lambda: 100.0, homes=homes)


@pytest.fixture
def planned(model):
    """Two shards of unequal shares, the larger one on the slower node, and a stage at which two nodes take turns."""
    first = PlannedGroup(0, 3, ("b", "c"))
    return of_plan(model, plan_file(model, first, shared(3, 6, "slow", "quick", shares=(15, 8)), PlannedGroup(6, 17)))


def test_a_plan_that_names_devices_runs_there_though_others_are_faster(planned):
    there = (*nodes("slow", speed=60.0), *nodes("quick", "b", "c", "d", speed=200.0))
    found = planned.plan(PlanRequest(1, there, (), 0))
    assert not found.problem and not found.remarks
    assert found.placements == (
        Placement(0, "b"),
        Placement(0, "c", 1),
        Placement(1, "slow"),
        Placement(2, "quick"),
        Placement(3, "d"),  # the plan leaves it open
    )
    assert found.stage_costs[0][1].seconds > found.stage_costs[0][2].seconds


def test_a_device_of_the_plan_that_is_absent_is_named_with_who_takes_its_stage(planned):
    found = planned.plan(PlanRequest(1, nodes("slow", "c", "d", "e"), (), 0))
    homes = {(one.stage, one.replica): one.node for one in found.placements}
    assert homes[0, 0] == "c" and (0, 1) not in homes and homes[1, 0] == "slow"
    assert {homes[2, 0], homes[3, 0]} == {"d", "e"}
    told = "no node of that name can take it now; start it with `har-edge node --name`"
    assert found.remarks == (
        f"stage 0 runs only on c: the plan names b, but {told}",
        f"stage 2 goes to {homes[2, 0]}: the plan names quick, but {told}",
    )


def test_a_stage_that_runs_elsewhere_goes_home_when_its_device_comes(model, planned):
    split = (generation_id(planned.manifest), len(planned.manifest.slices))
    spec = PlacementSpec(split=split, homes=planned.homes)
    assert spec.most_nodes == 5 and spec.named == {"b", "c", "slow", "quick"}
    away = planned.plan(PlanRequest(1, nodes("slow", "c", "d", "e"), (), 0))
    generation = Generation(7, away.manifest, away.placements)
    assert spec.unmet(generation, model.sha256, ("slow", "c", "d", "e")) == ""
    assert spec.unmet(generation, model.sha256, ("slow", "c", "d", "e", "quick")) == (
        "stage 2 belongs on quick by the plan"
    )
    every = ("slow", "quick", "b", "c", "d")
    assert spec.unmet(generation, model.sha256, every) == "stage 0 belongs on b by the plan"
    home = planned.plan(PlanRequest(2, nodes(*every), (generation,), 7))
    assert spec.unmet(Generation(8, home.manifest, home.placements), model.sha256, every) == ""


def test_nodes_that_take_turns_halve_the_load_of_each(model):
    def period(*devices):
        asked = of_plan(model, plan_file(model, PlannedGroup(0, 11, devices), PlannedGroup(11, 17, ("z",))))
        return asked.plan(PlanRequest(1, nodes("a", "b", "z"), (), 0)).forecast.period_s

    assert period("a", "b") == pytest.approx(period("a") / 2)


def test_turns_at_a_stage_that_takes_several_messages_are_refused(model):
    groups = (shared(0, 3, "a", "b", shares=(12, 11)), PlannedGroup(3, 17, ("c", "d")))
    with pytest.raises(ConfigError, match="lets c and d take turns at stage 2, which takes more than one message"):
        of_plan(model, plan_file(model, *groups))


def test_a_plan_without_names_leaves_all_open(model):
    assert of_plan(model, plan_file(model, PlannedGroup(0, 3), PlannedGroup(3, 17))).homes == ()
