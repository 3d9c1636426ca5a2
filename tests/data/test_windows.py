"""Windows by position and within activities, live and offline."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.data.recording import Recording
from har_edge.data.windows import Windower, default_window, windows
from har_edge.errors import ConfigError, DataError


@st.composite
def recordings(draw):
    """Return a recording of two sources with runs of labels (-1 unknown) and gaps."""
    runs = draw(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 40)), max_size=8))
    labels = np.concatenate([np.zeros(0), *(np.full(count, label) for label, count in runs)]).astype(np.int16)
    count = len(labels)
    gaps = draw(st.sets(st.integers(1, count - 1), max_size=4)) if count > 1 else set()
    values = np.arange(count * 5, dtype=np.float32).reshape(count, 5)
    samples = {"chest": values[:, :2], "arm": values[:, 2:]}
    return Recording("someone", 50.0, samples, labels, (0, *sorted(gaps)))


LENGTH, HOP = st.integers(1, 30), st.integers(1, 45)


def plain(recording, length, hop, within_activity):
    """Return (start, label) of each window, the slow way: walk sample by sample, forget at every boundary."""
    found, since = [], 0
    for row in range(len(recording)):
        changed = row and recording.labels[row] != recording.labels[row - 1]
        if row in recording.starts or (within_activity and changed):
            since = row
        start = row - length + 1
        if start >= since and (start - since) % hop == 0:
            inside = set(recording.labels[start : row + 1].tolist())
            label = inside.pop() if len(inside) == 1 else -1
            if not (within_activity and label == -1):
                found.append((start, None if label == -1 else label))
    return found


@given(recordings(), LENGTH, HOP, st.booleans())
def test_windows_are_those_of_the_plain_walk(recording, length, hop, within_activity):
    made = list(windows(recording, length, hop, within_activity=within_activity))
    assert [(window.start, window.label) for window in made] == plain(recording, length, hop, within_activity)
    assert [window.seq for window in made] == list(range(len(made)))
    for window in made:
        assert window.stream == "someone"
        for source, values in recording.samples.items():
            np.testing.assert_array_equal(window.samples[source], values[window.start : window.start + length])


@given(recordings(), LENGTH, HOP, st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_the_live_windower_makes_the_same(recording, length, hop, chunks):
    windower = Windower("someone", length, hop)
    live = []
    bounds = [*recording.starts, len(recording)]
    for turn, (begin, end) in enumerate(pairwise(bounds)):
        if turn:
            windower.gap()
        row, step = begin, 0
        while row < end:
            stop = min(end, row + chunks[step % len(chunks)] + (step % len(chunks) == 0))
            part = {source: values[row:stop] for source, values in recording.samples.items()}
            live += windower.push(part, recording.labels[row:stop])
            row, step = stop, step + 1
    offline = list(windows(recording, length, hop, within_activity=False))
    assert [(w.seq, w.start, w.label) for w in live] == [(w.seq, w.start, w.label) for w in offline]
    for one, other in zip(live, offline, strict=True):
        for source in recording.samples:
            np.testing.assert_array_equal(one.samples[source], other.samples[source])


def test_live_windows_keep_their_samples():
    windower = Windower("s", 3, 1)
    (first,) = windower.push({"a": np.arange(3, dtype=np.float32)[:, None]})
    windower.push({"a": np.full((9, 1), 7, np.float32)})
    assert first.samples["a"][:, 0].tolist() == [0, 1, 2]
    assert first.label is None


def test_a_live_stream_takes_constant_memory():
    windower = Windower("s", 250, 125)
    chunk = {"chest": np.zeros((50, 9), np.float32)}
    for _ in range(20):
        windower.push(chunk)
    tracemalloc.start()
    for _ in range(2000):
        windower.push(chunk)
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 20_000


def test_five_seconds_with_half_overlap_is_the_default():
    assert default_window(50) == (250, 125)
    assert default_window(25) == (125, 62)
    assert default_window(0.01) == (1, 1)


@pytest.mark.parametrize(("length", "hop"), [(0, 1), (1, 0), (-3, 5)])
def test_windows_without_length_or_hop_are_refused(length, hop):
    message = f"windows of {length} samples every {hop}, expected both to be at least 1"
    with pytest.raises(ConfigError, match=message):
        Windower("s", length, hop)
    with pytest.raises(ConfigError, match=message):
        next(windows(Recording("s", 1.0, {}, np.zeros(5, np.int16)), length, hop, within_activity=True))


def test_samples_that_do_not_agree_are_refused():
    windower = Windower("s", 3, 1)
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(DataError, match=r"samples of s have shapes .*\(2, 3\).*\(1, 3\).*expected \[n, channels\]"):
        windower.push({"a": ones, "b": ones[:1]})
    with pytest.raises(DataError, match=r"and labels \(3,\), expected"):
        windower.push({"a": ones}, np.zeros(3, np.int16))
    with pytest.raises(DataError, match=r"have shapes \{\}, expected"):
        windower.push({})
    windower.push({"a": ones})
    with pytest.raises(DataError, match=r"have channels \{.a.: 2\}, expected \{.a.: 3\} as before"):
        windower.push({"a": ones[:, :2]})
    assert len(windower.push({"a": ones})) == 2
