"""Figures as people read them."""

import doctest
import math

import pytest

from har_edge import units


def test_the_examples_are_true() -> None:
    assert doctest.testmod(units).failed == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (2.1e-6, "2.10 µs"),
        (9.999e-6, "10.0 µs"),
        (0.0009996, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.1234, "123 ms"),
        (0.9999, "1.00 s"),
        (75.0, "75.0 s"),
        (5000.0, "5000 s"),
        (-0.02, "-20.0 ms"),
        (math.inf, "inf s"),
    ],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_rates_have_the_units_of_sizes() -> None:
    assert [units.speed(n) for n in (300, 5e6, 1.5e9)] == ["300 B/s", "5.0 MB/s", "1.5 GB/s"]
