"""Send-on-delta and swinging door: their bounds, their bytes, and every forged code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.events import EventTrack, read_events, write_events
from har_edge.errors import MessageError

VALUES = st.floats(-1e5, 1e5, width=32) | st.sampled_from([0, 0.5, 1, 1.5, -0.5])
WINDOWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=VALUES)
STEPS = st.floats(1e-3, 1e5) | st.sampled_from([0.5, 1.0])


@pytest.mark.parametrize("method", ["sod", "door"])
@given(window=WINDOWS, step=STEPS)
def test_no_sample_is_further_away_than_asked(method, window, step):
    reducer = make_reducer(f"{method}:{step}", *window.shape)
    code = reducer.encode(window)
    assert len(code) <= reducer.most_bytes
    restored = reducer.decode(code).astype(np.float64)
    # Beyond the bound, no more than rounding what is restored to float32 allows.
    assert (np.abs(restored - window) <= step * (1 + 1e-9) + np.abs(restored) * 2.0**-23).all()
    np.testing.assert_array_equal(reducer.decode(code)[0], window[0])


@pytest.mark.parametrize("method", ["sod", "door"])
@given(window=WINDOWS, data=st.data())
def test_each_channel_has_its_own_bound_and_its_own_code(method, window, data):
    steps = [data.draw(STEPS) for _ in range(window.shape[1])]
    made = make_reducer(f"{method}:{','.join(map(str, steps))}", *window.shape)
    together = made.decode(made.encode(window))
    for channel, step in enumerate(steps):
        alone = make_reducer(f"{method}:{step}", len(window), 1)
        part = np.ascontiguousarray(window[:, [channel]])
        np.testing.assert_array_equal(together[:, [channel]], alone.decode(alone.encode(part)))


@given(window=WINDOWS, delta=STEPS)
def test_send_on_delta_is_its_definition(window, delta):
    """Hold what was sent, until a sample is delta away; then send the nearest step."""
    expected = np.empty(window.shape)
    for channel, column in enumerate(window.T.astype(np.float64)):
        held = 0
        for place, value in enumerate((column - column[0]) / delta):
            if abs(value - held) >= 1:
                held += round(value - held)
            expected[place, channel] = column[0] + delta * held
    reducer = make_reducer(f"sod:{delta}", *window.shape)
    np.testing.assert_array_equal(reducer.decode(reducer.encode(window)), expected.astype(np.float32))


def longest_line(levels, start, hinge):
    """Return how far a line from the hinge can reach that ends on a whole number and is within 1 of every sample."""
    reach = start
    for stop in range(start + 1, len(levels)):
        run = np.arange(1, stop - start + 1)
        near = levels[start + 1 : stop + 1] - hinge
        least, most = ((near - 1) / run).max() * run[-1], ((near + 1) / run).min() * run[-1]
        if np.floor(most) < least:
            break
        reach = stop
    return reach


@given(hnp.arrays(np.float32, st.integers(2, 60), elements=st.integers(-80, 80).map(lambda value: value / 8)))
def test_the_door_draws_each_line_as_long_as_it_may_be(column):
    reducer = make_reducer("door:1", len(column), 1)
    first, (track,) = read_events("door:1", reducer.encode(column[:, np.newaxis]), len(column), 1)
    start, hinge = 0, 0
    for place, rise in zip(track.places, track.rises, strict=True):
        assert place == longest_line(column.astype(np.float64) - first[0], start, hinge)
        start, hinge = place, hinge + rise
    assert start == len(column) - 1


def test_what_does_not_change_takes_a_few_bytes_a_channel():
    window = np.full((250, 9), 3.25, np.float32)
    for spec, size in (("sod:0.1", 9 * (4 + 1)), ("door:0.1", 9 * (4 + 1 + 2 + 1))):
        reducer = make_reducer(spec, 250, 9)
        assert len(reducer.encode(window)) == size
        np.testing.assert_array_equal(reducer.decode(reducer.encode(window)), window)


def test_code_layout():
    window = np.array([[1, 7], [1, 7], [3.2, 7], [3.2, 7], [-200, 7]], np.float32)
    code = make_reducer("sod:1", 5, 2).encode(window)
    assert code[:8].view("<f4").tolist() == [1, 7]
    # Two events: after 2 samples 2 steps up, after 2 more 203 down, 2 * 203 - 1 = 405 = 3 * 128 + 21; then none.
    assert code[8:].tolist() == [2, 2, 2, 4, 21 + 128, 3, 0]


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(-(2**32), 2**32)), max_size=9), min_size=1, max_size=4)
)
def test_events_survive_a_round_trip(channels):
    tracks = [
        EventTrack(np.cumsum([gap for gap, _ in events], dtype=int), [rise for _, rise in events])
        for events in channels
    ]
    code = write_events(np.ones((1, len(tracks)), np.float32), tracks)
    first, again = read_events("sod:1", code, 30, len(tracks))
    assert first.tolist() == [1] * len(tracks)
    assert [(list(track.places), list(track.rises)) for track in again] == [
        (list(track.places), list(track.rises)) for track in tracks
    ]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([], "code is 4 bytes, expected at least 5"),
        ([128], "code has a number without end"),
        ([0, 128], "code has a number without end"),
        ([128, 128, 128, 128, 128, 1], "a number without end, expected at most 5 bytes"),
        ([1], "code has 1 numbers, too few for 1 events in channel 0"),
        ([1, 1], "too few for 1 events in channel 0"),
        ([10, *[1] * 20], "expected at most 9 events"),
        ([255, 255, 255, 255, 127], "too few for 34359738367 events in channel 0, expected at most 9 events"),
        ([1, 0, 2], "code has events outside 1 to 9 in channel 0"),
        ([1, 10, 2], "code has events outside 1 to 9"),
        ([2, 5, 5, 2, 2], "code has events outside 1 to 9"),
        ([2, 255, 255, 255, 255, 127, 5, 2, 2], "code has events outside 1 to 9"),
        ([0, 0], "code has 2 numbers, expected 1 as its counts say"),
    ],
)
@pytest.mark.parametrize("method", ["sod", "door"])
def test_forged_codes_are_refused(method, numbers, message):
    code = np.concatenate([np.array([1.5], "<f4").view(np.uint8), np.array(numbers, np.uint8)])
    with pytest.raises(MessageError, match=message):
        make_reducer(f"{method}:1", 10, 1).decode(code)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_first_sample_that_is_none_is_refused(value):
    code = np.append(np.array([value], "<f4").view(np.uint8), np.uint8(0))
    with pytest.raises(MessageError, match="code starts with NaN or infinity, expected finite values"):
        make_reducer("sod:1", 10, 1).decode(code)


def test_forged_rises_stay_finite():
    code = np.append(np.array([3e38], "<f4").view(np.uint8), np.array([1, 1, 254, 255, 255, 255, 127], np.uint8))
    assert np.isfinite(make_reducer("sod:1e30", 10, 1).decode(code)).all()


@pytest.mark.dataset
@pytest.mark.parametrize("method", ["sod", "door"])
def test_bounds_hold_on_recordings(method, recorded_windows):
    steps = recorded_windows.std(axis=(0, 1)) / 10
    reducer = make_reducer(f"{method}:{','.join(map(str, steps))}", *recorded_windows.shape[1:])
    sizes = []
    for window in recorded_windows:
        code = reducer.encode(window)
        sizes.append(len(code))
        assert (np.abs(reducer.decode(code) - window) <= steps * (1 + 1e-4)).all()
    assert np.mean(sizes) < window.nbytes / 4
