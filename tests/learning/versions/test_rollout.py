"""A trained model that is offered to a pipeline: refused where it is worse, rolled out, rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from har_edge.learning.versions.live_answers import LiveAnswers, LiveCount, judge_live
from har_edge.learning.versions.registry import VersionRegistry, VersionState
from har_edge.learning.versions.rollout import ScoredModel, offer_version
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.events import decode
from har_edge.protocol.results import Result, encode_results

CANDIDATE, DEPLOYED, REFUSED = VersionState.CANDIDATE, VersionState.DEPLOYED, VersionState.REFUSED
REPLACED, ROLLED_BACK = VersionState.REPLACED, VersionState.ROLLED_BACK


def scored(content: bytes, accuracy: float) -> ScoredModel:
    return ScoredModel(content, "lenet", {"accuracy": accuracy, "loss": 1 - accuracy}, 500, "mnist", True)


class Rollouts:
    """Notes what is rolled out, and what the registry says at that time; `works` says whether it comes to run."""

    def __init__(self, registry: VersionRegistry, works: Sequence[bool] = ()) -> None:
        self.registry, self.works = registry, list(works)
        self.contents: list[bytes] = []
        self.states: list[list[VersionState]] = []

    def __call__(self, content: bytes) -> bool:
        self.contents.append(content)
        self.states.append([one.state for one in VersionRegistry(self.registry.folder).versions])
        return self.works.pop(0) if self.works else True


def states(folder: Path) -> list[tuple[bytes, VersionState]]:
    registry = VersionRegistry(folder)
    return [(registry.content(one.sha256), one.state) for one in registry.versions]


def test_a_worse_model_is_refused_with_both_figures_and_both_are_kept(tmp_path: Path) -> None:
    registry, said = VersionRegistry(tmp_path), list[str]()
    rollouts = Rollouts(registry)
    assert not offer_version(registry, scored(b"new", 0.88), scored(b"old", 0.9), rollouts, said.append)
    assert rollouts.contents == [] and states(tmp_path) == [(b"old", DEPLOYED), (b"new", REFUSED)]
    assert said[0].endswith(
        "is refused: accuracy 0.8800 against 0.9000 of the deployed version on 500 held-out samples of mnist; the "
        "deployed version stays"
    )
    assert [one.figures["accuracy"] for one in registry.versions] == [0.9, 0.88]


def test_a_better_model_is_rolled_out_and_stored_before(tmp_path: Path) -> None:
    registry, said = VersionRegistry(tmp_path), list[str]()
    rollouts = Rollouts(registry)
    assert offer_version(registry, scored(b"new", 0.95), scored(b"old", 0.9), rollouts, said.append, trial=lambda: "")
    assert rollouts.contents == [b"new"] and rollouts.states == [[DEPLOYED, CANDIDATE]]
    assert states(tmp_path) == [(b"old", REPLACED), (b"new", DEPLOYED)]
    assert "is rolled out: accuracy 0.9500 against 0.9000" in said[0]


def test_a_model_that_is_worse_live_goes_back(tmp_path: Path) -> None:
    registry, said = VersionRegistry(tmp_path), list[str]()
    rollouts, against = Rollouts(registry), "live accuracy 0.5000 of 40 windows, against 0.9000 of 40"
    assert not offer_version(
        registry, scored(b"new", 0.95), scored(b"old", 0.9), rollouts, said.append, trial=lambda: against
    )
    assert rollouts.contents == [b"new", b"old"]
    assert states(tmp_path) == [(b"old", DEPLOYED), (b"new", ROLLED_BACK)]
    assert registry.versions[1].reason == against and f"is rolled back: {against}" in said[1]


def test_a_model_that_does_not_come_to_run_is_rolled_back_and_the_one_before_stays(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path)
    assert not offer_version(registry, scored(b"new", 0.95), scored(b"old", 0.9), Rollouts(registry, [False]), print)
    assert states(tmp_path) == [(b"old", DEPLOYED), (b"new", ROLLED_BACK)]


def test_a_way_back_that_fails_leaves_what_runs_as_deployed(tmp_path: Path) -> None:
    registry = VersionRegistry(tmp_path)
    rollouts = Rollouts(registry, [True, False])
    assert offer_version(registry, scored(b"new", 0.95), scored(b"old", 0.9), rollouts, print, trial=lambda: "worse")
    assert states(tmp_path) == [(b"old", REPLACED), (b"new", DEPLOYED)]


def test_without_a_model_to_compare_with_the_first_is_rolled_out(tmp_path: Path) -> None:
    registry, said = VersionRegistry(tmp_path), list[str]()
    assert offer_version(registry, scored(b"new", 0.5), None, Rollouts(registry), said.append, trial=lambda: "bad")
    assert states(tmp_path) == [(b"new", DEPLOYED)] and "there is no version to go back to" in said[1]
    rollouts = Rollouts(registry)
    assert offer_version(registry, scored(b"new", 0.6), scored(b"new", 0.6), rollouts, said.append)
    assert rollouts.contents == [] and registry.versions[0].figures["accuracy"] == 0.6


def answers(*rows: tuple[int, int | None, int]) -> LiveAnswers:
    """Return the count of results by epoch, truth and label."""
    made = LiveAnswers()
    for seq, (epoch, truth, label) in enumerate(rows):
        result = Result("s", seq, "x", label, 1.0, float(seq), float(seq), epoch, truth)
        for _ in range(2):  # each window once
            made.take(decode(Outgoing("har/v1/har/result/s", encode_results([result]))))
    return made


def windows(epoch: int, right: int, wrong: int) -> list[tuple[int, int | None, int]]:
    return [(epoch, 4, 4)] * right + [(epoch, 4, 5)] * wrong


@pytest.mark.parametrize(
    ("rows", "least", "expected"),
    [
        ([*windows(1, 2, 0), *windows(2, 1, 0)], 2, None),
        ([(1, 4, 4), (2, None, 4), (2, None, 4)], 1, None),
        (windows(2, 0, 9), 2, ""),
        ([*windows(1, 20, 20), *windows(2, 20, 20)], 20, ""),
        ([*windows(1, 38, 2), *windows(2, 36, 4)], 20, ""),  # two windows of forty may be chance
        (
            [*windows(1, 38, 2), *windows(2, 28, 12)],
            20,
            "live accuracy 0.7000 of 40 windows, against 0.9500 of 40 of the version before",
        ),
    ],
)
def test_live_answers_speak_against_a_version_where_enough_are_known(
    rows: list[tuple[int, int | None, int]], least: int, expected: str | None
) -> None:
    counted = answers(*rows)
    assert judge_live(counted.of(1), counted.of(2), least) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1, 19), (2, 18), ""),
        ((20, 0), (1, 19), ""),
        ((1, 9), (20, 0), ""),  # too few before
        (
            (1, 19),
            (12, 8),
            "it calls 60.0% of 20 live pictures anomalous, against 5.0% of 20 of the version before",
        ),
    ],
)
def test_a_detector_that_calls_many_more_live_pictures_anomalous_is_spoken_against(
    before: tuple[int, int], after: tuple[int, int], expected: str
) -> None:
    counts = []
    for bad, good in (before, after):
        count = LiveCount(others=bad + good)
        count.alarms.extend([True] * bad + [False] * good)
        counts.append(count)
    assert judge_live(*counts, 20) == expected
