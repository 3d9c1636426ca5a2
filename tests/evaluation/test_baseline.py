"""The baseline learns, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from har_edge.config.catalog import ModelEntry
from har_edge.data.recording import Recording
from har_edge.data.windows import windows
from har_edge.evaluation.baseline import features, predict_baseline
from har_edge.evaluation.report import score


def test_features_are_finite_even_of_silence(recordings: list[Recording]) -> None:
    window = next(windows(recordings[0], 250, 125, within_activity=True))
    assert np.isfinite(features(window)).all()
    for values in window.samples.values():
        silent = features(type(window)("s", 0, 0, {"wrist": np.zeros_like(values)}, 1))
        assert np.isfinite(silent).all()


def test_it_learns_and_repeats_itself(
    recordings: list[Recording], entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("har_edge.evaluation.baseline.TREES", 30)
    first, second = (predict_baseline(recordings[:1], recordings[1:], entry.task, seed=3) for _ in range(2))
    assert [row.answer for row in first] == [row.answer for row in second]
    assert score(first, entry.task.labels).accuracy > 0.5
