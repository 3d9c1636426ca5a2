"""Liveness by flow: a stage that stands still is moved, and nothing else is, whatever is slow, away or silent."""

from __future__ import annotations

import pytest

from har_edge.coordinator.candidates import BAN_S
from har_edge.timing import FLOW_PATIENCE_S
from tests.coordinator.flowing import FlowWorld, Mode, flow_world, shard_manifest

# Two steps to take over, and the steps in which a heartbeat and a probe are noticed.
GAP_S = FLOW_PATIENCE_S + 1.0


@pytest.fixture
def world() -> FlowWorld:
    """Stages 0, 1, 2 on a, b, c, and a spare node d; ten windows a second."""
    world = flow_world()
    world.rate = 10.0
    world.run(6)
    assert world.homes == {0: "a", 1: "b", 2: "c"} and world.gap(world.now - 5) < 0.5
    return world


def moves(world: FlowWorld) -> list[str]:
    return [line for line in world.lines if " goes from " in line]


@pytest.mark.parametrize("mode", [Mode.HUNG, Mode.GHOST])
@pytest.mark.parametrize(("stage", "node"), [(0, "a"), (1, "b"), (2, "c")])
@pytest.mark.parametrize("after_s", [0.0, 2.3])
def test_a_stage_that_stands_still_is_moved_within_four_seconds(
    world: FlowWorld, mode: Mode, stage: int, node: str, after_s: float
) -> None:
    world.run(after_s)
    began = world.now
    world.modes[node] = mode
    world.until(lambda: world.homes[stage] != node, GAP_S)
    world.run(1.5)
    assert moves(world) == [f"epoch 5000: stage {stage} goes from {node} to d: it stood still on {node}"]
    assert world.gap(began) <= GAP_S
    world.until(lambda: world.ready, 5)
    assert world.status is not None and world.status.counters["stood_still"] == 1


@pytest.mark.parametrize(("stage", "node"), [(0, "a"), (1, "b")])
def test_who_sends_what_others_refuse_is_moved_and_not_who_refuses(world: FlowWorld, stage: int, node: str) -> None:
    began = world.now
    world.modes[node] = Mode.WRONG
    world.until(lambda: world.homes[stage] != node, GAP_S)
    world.run(1.5)
    assert len(moves(world)) == 1 and world.gap(began) <= GAP_S
    assert world.said(f"stage {stage} stood still: stages refuse what it sends from {node}")


def test_a_ghost_with_several_stages_loses_all_of_them_at_once() -> None:
    world = flow_world("a")
    world.rate = 10.0
    world.run(3)
    world.join("b")
    began = world.now
    world.modes["a"] = Mode.GHOST
    world.until(lambda: set(world.homes.values()) == {"b"}, GAP_S)
    world.run(1.5)
    assert len(moves(world)) == 3 and world.gap(began) <= GAP_S + 0.5


def test_a_stage_that_stands_still_moves_although_every_node_was_kept_out_lately(world: FlowWorld) -> None:
    world.crash("d")
    for node in "abc":
        assert world.coordinator is not None
        world.coordinator._pool.ban(node, world.now)
    world.modes["b"] = Mode.HUNG
    world.until(lambda: world.homes[1] != "b", GAP_S)
    world.until(lambda: world.ready, 5)


def test_a_last_stage_whose_answers_are_none_is_moved(world: FlowWorld) -> None:
    world.modes["c"] = Mode.WRONG
    world.until(lambda: world.homes[2] == "d", 20)
    assert moves(world) == ["epoch 5000: stage 2 goes from c to d: it stood still on c"]


def test_who_runs_windows_and_sends_nothing_is_found_in_the_end(world: FlowWorld) -> None:
    """The stage behind it is blamed first: by their counts nobody can tell the two apart."""
    world.modes["a"] = Mode.MUTE
    world.until(lambda: world.homes[0] != "a" or world.homes[1] != "b", 30)
    world.modes.pop("a")
    world.until(lambda: world.ready, 30)


def test_a_stage_hangs_while_nobody_sends(world: FlowWorld) -> None:
    world.rate = 0.0
    world.run(20)
    world.modes["b"] = Mode.HUNG
    world.until(lambda: world.homes[1] == "d", 10)
    assert len(moves(world)) == 1


def test_a_node_that_stood_still_is_kept_out_for_longer_each_time(world: FlowWorld) -> None:
    world.modes["b"] = Mode.GHOST
    world.until(lambda: world.homes[1] == "d", 10)
    assert world.said(f"b gets no stage for {BAN_S:.0f} s")
    world.until(lambda: world.ready, 10)
    assert world.status is not None and world.status.counters["kept_out"] == 1
    world.run(BAN_S + 5)
    assert world.status.counters["kept_out"] == 0
    world.crash("d")  # b is the only spare node
    world.until(lambda: world.homes[1] == "b", 5)
    world.join("d")
    world.until(lambda: world.homes[1] == "d", 10)
    assert world.said(f"b gets no stage for {2 * BAN_S:.0f} s")


def test_without_another_node_nothing_moves_and_it_is_said_seldom() -> None:
    world = flow_world("a")
    world.rate = 10.0
    world.run(5)
    before = world.plan
    world.modes["a"] = Mode.HUNG
    world.run(300)
    said = [line for line in world.lines if "stands still, and there is no other node" in line]
    assert world.plan == before and 3 <= len(said) <= 10
    world.modes.clear()
    world.until(lambda: world.ready, 120)  # 3000 windows wait


