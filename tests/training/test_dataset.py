"""Training windows: pure, from one side of every boundary, and all classes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from har_edge.data.recording import Recording
from har_edge.data.windows import windows
from har_edge.errors import DataError
from har_edge.training.dataset import WindowPool

LABELS = range(1, 13)


def numbered(labels: list[int], starts: tuple[int, ...] = (0,)) -> Recording:
    """A recording whose only channel counts the rows."""
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Recording("someone", 50.0, {"wrist": rows}, np.array(labels, np.int16), starts)


def test_no_window_crosses_an_activity_or_a_gap() -> None:
    labels = [1] * 57 + [2] * 43 + [1] * 60
    batch = WindowPool([numbered(labels, (0, 130))], 20, [1, 2]).draw().batch()
    for rows, index in zip(batch.samples["wrist"][:, :, 0].astype(int), batch.classes, strict=True):
        assert {labels[row] for row in rows} == {[1, 2][index]}
        assert not (rows[0] < 130 <= rows[-1])
        assert (np.diff(rows) == 1).all()


def test_windows_are_those_of_a_recording_cut_within_activities(recordings: list[Recording]) -> None:
    gap = numbered([1] * 157 + [2] * 143 + [3] * 160, (0, 130, 131))
    pool = WindowPool([gap], 50, [1, 3])
    drawn = [pool.draw(phase) for phase in range(pool.phases)]
    rows = sorted(row for draw in drawn for row in draw.batch().samples["wrist"][:, 0, 0].astype(int).tolist())
    assert rows == [window.start for window in windows(gap, 50, 1, within_activity=True) if window.label in (1, 3)]


@pytest.mark.parametrize(("length", "phases"), [(250, 10), (50, 10), (20, 4), (3, 1), (1, 1)])
def test_phases_share_out_all_windows(length: int, phases: int) -> None:
    pool = WindowPool([numbered([1] * 600)], length, [1])
    assert pool.phases == phases
    drawn = [row for phase in range(phases) for row in pool.draw(phase).starts.tolist()]
    step = max(1, length // 50)
    assert sorted(drawn) == list(range(0, 600 - length + 1, step))


@pytest.mark.parametrize("phase", [10, -1])
def test_an_odd_phase_is_refused(phase: int) -> None:
    pool = WindowPool([numbered([1] * 100)], 50, [1])
    with pytest.raises(ValueError, match=f"phase {phase}: expected 0 to 9"):
        pool.draw(phase)


def test_of_chosen_windows_no_other_is_drawn() -> None:
    chosen = frozenset({("someone", 0), ("someone", 50), ("another", 20)})
    pool = WindowPool([numbered([1] * 100)], 50, [1], chosen=chosen)
    assert pool.phases == 1
    assert set(pool.draw().starts.tolist()) == {0, 50}


def test_a_class_without_windows_is_refused() -> None:
    message = "labels [3] have no window of 50 samples in someone; a model needs windows of every class"
    with pytest.raises(DataError, match=re.escape(message)):
        WindowPool([numbered([1] * 100 + [3] * 49)], 50, [1, 3])


def test_other_labels_are_left_out(recordings: list[Recording]) -> None:
    batch = WindowPool(recordings, 250, [4, 9]).draw().batch()
    assert set(batch.classes.tolist()) == {0, 1}
    assert {source: values.shape[1:] for source, values in batch.samples.items()} == {
        "chest": (250, 5),
        "ankle": (250, 9),
        "arm": (250, 9),
    }
