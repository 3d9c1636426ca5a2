"""What nodes say of lost windows and unusable messages becomes a finding that names them, and what to do."""

from __future__ import annotations

from har_edge.monitor.broker_checks import Finding, Verdict
from har_edge.monitor.losses import losses
from har_edge.monitor.observer import Observer
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.status import State, StreamCount
from tests.runtime.deployed import TOPICS, Said, deployment, generation, report

SAID, WALL = Said(), 1_700_000_000.0
COMMAND = "har-edge doctor --clear --pipeline har"


def find(*deliveries: Delivery) -> Finding:
    observer = Observer(TOPICS, 0.0)
    for delivery in deliveries:
        observer.handle(delivery, 0.0, WALL)
    (finding,) = losses("losses", observer.snapshot(0.0, WALL), COMMAND)
    return finding


def test_nothing_lost() -> None:
    finding = find(SAID.status("stage-0", "stage", counters={"windows": 5}), SAID.status("pi-1"))
    assert finding.verdict is Verdict.OK and "no living node says that it lost a window or rejected" in finding.said


def test_old_stages_that_reject_every_window_are_named() -> None:
    finding = find(
        SAID.status("stage-0", "stage", counters={"rejected": 588}), SAID.status("stage-1", "stage", counters={})
    )
    assert finding.verdict is Verdict.FAIL
    assert finding.said == "messages could not be used since these started: 588 by stage-0"
    assert "see the logs of the nodes that reject" in finding.remedy


def test_stages_of_a_plan_tell_theirs_by_beats_and_those_that_have_gone_no_more() -> None:
    finding = find(
        SAID.plan(deployment(generation("pi-1", "pi-1", "pi-2"))),
        SAID.status("pi-1"),
        SAID.beat("pi-1", WALL, report(0, errors=3, lost=2), report(1, errors=4)),
        SAID.status("stage-9", "stage", State.LOST, counters={"rejected": 7}),
    )
    assert finding.said == (
        "2 windows were given up by stages since these started; messages could not be used since these started: "
        "7 by pi-1"
    )


def test_what_a_sensor_lost_that_has_gone_can_be_forgotten_and_that_of_a_living_one_not() -> None:
    streams = {"anna": StreamCount(1, WALL, 20, 15, 3)}
    living = find(SAID.status("sensor-a", "sensor", streams=streams))
    assert living.said == "windows were lost: 3 of 20 of anna by sensor-a" and "--clear" not in living.remedy
    gone = find(SAID.status("sensor-a", "sensor", State.STOPPED, streams=streams))
    assert living.verdict is Verdict.FAIL and gone.verdict is Verdict.NOTE
    assert gone.said == "windows were lost by sensors that have gone: 5 of 20 of anna by sensor-a"
    assert gone.remedy.endswith(f"forget sensors that have gone: `{COMMAND}`")


def test_of_many_only_some_are_named() -> None:
    streams = {f"s{number}": StreamCount(1, WALL, 20, 15, 3) for number in range(6)}
    assert find(SAID.status("sensor-a", "sensor", streams=streams)).said.endswith("of s3 by sensor-a and 2 more")


def test_what_a_stage_gave_up_may_be_what_other_sensors_have_not_sent() -> None:
    streams = [{"anna": StreamCount(run, WALL, 20, 20 - count, 0, count)} for run, count in ((1, 3), (2, 1))]
    sensors = [SAID.status(f"sensor-{run}", "sensor", streams=one) for run, one in enumerate(streams)]
    assert find(*sensors).verdict is Verdict.OK
    finding = find(*sensors, SAID.status("stage-0", "stage", counters={"given_up": 4}))
    assert finding.said == (
        "4 windows were given up by stages since these started, 3 of them may be windows that not all sensors of their "
        "stream have sent"
    )


def test_it_is_said_how_long_ago_and_the_latest_come_first() -> None:
    lost, open_ = {"anna": StreamCount(1, WALL, 20, 15, 5)}, {"bert": StreamCount(1, WALL, 20, 15, 0)}
    old = SAID.status("sensor-a", "sensor", State.STOPPED, streams=lost, said=WALL - 9000, lost_at=WALL - 10_800)
    new = SAID.status("sensor-b", "sensor", State.STOPPED, streams=open_, said=WALL - 30.0, lost_at=WALL - 9000)
    assert find(old, new).said == (
        "windows were lost by sensors that have gone: 5 of 20 of bert by sensor-b, the last 30 s ago, "
        "5 of 20 of anna by sensor-a, the last 3.0 h ago"
    )
    finding = find(
        SAID.status("stage-0", "stage", counters={"given_up": 2}, lost_at=WALL - 300),
        SAID.status("sensor-c", "sensor", streams=lost, counters={"dropped": 7}, lost_at=WALL - 60),
    )
    assert finding.said == (
        "windows were lost: 5 of 20 of anna by sensor-c, the last 60 s ago; 2 windows were given up by stages since "
        "these started (the last 5 min ago); 7 windows were dropped at sensors since these started (the last 60 s ago)"
    )


def test_what_living_nodes_lost_is_wrong_and_what_others_lost_a_note() -> None:
    streams = {"anna": StreamCount(1, WALL, 20, 15, 5)}
    observer = Observer(TOPICS, 0.0)
    for delivery in (
        SAID.status("sensor-a", "sensor", State.STOPPED, streams=streams),
        SAID.status("sensor-b", "sensor", streams=streams),
    ):
        observer.handle(delivery, 0.0, WALL)
    found = list(losses("losses", observer.snapshot(0.0, WALL), COMMAND))
    assert [one.verdict for one in found] == [Verdict.FAIL, Verdict.NOTE]
    assert "by sensor-b" in found[0].said and "sensor-a" not in found[0].said and "by sensor-a" in found[1].said
