"""The brokers of flows among nodes that carry brokers, join, leave, crash, and cannot reach each other."""

from __future__ import annotations

import msgspec

from har_edge.coordinator.flow_assigner import BLOCK_S, UNREACHABLE_S
from har_edge.coordinator.membership import Membership
from har_edge.coordinator.replan import PlacementSpec
from har_edge.coordinator.session_gc import SessionCollector
from har_edge.protocol.deployment import Generation
from tests.runtime.coordinated import World
from tests.runtime.deployed import EPOCH, deployment, generation

# The quickest node gets the first stage, and so on.
SPEEDS = {"a": 100.0, "b": 99.0, "c": 98.0, "d": 97.0}


def url(name: str) -> str:
    return f"mqtt://10.0.0.{ord(name)}:1884"


def join(world: World, *names: str, **more: object) -> None:
    for name in names:
        said: dict[str, object] = {"routes": True, "offer": url(name), "speed": SPEEDS[name]}
        world.join(name, **(said | more))


def current(world: World) -> Generation:
    assert world.plan is not None and world.plan.current is not None
    return world.plan.current


def started(*names: str, local: bool = True, spec: PlacementSpec | None = None, **more: object) -> World:
    world = World(spec, local_brokers=local)
    join(world, *names, **more)
    world.start()
    world.until(lambda: world.ready)
    return world


def test_each_flow_goes_through_the_broker_of_the_node_that_makes_it_from_the_first_plan_on() -> None:
    world = started(*"abc")
    assert current(world).flows == {"0": "a", "1": "b"}
    assert current(world).brokers == {"a": url("a"), "b": url("b")}  # nobody takes anything from the last stage
    assert next(plan.generations[0].flows for plan in world.plans if plan.generations) == {"0": "a", "1": "b"}
    assert world.said("epoch 5000: flows go through nodes' own brokers: 0 at a, 1 at b")


def test_without_the_option_the_plan_is_one_that_an_older_node_reads() -> None:
    generation = current(started(*"abc", local=False))
    assert (generation.brokers, generation.flows) == ({}, {})


def test_a_node_without_a_broker_sends_through_the_central_one() -> None:
    world = World(local_brokers=True)
    join(world, "a", offer="")
    join(world, "b", "c")
    world.start()
    world.until(lambda: world.ready)
    assert current(world).flows == {"1": "b"}


def test_an_older_node_keeps_every_flow_at_the_central_broker_while_it_lives() -> None:
    world = started(*"abc")
    join(world, "d", routes=False, offer="")
    world.until(lambda: not current(world).brokers)
    assert current(world).flows == {}
    assert world.said("no flow goes through a node's own broker while an older har-edge runs on d")
    world.crash("d")
    world.until(lambda: current(world).flows)


def test_an_address_that_is_none_is_not_used() -> None:
    world = started(*"abc", offer="http://10.0.0.1/")
    assert current(world).brokers == {}


def test_a_local_address_is_for_nodes_of_one_machine() -> None:
    assert current(started(*"abc", offer="mqtt://127.0.0.1:1884")).flows == {"0": "a", "1": "b"}
    world = World(local_brokers=True)
    for name in "abc":
        join(world, name, offer="mqtt://127.0.0.1:1884", machine=name)
    world.start()
    world.until(lambda: world.ready)
    assert current(world).flows == {}


def test_a_stage_of_several_replicas_sends_through_the_central_broker() -> None:
    world = started(*"abc", spec=PlacementSpec(stages=2))
    assigner = world.coordinator._flows  # type: ignore[union-attr]
    deployed = world.plan
    assert deployed is not None and current(world).flows == {"0": "a"}
    first = current(world).placements[0]
    more = (*current(world).placements, msgspec.structs.replace(first, node="c", replica=1))
    generation = msgspec.structs.replace(current(world), placements=more)
    assigned, _ = assigner.assign(msgspec.structs.replace(deployed, generations=(generation,)), world.now)
    assert assigned.generations[0].flows == {}


