"""A sensor is killed and comes back, as processes on Mosquitto: results go on without it, and are complete again."""

from __future__ import annotations

import signal

from har_edge.protocol.status import State
from tests.cli.fleet import Fleet, Running

SUBJECT = ("--subjects", "1")


def test_results_go_on_without_a_killed_sensor_and_are_complete_when_it_is_back(fleet: Fleet) -> None:
    """The chest sets the pace; the others keep step by their credit of results: 4 windows of 0.5 s ahead."""
    file = fleet.slices / "pipeline.toml"
    text = file.read_text().replace('missing = "wait"', 'missing = "carry_on"')
    file.write_text(text.replace("carry_on_after_s = 1.0", "carry_on_after_s = 3.0"))
    stages = fleet.stages()
    chest = fleet.start("sensor", "--source", "chest", *SUBJECT, "--speed", "5")
    fleet.until(lambda: "connected" in chest.output, "the sensor does not start")

    def keep_step(source: str) -> Running:
        return fleet.start("sensor", "--source", source, *SUBJECT, "--speed", "max", "--in-flight", "4")

    def answered(since: int, *missing: str) -> int:
        return sum(seq > since and result.missing == [*missing] for (_, seq), result in fleet.results.items())

    ankle, arm = keep_step("ankle"), keep_step("arm")
    fleet.until(lambda: answered(-1) >= 5, "no complete results")
    assert arm.end(signal.SIGKILL) == -signal.SIGKILL
    fleet.until(lambda: answered(-1, "arm") >= 8, "no results without the arm")
    gone_at = max(seq for _, seq in fleet.results)
    keep_step("arm")
    fleet.until(lambda: answered(gone_at) >= 5, "results are not complete again")
    assert [one.process.poll() for one in (*stages, chest, ankle)] == [None] * 5
    back_at = max(seq for _, seq in fleet.results)
    fleet.until(lambda: {seq for _, seq in fleet.results} >= set(range(back_at)), "a window has no answer")
    assert [stage.end() for stage in stages] == [0, 0, 0]
    fleet.until(lambda: all(fleet.state(f"stage-{index}") is State.STOPPED for index in range(3)), "no farewell")
    assert fleet.doubled == fleet.sink.counters.duplicates == 0
    assert [fleet.counter(f"stage-{index}", "given_up") for index in range(3)] == [0, 0, 0]
    assert fleet.counter("stage-1", "carried_on") >= 8 and fleet.counter("stage-1", "late") >= 8
    assert "carrying on without arm" in stages[1].output and "all sources are there again" in stages[1].output
