"""Decimation against SciPy, and on what must not ring."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from har_edge.codecs.catalog import make_reducer
from tests.codecs.samples import some_window


@pytest.mark.parametrize("factor", [2, 3, 5, 10])
def test_codes_are_those_of_scipy(factor):
    window = some_window()
    taps = signal.firwin(10 * factor + 1, 1 / factor, window="hamming")
    extended = np.pad(window.astype(np.float64), ((5 * factor,) * 2, (0, 0)), mode="reflect", reflect_type="odd")
    filtered = signal.convolve(extended, taps[:, np.newaxis], mode="valid")
    expected = filtered[249 % factor // 2 :: factor]
    np.testing.assert_allclose(
        make_reducer(f"decimate:{factor}", 250, 9).encode(window), expected, rtol=2e-6, atol=2e-6
    )


@given(length=st.integers(2, 60), data=st.data())
def test_constants_and_straight_lines_come_back(length, data):
    factor = data.draw(st.integers(2, length))
    slope = np.array([0, 1, -0.25])
    window = (np.array([5, -3, 100]) + slope * np.arange(length)[:, np.newaxis]).astype(np.float32)
    reducer = make_reducer(f"decimate:{factor}", length, 3)
    code = reducer.encode(window)
    kept = np.arange((length - 1) % factor // 2, length, factor)
    np.testing.assert_allclose(code, window[kept], rtol=1e-5, atol=1e-4)
    # A single kept sample says nothing of a slope.
    shown = slice(None) if len(kept) > 1 else slice(0, 1)
    np.testing.assert_allclose(reducer.decode(code)[:, shown], window[:, shown], rtol=1e-5, atol=1e-3)


def test_aliases_are_kept_out_and_slow_waves_let_through():
    time = np.arange(250)[:, np.newaxis]
    reducer = make_reducer("decimate:5", 250, 1)
    inside = slice(5, -5)
    slow = np.sin(2 * np.pi * time / 50).astype(np.float32)
    fast = np.sin(2 * np.pi * time / 4).astype(np.float32)
    assert np.abs(reducer.encode(fast)[inside]).max() < 0.005
    assert (
        np.abs(reducer.decode(reducer.encode(slow)) - slow)[50:-50].max() < 0.015
    )  # the ripple of two Hamming windows


def test_operations_count_the_weights_of_the_filter():
    """51 taps on each of 50 samples of 9 channels, where the ends fold some taps together."""
    assert 0.9 < make_reducer("decimate:5", 250, 9).operations / (2 * 51 * 50 * 9) <= 1


@pytest.mark.dataset
@pytest.mark.parametrize("factor", [2, 5, 10])
def test_interpolation_beats_lines_on_recordings(factor, recorded_windows):
    reducer = make_reducer(f"decimate:{factor}", *recorded_windows.shape[1:])
    kept = np.arange(249 % factor // 2, 250, factor)
    restored, lines = [], []
    for window in recorded_windows:
        code = reducer.encode(window)
        restored.append(reducer.decode(code))
        lines.append(np.stack([np.interp(np.arange(250), kept, channel) for channel in code.T], axis=1))
    spread = recorded_windows.std(axis=(0, 1))
    error = [np.sqrt(np.mean(((np.array(made) - recorded_windows) / spread) ** 2)) for made in (restored, lines)]
    assert error[0] < error[1]