def test_a_deployment_that_answers_nothing_for_no_nodes_fault_is_moved_little(world: FlowWorld) -> None:
    """Every node is a ghost: the cause lies elsewhere."""
    world.modes = dict.fromkeys("abcd", Mode.GHOST)
    world.run(600)
    assert world.coordinator is not None and world.coordinator.stood <= 14


# --- what must move nothing


def test_a_slow_model_moves_nothing() -> None:
    world = flow_world(latency_s=8.0)
    world.service_s = dict.fromkeys("abcd", 2.5)
    world.rate = 0.3
    world.run(120)
    assert moves(world) == [] and world.ready


def test_a_model_that_is_slower_than_planned_moves_nothing() -> None:
    world = flow_world(latency_s=0.1)
    world.service_s = dict.fromkeys("abcd", 1.2)
    world.rate = 0.7
    world.run(120)
    assert moves(world) == [] and world.ready


def test_a_long_queue_that_moves_moves_nothing(world: FlowWorld) -> None:
    world.service_s["b"] = 0.2
    world.run(120)
    assert moves(world) == [] and len(world.replicas[5000, 1, 0].work) > 500


def test_sensors_that_stop_and_start_move_nothing(world: FlowWorld) -> None:
    for pause_s in (0.7, 1.5, 3.1, 5.0, 12.0, 60.0):
        world.rate = 0.0
        world.run(pause_s)
        world.rate = 10.0
        world.run(1.3)
    assert moves(world) == [] and world.ready


def test_rare_windows_cost_one_probe_each_at_most(world: FlowWorld) -> None:
    world.rate = 0.2
    world.run(20)
    before = sum(one.windows for one in world.replicas.values())
    world.run(100)
    after = sum(one.windows for one in world.replicas.values())
    assert (after - before) / 3 <= 20 + 20 + 20 + 1  # windows, one probe each, one every 5 s
    assert moves(world) == []


def test_a_broker_that_restarts_moves_nothing(world: FlowWorld) -> None:
    world.broker.stop()
    world.run(8)
    world.broker.start()
    for name in "abc":  # they need longer than the coordinator
        world.modes[name] = Mode.HUNG
    world.run(2.5)
    world.modes.clear()
    world.run(20)
    assert moves(world) == [] and world.ready


@pytest.mark.parametrize("pause_s", [0.8, 4.0, 3600.0])
def test_a_coordinator_that_was_suspended_moves_nothing(world: FlowWorld, pause_s: float) -> None:
    service = world.service
    for _ in range(5):
        world.service = None
        if pause_s > 60:
            world.now += pause_s
        else:
            world.run(pause_s)
        world.service = service
        world.run(0.2)
    world.run(10)
    assert moves(world) == [] and world.ready


def test_a_network_that_delays_everything_for_two_seconds_moves_nothing(world: FlowWorld) -> None:
    for name in ("a", "b", "c"):
        world.modes[name] = Mode.HUNG
        world.run(2.0)
        world.modes.clear()
        world.run(3.0)
    assert moves(world) == []


# --- shards and replicas


@pytest.fixture
def shards() -> FlowWorld:
    world = flow_world(manifest=shard_manifest())
    world.rate = 10.0
    world.run(6)
    assert world.gap(world.now - 5) < 0.5
    return world


@pytest.mark.parametrize(("stage", "node"), [(0, "a"), (1, "b"), (2, "c")])
@pytest.mark.parametrize("mode", [Mode.HUNG, Mode.GHOST])
def test_of_shards_that_wait_for_each_other_the_one_that_hangs_is_moved(
    shards: FlowWorld, stage: int, node: str, mode: Mode
) -> None:
    began = shards.now
    shards.modes[node] = mode
    shards.until(lambda: shards.homes[stage] == "d", GAP_S)
    shards.run(1.5)
    assert len(moves(shards)) == 1 and shards.gap(began) <= GAP_S


def test_of_shards_the_one_that_sends_what_the_others_refuse_is_moved(shards: FlowWorld) -> None:
    shards.modes["b"] = Mode.WRONG
    shards.until(lambda: shards.homes[1] == "d", GAP_S)
    shards.run(1.5)
    assert len(moves(shards)) == 1


def test_a_replica_that_hangs_is_moved_although_the_others_answer() -> None:
    world = flow_world("abcde", replicas=2)
    world.rate = 10.0
    world.run(10)
    placed = {(one.stage, one.replica): one.node for one in world.plan.current.placements}  # type: ignore[union-attr]
    assert placed == {(0, 0): "a", (0, 1): "b", (1, 0): "c", (2, 0): "d"} and moves(world) == []
    world.modes["b"] = Mode.HUNG
    world.until(lambda: moves(world) != [], 40)
    assert moves(world) == ["epoch 5000: stage 0, replica 1, goes from b to e: it stood still on b"]


# --- trials


def test_a_ghost_in_a_trial_gets_no_second_one() -> None:
    world = flow_world("ab")  # three stages on two nodes
    world.modes["c"] = Mode.GHOST
    world.join("c")
    world.until(lambda: world.said("was withdrawn"), 60)
    assert world.said("no answer to a probe in 10 s; trying again in 2 s, without c")
    world.run(BAN_S - 5)
    assert sum("was withdrawn" in line for line in world.lines) == 1 and "c" not in world.homes.values()


def test_the_stage_that_stood_still_in_a_trial_counts_and_not_all_that_is_new() -> None:
    world = flow_world("a")
    world.modes["c"] = Mode.GHOST
    world.join("b")
    world.join("c")
    world.until(lambda: world.said("was withdrawn"), 60)
    assert world.said("trying again in 2 s, without c")
    world.until(lambda: "b" in world.homes.values(), 40)
    assert "c" not in world.homes.values()
