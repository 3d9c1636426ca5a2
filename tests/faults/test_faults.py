"""One fault of each kind under load, on real processes and Mosquitto: nothing lost, nothing doubled, all as it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from har_edge.experiments.environment import Environment, emulated_environment
from har_edge.experiments.faults import FaultKind
from har_edge.experiments.load import Answers, LineDevice
from har_edge.experiments.reference import Reference
from har_edge.protocol.status import State
from har_edge.protocol.topics import COORDINATOR
from tests.emulation.machine import require_machine
from tests.faults.rig import FaultScenario, open_scenario


@pytest.fixture
def scenario(environment: Environment, folder: Path, reference: Reference) -> Iterator[FaultScenario]:
    with open_scenario(environment, folder, reference) as scenario:
        yield scenario


def test_a_crash_moves_the_stages_and_a_join_brings_the_node_back(scenario: FaultScenario, expected: Answers) -> None:
    victim = scenario.holder(1)
    crash = scenario.hurt(FaultKind.CRASH, victim)
    assert crash.noticed_s is not None and scenario.held(victim) == []
    scenario.hurt(FaultKind.JOIN, victim)
    assert scenario.cluster.recorder.state(victim) in (State.READY, State.BUSY)
    scenario.check(expected)


def test_a_node_that_hung_has_lost_its_stage_when_it_wakes(scenario: FaultScenario, expected: Answers) -> None:
    victim = scenario.holder(2)
    hang = scenario.hurt(FaultKind.HANG, victim)
    assert hang.noticed_s is not None
    scenario.check(expected)
    assert scenario.cluster.processes.running[victim].alive


def test_a_node_that_leaves_hands_over_first(scenario: FaultScenario, expected: Answers) -> None:
    victim = scenario.holder(0)
    scenario.hurt(FaultKind.LEAVE, victim)
    assert scenario.cluster.processes.running[victim].process.returncode == 0
    assert scenario.cluster.recorder.state(victim) is State.STOPPED and scenario.held(victim) == []
    scenario.check(expected)


def test_data_flows_without_a_coordinator_and_the_next_one_takes_the_plan_up(
    scenario: FaultScenario, expected: Answers
) -> None:
    before = scenario.cluster.recorder.deployment
    scenario.hurt(FaultKind.COORDINATOR)
    after = scenario.cluster.recorder.deployment
    assert before is not None and after is not None and after.epoch == before.epoch
    victim = scenario.holder(1)
    scenario.hurt(FaultKind.CRASH, victim)
    assert scenario.held(victim) == []
    scenario.check(expected)


def test_other_cuts_take_over_while_data_flows(
    environment: Environment, folder: Path, reference: Reference, expected: Answers
) -> None:
    with open_scenario(environment, folder, reference, options=["--settle", "1"]) as scenario:
        before = scenario.cluster.recorder.deployment
        replan = scenario.hurt(FaultKind.REPLAN)
        after = scenario.cluster.recorder.deployment
        assert before is not None and after is not None and after.epoch > before.epoch
        assert replan.detail == "3 stages, 2, and 3 again"
        scenario.check(expected)


def test_a_device_that_became_slow_loses_its_stage_to_one_that_is_not(
    environment: Environment, folder: Path, reference: Reference, expected: Answers
) -> None:
    sign = folder / "slow"
    with open_scenario(environment, folder, reference, nodes=4, options=["--settle", "1"], slow=sign) as scenario:
        victim, recorder = scenario.holder(1), scenario.cluster.recorder
        scenario.injector.await_calm(2.0)
        began = {stage.stage: stage.windows for stage in recorder.heartbeats[victim].stages}
        scenario.cluster.until(  # how fast it was is known by then
            lambda: (
                recorder.heartbeats[victim].stages
                and recorder.heartbeats[victim].stages[0].windows > began.get(1, 0) + 60
            ),
            "no windows",
        )
        sign.write_text(victim)
        scenario.cluster.until(lambda: not scenario.held(victim), f"{victim} keeps its stage", 60.0)
        said = (folder / f"{COORDINATOR}.log").read_text()
        assert "measured speeds speak for another plan" in said  # not that it seemed lost
        assert scenario.cluster.processes.running[victim].alive
        scenario.check(expected)


def test_replicas_share_the_windows_of_a_stage_and_what_one_held_when_it_died_goes_on(
    environment: Environment, folder: Path, reference: Reference, expected: Answers
) -> None:
    # Declared links that take far longer than any computing, so that the plan is the same wherever the tests run.
    links = {"device-1": 1e9, "device-2": 5e3, "device-3": 5e3, "device-4": 5e3}
    devices = folder / "devices.toml"
    devices.write_text(
        "".join(f'[[device]]\nname = "{name}"\nlink_bytes_per_s = {rate}\n' for name, rate in links.items())
    )
    options = ["--stages", "2", "--replicas", "2", "--devices", str(devices), "--settle", "1"]
    with open_scenario(environment, folder, reference, nodes=4, options=options) as scenario:
        recorder, shared = scenario.cluster.recorder, 1

        def sharing() -> set[str]:
            current = recorder.deployment and recorder.deployment.current
            return {one.node for one in current.placements if one.stage == shared} if current else set()

        scenario.cluster.until(lambda: len(sharing()) == 2 and recorder.is_settled(), "no stage is shared")
        twins = sorted(sharing())
        assert scenario.holder(0) == "device-1" and "device-1" not in twins
        scenario.cluster.until(
            lambda: all(recorder.heartbeats[twin].stages[0].windows > 20 for twin in twins),
            "not both of them get windows",
        )
        scenario.hurt(FaultKind.CRASH, twins[1])
        assert scenario.held(twins[1]) == [] and scenario.held(twins[0]) == [shared]
        scenario.check(expected)


@pytest.mark.parametrize("kind", [FaultKind.BROKER_STOP, FaultKind.BROKER_KILL])
def test_a_broker_that_comes_back_finds_them_all(scenario: FaultScenario, expected: Answers, kind: FaultKind) -> None:
    scenario.hurt(kind)
    scenario.check(expected)


@pytest.mark.xdist_group("emulation")
def test_a_cable_that_is_pulled_and_plugged_in_again(folder: Path, reference: Reference, expected: Answers) -> None:
    require_machine()
    devices = ["device-1", "device-2", "device-3"]
    with (
        emulated_environment(folder, devices) as environment,
        open_scenario(environment, folder, reference) as scenario,
    ):
        victim = scenario.holder(1)
        cut = scenario.hurt(FaultKind.CUT, victim)
        assert cut.noticed_s is not None
        scenario.check(expected)
        assert scenario.cluster.processes.running[victim].alive


def test_a_live_device_says_what_it_dropped(scenario: FaultScenario, reference: Reference, expected: Answers) -> None:
    device = LineDevice(scenario.cluster, reference.recordings[0], reference.live("live"), "live", queue=2)
    device.start()
    scenario.cluster.until(lambda: device.answered >= 2, "no live results")
    scenario.cluster.environment.broker.stop(signal.SIGTERM)
    scenario.cluster.run_for(5.0)
    scenario.cluster.environment.broker.start()
    before = device.answered
    scenario.cluster.until(lambda: device.answered > before + 2, "no live results")
    device.finish(30.0)
    found = device.check_answers(reference.answers(device.windows))
    assert found.good and device.dropped > 0, f"{found}, {device.dropped}\n{scenario.cluster.processes.last_lines()}"
    assert device.answered + device.dropped == len(device.windows)
    scenario.check(expected)


def test_two_coordinators_do_not_fight(scenario: FaultScenario, expected: Answers) -> None:
    older = scenario.cluster.processes.running.pop(COORDINATOR)
    scenario.cluster.start(*scenario.injector.coordinator, name=COORDINATOR)
    scenario.cluster.until(lambda: not older.alive, "the older coordinator stays")
    assert older.process.returncode == 3
    victim = scenario.holder(1)
    scenario.hurt(FaultKind.CRASH, victim)
    assert scenario.held(victim) == []
    scenario.check(expected)
