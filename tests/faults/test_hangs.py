"""Stages that stand still while heartbeats go on, on real processes and Mosquitto: moved, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.hangs import Misbehaviour, open_standstills
from har_edge.experiments.environment import Environment
from har_edge.experiments.reference import Reference


@pytest.mark.slow
def test_a_hung_stage_a_ghost_and_wrong_shapes_lose_nothing(
    environment: Environment, folder: Path, reference: Reference
) -> None:
    made = reference.windows()
    each = min(sum(window.stream == stream for window in made) for stream in reference.streams)
    with open_standstills(environment, folder, reference, 4, each) as standstills:
        victim = standstills.holder(1)
        standstills.run(Misbehaviour.HUNG_RUN, 1)
        log = folder / f"{victim}.log"
        standstills.cluster.until(lambda: "starting anew" in log.read_text(), "the node does not start anew", 30.0)
        standstills.run(Misbehaviour.GHOST, 2)
        standstills.run(Misbehaviour.WRONG, 0)
        standstills.load.finish(120.0)
        check = standstills.load.check_answers(reference.answers(made))
    assert check.good, check
    assert (folder / "coordinator.log").read_text().count("stood still: ") >= 2
