"""What beats tell of the speed of nodes, and of queues."""

from __future__ import annotations

import pytest

from har_edge.coordinator.speeds import BacklogMonitor, SpeedEstimator
from har_edge.protocol.status import Heartbeat, StagePhase, StageReport

KEY = (1, 0, 0)


def run(
    speeds: SpeedEstimator, node: str, windows: range, service_s: float, key: tuple[int, int, int] = KEY, queue: int = 0
) -> None:
    """Let a node report one stage, five windows a beat, `queue` more waiting at each; 1 ms were expected."""
    for number in windows:
        waiting = queue * (number - windows.start + 1)
        report = StageReport(*key, StagePhase.RUNNING, windows=5 * number, service_s=service_s, queued=waiting)
        speeds.note(Heartbeat(node, "i", number, 0.0, 0, (report,)), {key: 1e-3})


def test_a_node_is_compared_with_itself() -> None:
    """Twice the forecast from the start is a bad forecast; twice of what it was is a slow node."""
    speeds = SpeedEstimator()
    run(speeds, "a", range(10), 2e-3)
    assert speeds.factor("a") == pytest.approx(1.0)
    run(speeds, "a", range(10, 90), 6e-3)
    assert speeds.factor("a") == pytest.approx(3.0, rel=0.05)
    run(speeds, "a", range(90, 180), 2e-3)
    assert speeds.factor("a") == pytest.approx(1.0, rel=0.05)


def test_a_node_whose_queue_grows_is_taken_for_slow_sooner() -> None:
    patient, pressed = SpeedEstimator(), SpeedEstimator()
    for speeds, queue in ((patient, 0), (pressed, 10)):
        run(speeds, "a", range(10), 2e-3)
        run(speeds, "a", range(10, 16), 6e-3, queue=queue)
    assert pressed.factor("a") > 2.7 > 2.4 > patient.factor("a")


def test_a_queue_that_grows_at_the_same_speed_is_no_fault_of_the_node() -> None:
    speeds = SpeedEstimator()
    run(speeds, "a", range(10), 2e-3)
    run(speeds, "a", range(10, 40), 2e-3, queue=100)
    assert speeds.factor("a") == pytest.approx(1.0)


def test_a_node_that_says_what_cannot_be_counts_as_a_hundred_times_slower_at_most() -> None:
    speeds = SpeedEstimator()
    for epoch in range(1, 9):
        key = (epoch, 0, 0)
        run(speeds, "a", range(10), 1e-9, key)
        run(speeds, "a", range(10, 200), 1e9, key)
    assert speeds.factor("a") == 100.0


def test_a_few_windows_say_nothing() -> None:
    speeds = SpeedEstimator()
    run(speeds, "a", range(4), 50e-3)
    assert speeds.factor("a") == 1.0 and speeds.factor("never-seen") == 1.0


def test_what_slows_all_nodes_speaks_for_no_other_plan() -> None:
    speeds = SpeedEstimator()
    for node in "abc":
        run(speeds, node, range(10), 1e-3)
    for node in "abc":
        run(speeds, node, range(10, 90), 4e-3)
    assert [speeds.factor(node) for node in "abc"] == pytest.approx([1.0] * 3)


def test_a_node_far_below_its_card_is_slow_when_others_are_not() -> None:
    speeds = SpeedEstimator()
    for node, service in (("a", 2e-3), ("b", 3e-3), ("c", 20e-3)):
        run(speeds, node, range(10), service)
    assert speeds.factor("a") == speeds.factor("b") == pytest.approx(1.0)
    assert speeds.factor("c") == pytest.approx(20 / 3, rel=0.01)


def test_what_was_learnt_holds_for_the_next_stage_and_ends_with_the_process() -> None:
    speeds = SpeedEstimator()
    run(speeds, "a", range(10), 1e-3)
    run(speeds, "a", range(10, 90), 3e-3)
    run(speeds, "a", range(10), 3e-3, key=(2, 1, 0))
    assert speeds.factor("a") == pytest.approx(3.0, rel=0.05)
    speeds.note(Heartbeat("a", "another", 1, 0.0), {})
    assert speeds.factor("a") == 1.0


def test_two_stages_on_a_node_tell_nothing_of_its_speed() -> None:
    speeds = SpeedEstimator()
    run(speeds, "a", range(10), 1e-3)
    for number in range(10, 60):
        reports = tuple(StageReport(1, s, 0, StagePhase.RUNNING, windows=5 * number, service_s=9e-3) for s in (0, 1))
        speeds.note(Heartbeat("a", "i", number, 0.0, 0, reports), {KEY: 1e-3, (1, 1, 0): 1e-3})
    assert speeds.factor("a") == pytest.approx(1.0)


def test_a_long_queue_is_said_once_and_again_when_it_has_doubled() -> None:
    queues, said = BacklogMonitor(), []
    for queued in (10, 63, 70, 100, 140, 150, 3, 70):
        report = StageReport(1, 2, 0, StagePhase.RUNNING, queued=queued)
        said += queues.note(Heartbeat("pi", "i", 1, 0.0, 0, (report,)))
    assert said == [f"stage 2 on pi falls behind: {queued} messages wait" for queued in (70, 140, 70)]
