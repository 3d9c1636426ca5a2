"""Window statistics against NumPy and SciPy."""

import numpy as np
import pytest
from scipy import signal
from scipy import stats as oracle

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.stats import STATISTICS
from tests.codecs.samples import some_window


def table(window):
    """Return the statistics by name, each with one value a channel."""
    reducer = make_reducer("stats", *window.shape)
    return dict(zip(STATISTICS, reducer.encode(window).reshape(len(STATISTICS), -1), strict=True))


@pytest.mark.parametrize("length", [250, 251, 16, 5, 3])
def test_statistics_are_those_of_numpy_and_scipy(length):
    window = some_window(length)
    wide = window.astype(np.float64)
    frequency, power = signal.periodogram(wide, scaling="spectrum", detrend="constant", axis=0)
    magnitude = np.abs(np.fft.rfft(wide, axis=0))[1:]
    expected = {
        "mean": wide.mean(axis=0),
        "standard deviation": wide.std(axis=0),
        "least": wide.min(axis=0),
        "first quartile": np.quantile(wide, 0.25, axis=0),
        "median": np.median(wide, axis=0),
        "third quartile": np.quantile(wide, 0.75, axis=0),
        "largest": wide.max(axis=0),
        "mean absolute change": np.abs(np.diff(wide, axis=0)).mean(axis=0),
        "dominant frequency": frequency[magnitude.argmax(axis=0) + 1],
        "spectral entropy": oracle.entropy(magnitude**2, axis=0) / np.log(len(magnitude))
        if length > 3
        else np.zeros(9),
    }
    made = table(window)
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    if length % 2:  # else the last frequency may be the peak, whose power SciPy does not double
        peak = power[magnitude.argmax(axis=0) + 1, np.arange(9)]
        np.testing.assert_allclose(made["dominant amplitude"], np.sqrt(2 * peak), rtol=1e-5)


def test_a_wave_is_named_by_its_frequency_and_amplitude():
    time = np.arange(250)
    window = np.stack([3 * np.sin(2 * np.pi * time * 10 / 250) + 7, 2 * (-1.0) ** time], axis=1).astype(np.float32)
    made = table(window)
    np.testing.assert_allclose(made["dominant frequency"], [10 / 250, 0.5])
    np.testing.assert_allclose(made["dominant amplitude"], [3, 2], rtol=1e-5)
    np.testing.assert_allclose(made["spectral entropy"], [0, 0], atol=1e-4)


def test_spectral_energy_is_the_variance():
    """Parseval, which is why it is not sent."""
    window = some_window().astype(np.float64)
    energy = (np.abs(np.fft.fft(window, axis=0)[1:]) ** 2).sum(axis=0) / 250
    np.testing.assert_allclose(table(window.astype(np.float32))["standard deviation"], np.sqrt(energy / 250), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 250])
@pytest.mark.parametrize("value", [0, 0.1, -3e38, 1e-45])
def test_what_does_not_change_has_no_spectrum(length, value):
    window = np.full((length, 2), value, np.float32)
    made = table(window)
    for name, values in made.items():
        still = name in ("mean", "least", "first quartile", "median", "third quartile", "largest")
        np.testing.assert_allclose(values, np.full(2, window[0, 0] if still else 0), rtol=1e-6, atol=0, err_msg=name)


def test_the_smallest_changes_are_seen():
    window = np.zeros((250, 1), np.float32)
    window[::2] = 1e-45
    made = table(window)
    assert made["dominant frequency"][0] == 0.5 and made["spectral entropy"][0] < 1e-6
