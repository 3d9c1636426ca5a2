"""The choice of a mode, shares by speed, and rates of workers that begin each round anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import ConfigError
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.optimizers.rates import constant_at, with_steps
from har_edge.learning.server.members import WorkerRecord, apportion, relative_speeds
from har_edge.learning.server.modes import BUSY, LEAST_ROUNDS, TrainingCosts, TrainingMode, choose_mode, parse_mode


def costs(step_s: float, workers: int, link: float = 11.75e6, samples: int = 60_000) -> TrainingCosts:
    return TrainingCosts(step_s, 32, workers, samples, 246_824, 246_824, link, 246_824)


def test_long_steps_are_synchronous_and_short_ones_local() -> None:
    assert choose_mode(costs(5.0, 4)).mode is TrainingMode.SYNC
    found = choose_mode(costs(0.044, 11))
    exchange = costs(0.044, 11).local_exchange_s
    assert "a step of 32 samples takes 44.0 ms, an exchange with 11 workers 281 ms at 11.8 MB/s" in found.reason
    assert found.mode is TrainingMode.LOCAL
    assert found.local_steps == 34 == 60_000 // (11 * 32 * LEAST_ROUNDS)
    assert 42 * 0.044 / (42 * 0.044 + exchange) > 0.86
    found, exchange = choose_mode(costs(0.044, 4)), costs(0.044, 4).local_exchange_s
    assert found.local_steps * 0.044 / (found.local_steps * 0.044 + exchange) == pytest.approx(BUSY, abs=0.01)


def test_an_epoch_keeps_several_rounds_however_slow_the_link() -> None:
    found = choose_mode(costs(0.044, 11, link=1e5))
    assert found.mode is TrainingMode.LOCAL and found.local_steps == 60_000 // (11 * 32 * LEAST_ROUNDS)
    assert choose_mode(costs(0.044, 11, link=1e5, samples=100)).local_steps == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", (TrainingMode.AUTO, None)),
        ("sync", (TrainingMode.SYNC, None)),
        ("local", (TrainingMode.LOCAL, None)),
        ("local:40", (TrainingMode.LOCAL, 40)),
        ("stale:3", (TrainingMode.STALE, 3)),
    ],
)
def test_modes_are_read(text: str, expected: tuple[TrainingMode, int | None]) -> None:
    assert parse_mode(text) == expected


@pytest.mark.parametrize("text", ["", "async", "sync:2", "local:", "local:0", "local:-1", "auto:1", "stale:x"])
def test_other_modes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected auto, sync, local\[:STEPS\] or stale\[:ROUNDS\]"):
        parse_mode(text)


@given(
    st.integers(0, 5000), st.dictionaries(st.text("abc", min_size=1), st.floats(0.1, 9), min_size=1), st.integers(1, 64)
)
def test_shares_are_all_there_is_and_follow_the_weights(total: int, weights: dict[str, float], unit: int) -> None:
    parts = apportion(total, weights, unit)
    assert sum(parts.values()) == total and parts.keys() == weights.keys() and min(parts.values()) >= 0
    scale = sum(weights.values())
    for name, samples in parts.items():
        assert abs(samples - total * weights[name] / scale) < 2 * unit + 1


def records(*speeds: float) -> list[WorkerRecord]:
    return [WorkerRecord(f"w{number}", "i", speed) for number, speed in enumerate(speeds)]


def test_shares_stay_equal_until_a_speed_differs_by_a_quarter() -> None:
    assert set(relative_speeds(records(100, 110, 95)).values()) == {1.0}
    found = relative_speeds(records(100, 100, 20))
    assert found == {"w0": 1.0, "w1": 1.0, "w2": 0.2}
    assert relative_speeds(records(100, 100, 1))["w2"] == 1 / 8
    assert set(relative_speeds(records(0, 0)).values()) == {1.0} and relative_speeds([]) == {}


def test_a_rate_of_the_run_is_told_to_an_optimizer_that_begins_anew() -> None:
    spec = with_steps("momentum:lr=0.1,beta=0.8,schedule=cosine", 100)
    assert spec == "momentum:lr=0.1,beta=0.8,schedule=cosine,steps=100"
    assert with_steps("sgd:lr=0.1", 100) == "sgd:lr=0.1"
    assert with_steps(spec, 7) == spec
    for step, rate in ((0, 0.1), (50, 0.05), (100, 1e-12)):
        text = constant_at(spec, step)
        assert text.startswith("momentum:lr=") and text.endswith(",beta=0.8")
        assert make_optimizer(text, 1).rate == pytest.approx(rate)
