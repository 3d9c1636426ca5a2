"""The watchdog of a worker: a run that hangs is noticed, a slow one, a suspended process and a busy device are not."""

from __future__ import annotations

import pytest

from har_edge.runtime.node.run_watchdog import FIRST_RUN_S, RUN_FACTOR, RunWatchdog
from har_edge.timing import STUCK_END_S, STUCK_RUN_S

LOOK_S = 0.25


def run(
    watchdog: RunWatchdog,
    seconds: float,
    *,
    began: float = 1.0,
    usual_s: float = 0.02,
    batch: int = 1,
    now: float = 100.0,
) -> float:
    """Look at one run for so long."""
    for _ in range(round(seconds / LOOK_S)):
        now += LOOK_S
        watchdog.look(began, usual_s, batch, now)
    return now


def test_a_run_that_hangs_is_stuck_and_then_unending() -> None:
    watchdog = RunWatchdog()
    now = run(watchdog, STUCK_RUN_S)
    assert not watchdog.stuck and not watchdog.unending
    now = run(watchdog, 2 * LOOK_S, now=now)
    assert watchdog.stuck and not watchdog.unending
    now = run(watchdog, STUCK_END_S, now=now)
    assert watchdog.unending
    watchdog.look(2.0, 0.02, 1, now + LOOK_S)  # it went on after all
    assert not watchdog.stuck and watchdog.run_s == 0.0


def test_runs_that_follow_each_other_are_not_one() -> None:
    watchdog = RunWatchdog()
    for number in range(100):
        run(watchdog, 1.0, began=float(number + 1), now=100.0 + number)
    assert not watchdog.stuck


@pytest.mark.parametrize(
    ("predicted_s", "usual_s", "batch", "limit_s"),
    [
        (0.0, 0.0, 1, FIRST_RUN_S),
        (3.0, 0.0, 1, RUN_FACTOR * 3.0),
        (0.0, 2.0, 1, RUN_FACTOR * 2.0),
        (0.1, 0.1, 32, RUN_FACTOR * 3.2),
    ],
    ids=["first run", "slow by the plan", "slow as it was", "a batch"],
)
def test_a_run_may_take_some_times_as_long_as_it_should(
    predicted_s: float, usual_s: float, batch: int, limit_s: float
) -> None:
    watchdog = RunWatchdog(predicted_s)
    now = run(watchdog, limit_s, usual_s=usual_s, batch=batch)
    assert not watchdog.stuck
    run(watchdog, 2 * LOOK_S, usual_s=usual_s, batch=batch, now=now)
    assert watchdog.stuck


def test_a_process_that_was_suspended_blames_no_run() -> None:
    watchdog = RunWatchdog()
    now = run(watchdog, 1.0)
    for pause_s in (3600.0, 10.0):
        now += pause_s
        watchdog.look(1.0, 0.02, 1, now)
    assert not watchdog.stuck and watchdog.run_s < STUCK_RUN_S


def test_nothing_is_stuck_while_nothing_runs() -> None:
    watchdog = RunWatchdog()
    run(watchdog, 60.0, began=0.0)
    assert not watchdog.stuck
