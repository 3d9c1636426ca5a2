"""The figures of packings: bytes over all tensors, seconds of both ends, and what a machine cannot do."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from har_edge.planner.profile import PackingFigures
from har_edge.runtime.packing_costs import REPEATS, measure_packings

EVEN = np.tile(np.arange(256, dtype=np.float32), (1, 16, 1))
NOISE = np.frombuffer(np.random.default_rng(0).bytes(4096), np.uint8).reshape(1, 4096)


def ticking(step: float = 0.5):
    """Return a clock that goes on by one step a look."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def test_each_packing_has_its_ratio_and_seconds() -> None:
    found = {one.packing: one for one in measure_packings([EVEN], "made up", ticking())}
    assert list(found) == ["zstd", "f2", "f2+zstd", "q8", "q8+zstd"]
    assert (found["f2"].ratio, found["q8"].ratio) == (2.0, 4.0)
    assert found["zstd"].ratio > 4 and found["q8+zstd"].ratio > found["q8"].ratio
    assert {one.seconds_per_byte for one in found.values()} == {0.5 / EVEN.nbytes}
    assert {one.data for one in found.values()} == {"made up"}


def test_integers_are_not_rounded_and_noise_does_not_grow() -> None:
    assert [one.packing for one in measure_packings([NOISE], "noise")] == ["zstd"]
    assert measure_packings([NOISE], "noise")[0].ratio == 1.0
    both = {one.packing: one.ratio for one in measure_packings([NOISE, EVEN], "both")}
    assert both["f2"] == (NOISE.nbytes + EVEN.nbytes) / (NOISE.nbytes + EVEN.nbytes / 2)


def test_the_quickest_of_some_repeats_counts() -> None:
    times = iter([0.0, 9.0] + [0.0, 1.0] * (REPEATS - 1) + [0.0, 2.0] * 100)
    assert measure_packings([NOISE], "noise", lambda: next(times))[0].seconds_per_byte == 1.0 / NOISE.nbytes


def test_without_zstandard_rounding_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.runtime.packing_costs.is_available", lambda: False)
    assert [one.packing for one in measure_packings([EVEN], "")] == ["f2", "q8"]
    assert measure_packings([], "") == () and measure_packings([np.zeros((1, 0), np.float32)], "") == ()


def test_figures_survive_json() -> None:
    figures = PackingFigures("f2+zstd", 3.5, 1e-9, "4 windows of synthetic data")
    assert msgspec.json.decode(msgspec.json.encode(figures), type=PackingFigures) == figures
