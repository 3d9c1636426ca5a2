"""The lines that say how far a training is: while it waits, while it goes on, and what is left once it has ended."""

from __future__ import annotations

import pytest

from har_edge.cli.reports.training import head_line, status_lines
from har_edge.protocol.training import RunState, TrainingProgress, WorkerProgress


def progress(state: RunState, **more: object) -> TrainingProgress:
    facts: dict[str, object] = {"model": "lenet5", "data": "digits", "real": True, "epochs": 8}
    return TrainingProgress(run="r", author="one", state=state, time=0.0, **(facts | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "says"), [("", "no worker yet"), ("a", "1 of 1 worker"), ("ab", "2 of 2 workers")], ids=str
)
def test_workers_are_counted_in_words(names: str, says: str) -> None:
    shown = progress(RunState.RUNNING, epoch=2, round=5, workers=tuple(map(WorkerProgress, names)))
    assert head_line(shown) == f"epoch 2/8, round 5, 0 samples/s, {says}"


@pytest.mark.parametrize(
    ("shown", "age_s", "lines"),
    [
        (
            progress(RunState.WAITING, detail="0 of 3 workers ready"),
            1.0,
            ["training r: waiting, lenet5, digits (real)", "  0 of 3 workers ready"],
        ),
        (
            progress(RunState.FINISHED, epoch=8, round=41, accuracy=0.97, samples_per_s=900.0),
            600.0,
            ["training r: finished 10 min ago, lenet5, digits (real)", "  8 epochs in 41 rounds, accuracy 0.9700"],
        ),
        (
            progress(RunState.STOPPED, epoch=3, round=9, samples=100, counted=40, detail="stopped by a signal"),
            30.0,
            [
                "training r: stopped 30 s ago, lenet5, digits (real)",
                "  epoch 3/8, round 9, 40 %",
                "  stopped by a signal",
            ],
        ),
        (
            progress(RunState.RUNNING, epoch=1, round=2),
            60.0,
            [
                "training r: not heard for 60 s, lenet5, digits (real)",
                "  epoch 1/8, round 2, 0 samples/s, no worker yet",
            ],
        ),
    ],
    ids=lambda one: one.state.value if isinstance(one, TrainingProgress) else "",
)
def test_status_says_what_is_so(shown: TrainingProgress, age_s: float, lines: list[str]) -> None:
    assert status_lines(shown, age_s) == lines
