"""Evaluation protocols: which recordings, or windows, a system is fitted to, and which it is tested on.

Leave-one-subject-out is the one to quote: every person is tested once, by a system that never saw them. The random
split mixes windows of all people; neighbours that share half their samples then stand on both sides, so its figure is
too good. It is here to show by how much: Hammerla and Ploetz, "Let's (not) stick together: pairwise similarity biases
cross-validation in activity recognition", UbiComp 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.errors import ConfigError
from har_edge.evaluation.study import Training, WindowKey

RANDOM_FOLDS = 5


class Protocol(Enum):
    """How training and test are kept apart."""

    LOSO = "loso"
    SPLIT = "split"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Fold:
    """One training and one test set, by names of streams.

    For the random protocol, which has every stream on both sides, `chosen` and `asked` hold the windows of training and
    test; otherwise they are None, and all windows count.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    chosen: frozenset[WindowKey] | None = None
    asked: frozenset[WindowKey] | None = None

    def training(self, recordings: Sequence[Recording]) -> Training:
        """Return what a system may be fitted to."""
        return Training([recording for recording in recordings if recording.stream in self.train], self.chosen)

    def test_windows(self, recordings: Sequence[Recording], length: int, hop: int) -> Iterator[Window]:
        """Yield the windows to answer, cut by stream position as sensors cut them; mixed ones have no label."""
        for recording in recordings:
            if recording.stream not in self.test:
                continue
            for window in windows(recording, length, hop, within_activity=False):
                if self.asked is None or (window.stream, window.start) in self.asked:
                    yield window


def loso_folds(streams: Sequence[str]) -> list[Fold]:
    """Return one fold a stream: it is the test, all others are the training. ConfigError for fewer than two."""
    _check_distinct(streams)
    if len(streams) < 2:
        raise ConfigError(f"leave-one-subject-out over {_listed(streams)}; expected at least two streams")
    return [Fold(stream, tuple(name for name in streams if name != stream), (stream,)) for stream in streams]


def split_folds(train: Sequence[str], test: Sequence[str], known: Sequence[str]) -> list[Fold]:
    """Return the one fold of a fixed split; ConfigError for a stream on both sides or without a recording."""
    _check_distinct([*train, *test])
    missing = [stream for stream in (*train, *test) if stream not in known]
    if missing or not train or not test:
        raise ConfigError(
            f"split of {_listed(train)} against {_listed(test)}: expected both to name some of {_listed(known)}"
        )
    return [Fold("split", tuple(train), tuple(test))]


def random_folds(recordings: Sequence[Recording], length: int, hop: int, seed: int) -> list[Fold]:
    """Return folds over the shuffled windows of all streams; each window of one activity is tested once."""
    streams = tuple(recording.stream for recording in recordings)
    _check_distinct(streams)
    keys = [
        (window.stream, window.start)
        for recording in recordings
        for window in windows(recording, length, hop, within_activity=False)
        if window.label is not None
    ]
    if len(keys) < RANDOM_FOLDS:
        raise ConfigError(f"{len(keys)} windows of one activity came; expected at least {RANDOM_FOLDS}, one a fold")
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    parts = [frozenset(keys[index] for index in order[number::RANDOM_FOLDS]) for number in range(RANDOM_FOLDS)]
    everything = frozenset(keys)
    return [Fold(f"random-{number}", streams, streams, everything - part, part) for number, part in enumerate(parts)]


def _check_distinct(streams: Sequence[str]) -> None:
    twice = sorted({stream for stream in streams if streams.count(stream) > 1})
    if twice:
        raise ConfigError(f"{_listed(twice)} named twice; a stream is for training or for testing, once")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"