def test_a_crash_takes_the_broker_out_of_the_plan_at_once_and_the_flow_comes_back_when_all_listen() -> None:
    world = started(*"abcd", spec=PlacementSpec(stages=3))
    for node in world.nodes.values():
        node.linked = False
    world.crash("b")
    world.until(lambda: world.homes[1] == "d", 3)
    assert "b" not in current(world).brokers and "1" not in current(world).flows
    world.run(1.0)
    assert current(world).brokers == {"a": url("a"), "d": url("d")}  # who takes the flow is to listen there first
    assert current(world).flows == {"0": "a"}
    world.nodes["c"].linked = True
    world.until(lambda: current(world).flows == {"0": "a", "1": "d"}, 3)


def test_a_flow_whose_taker_moves_keeps_its_broker() -> None:
    world = started(*"abcd", spec=PlacementSpec(stages=3))
    world.crash("c")
    world.until(lambda: world.homes[2] == "d", 3)
    assert current(world).flows == {"0": "a", "1": "b"}


def test_a_node_that_leaves_is_still_listened_to_until_it_has_gone() -> None:
    world = started(*"abcd", spec=PlacementSpec(stages=3))
    world.leave("b")
    world.until(lambda: world.homes[1] == "d", 10)
    world.step()
    seen = [one for plan in world.plans for one in plan.generations if one.placements[1].node == "d"]
    assert seen and "b" in seen[0].brokers and seen[0].flows.get("1") != "b"
    world.until(lambda: "b" not in world.nodes and "b" not in current(world).brokers, 20)


def test_a_broker_that_comes_back_at_another_address_is_waited_for() -> None:
    world = started(*"abc")
    node = world.nodes["a"]
    for one in world.nodes.values():
        one.linked = False
    node.offer = "mqtt://10.0.0.9:7"
    node.say()
    world.until(lambda: current(world).brokers.get("a") == node.offer, 3)
    assert current(world).flows == {"1": "b"}
    for one in world.nodes.values():
        one.linked = True
    world.until(lambda: current(world).flows == {"0": "a", "1": "b"}, 3)


def test_a_broker_that_ended_by_itself_goes_from_the_plan() -> None:
    world = started(*"abc")
    world.nodes["a"].offer = ""
    world.nodes["a"].say()
    world.until(lambda: current(world).brokers == {"b": url("b")}, 3)
    assert current(world).flows == {"1": "b"}


def test_a_broker_that_a_living_stage_cannot_reach_is_left_alone_for_a_while() -> None:
    world = started(*"abc")
    world.nodes["b"].unreachable = ("a",)
    world.run(UNREACHABLE_S - 1)
    assert current(world).flows == {"0": "a", "1": "b"}
    world.until(lambda: "a" not in current(world).brokers, 3)
    assert current(world).flows == {"1": "b"}
    assert world.said("b cannot reach the broker of a at mqtt://10.0.0.97:1884: its flows go through")
    world.nodes["b"].unreachable = ()
    world.run(BLOCK_S - 10)
    assert "a" not in current(world).brokers
    world.until(lambda: current(world).flows == {"0": "a", "1": "b"}, 20)


def test_a_moment_without_a_broker_changes_nothing() -> None:
    world = started(*"abc")
    for _ in range(5):
        world.nodes["b"].unreachable = ("a",)
        world.run(UNREACHABLE_S - 1)
        world.nodes["b"].unreachable = ()
        world.run(1.0)
    assert current(world).flows == {"0": "a", "1": "b"}


def test_a_coordinator_that_starts_again_keeps_the_brokers_and_one_without_the_option_uses_none() -> None:
    world = started(*"abc")
    before = current(world)
    world.kill()
    world.start()
    world.run(5)
    assert (current(world).brokers, current(world).flows) == (before.brokers, before.flows)
    assert all(plan.generations[0].flows == before.flows for plan in world.plans[-3:])
    world.kill()
    world.local_brokers = False
    world.start()
    world.until(lambda: current(world).flows == {}, 5)
    assert current(world).brokers == before.brokers  # what waits there is still fetched


def test_sessions_of_a_lost_node_are_ended_at_the_brokers_of_others_too() -> None:
    with_brokers = msgspec.structs.replace(generation("a", "b", "z"), brokers={"b": url("b"), "a": url("a")})
    collector, before = SessionCollector(), deployment(with_brokers)
    collector.note(before, msgspec.structs.replace(before, generations=(), revision=9), 0.0)
    ended = [(key, at) for key, at in collector.due(Membership(), 0.1) if key == (EPOCH, 2, 0)]
    assert ended == [((EPOCH, 2, 0), at) for at in ("", url("a"), url("b"))]
