"""Threads of one run follow each other: they have the same session at the broker."""

from __future__ import annotations

import threading

from har_edge.learning.job_thread import JobThread


class Noting(JobThread):
    """Notes that it trains, and goes on until it is let go."""

    def __init__(self) -> None:
        super().__init__("r", "noting")
        self.trains, self.let_go = threading.Event(), threading.Event()

    def _train(self) -> None:
        self.trains.set()
        assert self.let_go.wait(20.0)


def test_a_thread_trains_when_the_one_before_it_has_ended() -> None:
    first, second = Noting(), Noting()
    first.start()
    assert first.trains.wait(20.0)
    first.stop()
    second.start(first)
    assert not second.trains.wait(0.5)
    first.let_go.set()
    assert second.trains.wait(20.0) and not first.alive
    second.let_go.set()
    second.join(20.0)
    assert not second.alive


def test_a_thread_that_is_stopped_while_it_waits_never_trains() -> None:
    first, second = Noting(), Noting()
    first.start()
    second.start(first)
    second.stop()
    second.join(20.0)
    assert not second.alive and not second.trains.is_set()
    first.let_go.set()
    first.join(20.0)
