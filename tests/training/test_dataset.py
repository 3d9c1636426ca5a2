"""Training windows: pure, from one side of every boundary, and all classes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from har_edge.errors import DataError
from har_edge.streams.recording import Recording
from har_edge.training.dataset import STEP, WindowPool

LABELS = range(1, 13)


def numbered(labels: list[int], starts: tuple[int, ...] = (0,)) -> Recording:
    """A recording whose only channel counts the rows."""
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Recording("someone", 50.0, {"wrist": rows}, np.array(labels, np.int16), starts)


def test_no_window_crosses_an_activity_or_a_gap() -> None:
    labels = [1] * 57 + [2] * 43 + [1] * 60
    pool = WindowPool([numbered(labels, (0, 130))], 20, [1, 2])
    batch = pool.draw(STEP)
    for rows, index in zip(batch.samples["wrist"][:, :, 0].astype(int), batch.classes, strict=True):
        assert {labels[row] for row in rows} == {[1, 2][index]}
        assert not (rows[0] < 130 <= rows[-1])
        assert (np.diff(rows) == 1).all()


def test_phases_share_out_all_windows() -> None:
    pool = WindowPool([numbered([1] * 200)], 50, [1])
    every = pool.draw(STEP).samples["wrist"][:, 0, 0].tolist()
    drawn = [row for phase in range(4) for row in pool.draw(4 * STEP, phase).samples["wrist"][:, 0, 0].tolist()]
    assert sorted(drawn) == every


@pytest.mark.parametrize(("hop", "phase"), [(7, 0), (10, 2), (10, -1)])
def test_an_odd_hop_or_phase_is_refused(hop: int, phase: int) -> None:
    pool = WindowPool([numbered([1] * 100)], 50, [1])
    with pytest.raises(ValueError, match=f"hop {hop}, phase {phase}: expected a multiple of 5"):
        pool.draw(hop, phase)


def test_a_class_without_windows_is_refused() -> None:
    message = "labels [3] have no window of 50 samples in someone; a model needs windows of every class"
    with pytest.raises(DataError, match=re.escape(message)):
        WindowPool([numbered([1] * 100 + [3] * 49)], 50, [1, 3])


def test_other_labels_are_left_out(recordings: list[Recording]) -> None:
    batch = WindowPool(recordings, 250, [4, 9]).draw(50)
    assert set(batch.classes.tolist()) == {0, 1}
    assert {source: values.shape[1:] for source, values in batch.samples.items()} == {
        "chest": (250, 5),
        "ankle": (250, 9),
        "arm": (250, 9),
    }
