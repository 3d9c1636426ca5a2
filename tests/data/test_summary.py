"""Rows, segments and seconds by activity."""

import numpy as np

from har_edge.data.recording import Recording
from har_edge.data.summary import Share, summarize


def test_segments_end_at_activities_and_gaps():
    labels = np.array([1, 1, 1, 0, 0, 1, 1, 1, -1], np.int16)
    recording = Recording("s", 2.0, {}, labels, (0, 2, 5, 6))
    assert summarize(recording, ["rest", "walk"]) == [
        Share("s", -1, "unknown", 1, 1, 0.5),
        Share("s", 0, "rest", 2, 1, 1.0),
        Share("s", 1, "walk", 6, 4, 3.0),
    ]


def test_an_empty_recording_has_no_shares():
    assert summarize(Recording("s", 2.0, {}, np.zeros(0, np.int16)), ["rest"]) == []
