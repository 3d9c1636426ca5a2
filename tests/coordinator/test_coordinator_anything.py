"""Whatever happens to nodes, coordinator and broker: stages have living nodes, and sensors an epoch that answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_edge.coordinator.replan import PlacementSpec
from har_edge.protocol.status import State
from tests.runtime.coordinated import World

NAMES = "abcd"
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["join", "crash", "hang", "wake", "leave", "fail", "kill", "start", "broker", "mute"]),
        st.sampled_from(NAMES),
        st.floats(0, 6),
    ),
    max_size=12,
)


def act(world: World, action: str, name: str) -> None:
    """Do one thing, where it makes sense."""
    node = world.nodes.get(name)
    if action == "join" and node is None:
        world.join(name)
    elif action == "kill":
        world.kill()
    elif action == "start":
        world.start()
    elif action == "mute":
        world.mute.add(max((one.epoch for one in world.plan.generations), default=5000) + 1 if world.plan else 5000)
    elif action == "broker":
        world.broker.stop()
        world.run(1)
        world.broker.start()
    elif node is not None:
        if action == "crash":
            world.crash(name)
        elif action in ("hang", "wake"):
            node.hung = action == "hang"
        elif action == "fail":
            node.failing = "" if node.failing else "broken"
        elif action == "leave" and node.state is State.READY and not node.hung:
            world.leave(name)


def check(world: World) -> None:
    """What must hold of all plans there were."""
    plans = world.plans
    for earlier, later in pairwise(plans):
        assert later == earlier or later.revision > earlier.revision
        assert later.epoch >= earlier.epoch
        old = [one.epoch for one in earlier.generations]
        assert all(one.epoch in old or one.epoch > max(old, default=0) for one in later.generations)
    assert {plan.epoch for plan in plans} <= world.answered | {0}
    assert not world.answered & world.mute


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from([PlacementSpec(), PlacementSpec(stages=3)]), ACTIONS)
def test_whatever_happens(spec: PlacementSpec, actions: list[tuple[str, str, float]]) -> None:
    world = World(spec, settle_s=1.0)
    world.join("a")
    world.join("b")
    world.start()
    world.run(4)
    for action, name, wait_s in actions:
        act(world, action, name)
        world.run(wait_s)
        check(world)
    world.mute.clear()
    if world.service is None:
        world.start()
    alive = {name for name, node in world.nodes.items() if not node.hung and node.state is State.READY}
    if not alive:
        return
    world.run(12)  # the grace of a new connection, a node that leaves and waits for its successor
    check(world)
    homes = set(world.homes.values())
    if world.plan is not None and world.plan.epoch:
        assert homes <= alive, (world.lines, world.plan)
    healthy = {name for name in alive if not world.nodes[name].failing}
    if healthy == alive:
        world.until(lambda: world.ready, 120)
        assert world.plan is not None and len(world.plan.generations) >= 1
