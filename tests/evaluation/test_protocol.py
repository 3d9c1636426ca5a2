"""Folds: nothing tested was trained on, everybody is tested once."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.data.recording import Recording
from har_edge.errors import ConfigError
from har_edge.evaluation.protocol import RANDOM_FOLDS, Fold, loso_folds, random_folds, split_folds


@st.composite
def some_recordings(draw: st.DrawFn) -> list[Recording]:
    """Two to four streams of segments of three activities, some of them unknown, with gaps anywhere."""
    made = []
    for number in range(draw(st.integers(2, 4))):
        segments = draw(st.lists(st.tuples(st.integers(-1, 2), st.integers(3, 40)), min_size=1, max_size=6))
        labels = np.concatenate([np.full(count, label, np.int16) for label, count in segments])
        gaps = draw(st.sets(st.integers(1, len(labels) - 1), max_size=3))
        samples = {"chest": np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)}
        made.append(Recording(f"s{number}", 50.0, samples, labels, (0, *sorted(gaps)), False))
    return made


def rows(recordings: list[Recording], stream: str, start: int, length: int) -> set[int]:
    """The labels under a window."""
    labels = next(recording.labels for recording in recordings if recording.stream == stream)
    return set(labels[start : start + length].tolist())


def check_training(fold: Fold, recordings: list[Recording], length: int, hop: int) -> None:
    """No window crosses an activity or a gap, or is of unknown activity."""
    starts = {recording.stream: set(recording.starts) for recording in recordings}
    for window in fold.training(recordings).windows(length, hop):
        assert rows(recordings, window.stream, window.start, length) == {window.label}
        assert not starts[window.stream] & set(range(window.start + 1, window.start + length))


@given(some_recordings(), st.integers(1, 12), st.integers(1, 12))
def test_loso_tests_everybody_once_by_systems_that_never_saw_them(
    recordings: list[Recording], length: int, hop: int
) -> None:
    streams = [recording.stream for recording in recordings]
    folds = loso_folds(streams)
    assert [fold.test for fold in folds] == [(stream,) for stream in streams]
    for fold in folds:
        assert set(fold.train) == set(streams) - set(fold.test)
        assert {w.stream for w in fold.training(recordings).windows(length, hop)} <= set(fold.train)
        assert {w.stream for w in fold.test_windows(recordings, length, hop)} <= set(fold.test)
        check_training(fold, recordings, length, hop)


@given(some_recordings(), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_random_folds_test_every_window_once_and_never_one_they_trained_on(
    recordings: list[Recording], length: int, hop: int, seed: int
) -> None:
    try:
        folds = random_folds(recordings, length, hop, seed)
    except ConfigError as error:
        assert "expected at least 5, one a fold" in str(error)
        return
    assert folds == random_folds(recordings, length, hop, seed)
    tested: list[tuple[str, int]] = []
    for fold in folds:
        trained = {(w.stream, w.start) for w in fold.training(recordings).windows(length, hop)}
        asked = [(w.stream, w.start) for w in fold.test_windows(recordings, length, hop)]
        assert trained == fold.chosen and set(asked) == fold.asked and not trained & set(asked)
        check_training(fold, recordings, length, hop)
        tested += asked
    everyone = loso_folds([recording.stream for recording in recordings])
    scored = [
        (w.stream, w.start) for f in everyone for w in f.test_windows(recordings, length, hop) if w.label is not None
    ]
    assert sorted(tested) == sorted(scored)  # the very windows that leave-one-subject-out scores
    sizes = [len(fold.asked or ()) for fold in folds]
    assert len(folds) == RANDOM_FOLDS and max(sizes) - min(sizes) <= 1


@given(some_recordings(), st.integers(1, 12))
def test_a_split_keeps_its_sides_apart(recordings: list[Recording], length: int) -> None:
    streams = [recording.stream for recording in recordings]
    (fold,) = split_folds(streams[1:], streams[:1], streams)
    assert (fold.train, fold.test) == (tuple(streams[1:]), tuple(streams[:1]))
    check_training(fold, recordings, length, 3)
    assert {w.stream for w in fold.training(recordings).windows(length, 3)} <= set(streams[1:])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "b"], ["b"], "b named twice; a stream is for training or for testing, once"),
        (["a"], ["c"], "split of a against c: expected both to name some of a, b"),
        ([], ["a"], "split of nothing against a: expected both to name some of a, b"),
    ],
)
def test_a_split_that_is_none(train: list[str], test: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_folds(train, test, ["a", "b"])


def test_one_stream_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="leave-one-subject-out over a; expected at least two streams"):
        loso_folds(["a"])
    with pytest.raises(ConfigError, match="a named twice"):
        loso_folds(["a", "a"])
