"""Replay: live windows in order, each due when its last sample exists."""

import numpy as np
import pytest

from har_edge.data.recording import Recording
from har_edge.data.replay import replay
from har_edge.data.windows import windows
from har_edge.errors import ConfigError


@pytest.fixture
def recording():
    return Recording("s", 50.0, {"chest": np.zeros((1000, 3), np.float32)}, np.ones(1000, np.int16), (0, 400))


def test_windows_are_due_when_their_last_sample_exists(recording):
    due = [due_s for due_s, _ in replay(recording, 250, 125, 1.0)]
    assert due == pytest.approx([4.98, 7.48, 12.98, 15.48, 17.98])
    assert [due_s for due_s, _ in replay(recording, 250, 125, 10.0)] == pytest.approx([due_s / 10 for due_s in due])
    assert {due_s for due_s, _ in replay(recording, 250, 125, None)} == {0.0}


def test_the_windows_are_the_live_ones(recording):
    live = [(window.seq, window.start) for window in windows(recording, 250, 125, within_activity=False)]
    assert [(window.seq, window.start) for _, window in replay(recording, 250, 125, 2.0)] == live


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(recording, speed):
    with pytest.raises(ConfigError, match=f"speed is {speed}, expected a number above 0"):
        next(replay(recording, 250, 125, speed))
