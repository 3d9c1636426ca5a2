"""A pipeline that is cut anew under its name: what the stages of the old cut had asked for is ended."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from har_edge.config.catalog import find_model
from har_edge.config.pipeline import load_pipeline
from har_edge.mqtt.bus import Bus, PublishOutcome, Session
from har_edge.protocol.status import State
from har_edge.runtime.slicing import prepare
from tests.cli.fleet import Fleet

LOAD = ("--subjects", "1,2", "--windows", "10", "--speed", "max")


def until_nobody_listens(fleet: Fleet, bus: Bus, topic: str) -> None:
    """Send one message at a time; a broker that has no subscriber says so."""
    heard: list[PublishOutcome] = []
    for number in range(20):
        bus.publish(topic, b"x", on_outcome=heard.append)
        fleet.until(lambda number=number: bus.poll(0.02) or len(heard) > number, "no PUBACK")  # type: ignore[misc]
        if heard[-1] is PublishOutcome.NO_SUBSCRIBERS:
            return
        time.sleep(0.1)
    raise AssertionError(f"somebody still listens to {topic}")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_sessions_and_subscriptions_of_the_old_cut_end(fleet: Fleet, tmp_path: Path, protocol: str) -> None:
    old = fleet.stages("--protocol", protocol)
    assert fleet.start("sensor", "--combine", *LOAD).wait() == 0
    fleet.until_results(20)
    epoch = fleet.pipeline.config.epoch
    assert [stage.end() for stage in old] == [0, 0, 0]
    fleet.until(lambda: all(fleet.state(f"stage-{i}") is State.STOPPED for i in range(3)), "no farewell")

    found = find_model("int8")
    assert found.entry is not None
    shutil.rmtree(fleet.slices)
    prepare(found.path, found.entry.task, fleet.slices, stages=2, cuts=[6])
    file = fleet.slices / "pipeline.toml"
    file.write_text(file.read_text().replace('name = "har"', f'name = "{fleet.name}"'))
    fleet.pipeline = load_pipeline(fleet.slices)
    new = [fleet.stage(index, "--protocol", protocol) for index in range(2)]
    fleet.until_ready("stage-0", "stage-1")
    assert "stage-2 is not part of this cut and has gone: its session at the broker is ended" in new[0].output
    fleet.results.clear()
    assert fleet.start("sensor", "--combine", *LOAD).wait() == 0
    fleet.until_results(20)

    # A message of the old cut shows each subscription that is left in a session, and that one is ended.
    bus = fleet.open(Session(f"{fleet.name}-asks"))
    for stage in (0, 1):
        until_nobody_listens(fleet, bus, fleet.topics.activation(epoch, stage, "x"))
    bus.close(forget=True)
    assert [stage.end() for stage in new] == [0, 0]
    assert "messages rejected" in new[0].output and all(", 0 messages rejected" in stage.output for stage in new)
