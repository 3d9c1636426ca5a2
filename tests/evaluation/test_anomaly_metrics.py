"""Figures of detectors: areas under ROC curves, and the worst cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import DataError
from har_edge.evaluation.anomaly_chart import ScoredPictures, draw_worst_cases, worst_cases
from har_edge.evaluation.anomaly_metrics import grow, image_auroc, pixel_auroc, score_detector

SCORES = np.array([1, 2, 3, 2.5, 4], np.float32)
ANOMALOUS = np.array([False, False, False, True, True])
KINDS = ("good", "good", "good", "spot", "scratch")


def test_auroc_counts_pairs_in_order() -> None:
    assert image_auroc(SCORES, ANOMALOUS) == pytest.approx(5 / 6)
    with pytest.raises(DataError, match=r"3 pictures came, 0 of them anomalous; expected normal and anomalous"):
        image_auroc(SCORES[:3], ANOMALOUS[:3])


def test_heat_maps_grow_between_the_centres_of_pixels() -> None:
    found = grow(np.array([[[0, 1], [2, 3]]], np.float32), 4, 4)
    np.testing.assert_allclose(found[0, 0], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(found[0, :, 0], [0, 0.5, 1.5, 2])
    mask = np.zeros((1, 4, 4), np.bool_)
    mask[0, 3, 3] = True
    assert pixel_auroc(np.array([[[0, 1], [2, 3]]], np.float32), mask) == 1.0


def test_all_figures_of_a_test() -> None:
    heat = np.zeros((5, 2, 2), np.float32)
    heat[3:, 0, 0] = 1
    masks = np.zeros((5, 2, 2), np.bool_)
    masks[3:, 0, 0] = True
    found = score_detector(SCORES, heat, ANOMALOUS, KINDS, masks, 2.75)
    assert found.image_auroc == pytest.approx(5 / 6)
    assert found.pixel_auroc == 1.0
    assert found.kinds == {"scratch": 1.0, "spot": pytest.approx(2 / 3)}
    assert (found.caught, found.false_alarms) == (0.5, pytest.approx(1 / 3))
    assert (found.pictures, found.anomalous) == (5, 2)
    assert score_detector(SCORES, heat, ANOMALOUS, KINDS, None, 2.75).pixel_auroc is None


def test_the_worst_cases_are_drawn(tmp_path: Path) -> None:
    scored = ScoredPictures(
        np.zeros((5, 4, 4, 1), np.uint8),
        tuple(f"picture $ {number}" for number in range(5)),
        KINDS,
        ANOMALOUS,
        np.zeros((5, 4, 4), np.bool_),
        SCORES,
        np.zeros((5, 2, 2), np.float32),
        0.0,
        1.0,
        2.75,
    )
    assert worst_cases(scored, 2) == [3, 4, 2, 1]
    files = draw_worst_cases(tmp_path / "worst", scored, 1)
    assert [file.name for file in files] == ["01-missed.png", "02-false-alarm.png"]
    (tmp_path / "worst" / "01-mine.png").write_bytes(b"")
    files = draw_worst_cases(tmp_path / "worst", scored, 2)
    names = ["01-missed.png", "02-caught.png", "03-false-alarm.png", "04-normal.png"]
    assert [file.name for file in files] == names
    assert sorted(file.name for file in (tmp_path / "worst").iterdir()) == sorted([*names, "01-mine.png"])
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
