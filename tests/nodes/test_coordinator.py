"""The coordinator among nodes that join, leave, crash, hang, fail and slow down."""

from __future__ import annotations

import pytest

from tests.nodes.coordinated import World


@pytest.fixture
def world() -> World:
    """Three nodes and a coordinator, running."""
    world = World()
    for name in "abc":
        world.join(name)
    world.start()
    world.until(lambda: world.ready)
    return world


def test_nodes_that_are_there_get_a_stage_each_and_sensors_an_epoch_that_answers(world: World) -> None:
    assert world.homes == {0: "a", 1: "b", 2: "c"} and world.plan is not None
    assert world.plan.epoch == 5000 and len(world.plan.generations) == 1
    assert world.answered == {5000}
    assert [plan.epoch for plan in world.plans] == [0, 5000]  # nobody sends before a probe came through
