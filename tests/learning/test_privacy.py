"""Clipping, noise, and the privacy spent, against formulas of the papers."""

from __future__ import annotations

import math
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.errors import ConfigError, ModelError
from har_edge.learning.privacy import PrivacyAccountant, UpdatePrivacy
from tests.learning.extras import needs

VECTORS = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(VECTORS, st.floats(1e-3, 1e6))
def test_the_norm_is_at_most_the_clip_and_the_direction_stays(update: np.ndarray, clip: float) -> None:
    made = UpdatePrivacy(clip).protect(update, np.random.default_rng(1))
    norm = np.linalg.norm(update.astype(np.float64))
    assert np.linalg.norm(made.astype(np.float64)) <= clip * (1 + 1e-6)
    expected = update.astype(np.float64) * (min(1.0, clip / norm) if norm else 1)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-30)


def test_hand_worked() -> None:
    made = UpdatePrivacy(clip=1.0).protect(np.array([3, -4], np.float32), np.random.default_rng(1))
    assert made.tolist() == pytest.approx([0.6, -0.8])
    assert UpdatePrivacy(clip=5.0).protect(np.array([3, -4], np.float32), np.random.default_rng(1)).tolist() == [3, -4]


def test_the_sum_over_all_devices_has_the_noise_that_was_asked_for() -> None:
    privacy, random = UpdatePrivacy(clip=2.0, noise=1.5, devices=4), np.random.default_rng(7)
    total = sum(privacy.protect(np.zeros(40_000, np.float32), random).astype(np.float64) for _ in range(4))
    assert np.std(total) == pytest.approx(3.0, rel=0.02) and abs(np.mean(total)) < 0.06
    assert privacy.deviation == 1.5


@pytest.mark.parametrize(
    ("shares", "multiplier"),
    [([1] * 4, 1.5), ([0.25] * 4, 1.5), ([1], 0.75), ([1, 1], 0.75 * math.sqrt(2)), ([0.6, 0.8], 0.75 * 1.25)],
)
def test_the_noise_of_a_weighted_sum_against_the_largest_part(shares: list[float], multiplier: float) -> None:
    assert UpdatePrivacy(clip=2.0, noise=1.5, devices=4).multiplier(shares) == pytest.approx(multiplier)


@pytest.mark.parametrize("shares", [[], [0.0]])
def test_a_sum_of_nothing_has_no_noise(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected some above 0"):
        UpdatePrivacy(1.0, 1.0).multiplier(shares)


def test_an_update_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="values that are not finite"):
        UpdatePrivacy(1.0).protect(np.array([1, np.nan], np.float32), np.random.default_rng(1))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"clip": 0.0}, "clip 0.0, expected a norm above 0"),
        ({"clip": math.nan}, "clip nan, expected"),
        ({"clip": 1.0, "noise": -1.0}, "noise -1.0, expected a number of at least 0"),
        ({"clip": 1.0, "noise": math.inf}, "noise inf"),
        ({"clip": 1.0, "devices": 0}, "0 devices share the noise"),
    ],
)
def test_options_out_of_range(given: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        UpdatePrivacy(**given)  # type: ignore[arg-type]


def exact_delta(epsilon: float, precision: float) -> float:
    """Return the delta of a Gaussian mechanism of mu**2 = precision (Balle and Wang 2018, theorem 8)."""
    mu, phi = math.sqrt(precision), NormalDist().cdf
    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@needs("dp_accounting")
@pytest.mark.parametrize("multipliers", [[1.0], [4.0] * 50, [2.0, 3.0, 5.0], [20.0] * 7])
def test_the_privacy_spent_is_that_of_the_formula(multipliers: list[float]) -> None:
    accountant = PrivacyAccountant(1e-5)
    for multiplier in multipliers:
        accountant.spend(multiplier, multiplier / math.sqrt(3))
    precision = sum(1 / multiplier**2 for multiplier in multipliers)
    assert exact_delta(accountant.epsilon, precision) == pytest.approx(1e-5, rel=1e-3)
    assert exact_delta(accountant.epsilon_single, 3 * precision) == pytest.approx(1e-5, rel=1e-3)


@needs("dp_accounting")
@pytest.mark.parametrize(("multipliers", "delta"), [([1.1] * 10, 1e-5), ([2.0, 0.9, 3.0], 1e-6)])
def test_composition_as_the_accountant_of_privacy_loss_distributions_has_it(
    multipliers: list[float], delta: float
) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant, other = PrivacyAccountant(delta), PLDAccountant()
    for multiplier in multipliers:
        accountant.spend(multiplier, multiplier)
        other.compose(dp_accounting.GaussianDpEvent(multiplier))
    assert accountant.epsilon == pytest.approx(other.get_epsilon(delta), rel=1e-4)


@needs("dp_accounting")
@pytest.mark.parametrize("multiplier", [1e-200, 1e-9, 1e-3, 1e3, 1e9, 1e200])
def test_any_noise_has_an_epsilon(multiplier: float) -> None:
    accountant = PrivacyAccountant()
    accountant.spend(multiplier, multiplier)
    assert accountant.epsilon >= 0
    assert (accountant.epsilon > 1e5) == (multiplier < 1e-2), accountant.epsilon
    assert accountant.describe()


@needs("dp_accounting")
def test_what_is_printed() -> None:
    accountant = PrivacyAccountant()
    assert accountant.epsilon == 0
    accountant.spend(1.0, 0.5)
    assert accountant.describe() == (
        "privacy spent by a device: epsilon 4.38 at delta 1e-05 in 1 round; towards server and broker, which see its "
        "updates one by one, epsilon 10"
    )
    accountant.spend(0, 0)
    assert accountant.epsilon == math.inf
    assert accountant.describe() == "privacy: none, as 2 rounds had no noise"


@needs("dp_accounting")
def test_a_restored_state_goes_on() -> None:
    first, second = PrivacyAccountant(), PrivacyAccountant()
    for _ in range(3):
        first.spend(2.0, 1.0)
    second.load_state(first.state())
    first.spend(1.0, 0.5)
    second.spend(1.0, 0.5)
    assert second.describe() == first.describe()
    with pytest.raises(ModelError, match="delta 1e-05, expected 1e-06; go on with the same"):
        PrivacyAccountant(1e-6).load_state(first.state())
    with pytest.raises(ModelError, match="expected \\['delta', 'precision', 'rounds', 'single'\\]"):
        second.load_state({"rounds": 1.0})
    with pytest.raises(ModelError, match="each from 0"):
        second.load_state({"rounds": 1.0, "delta": 1e-5, "precision": math.nan, "single": 1.0})


def test_without_the_library_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"the privacy spent needs dp-accounting.*har-edge\[privacy\]"):
        PrivacyAccountant()
    with pytest.raises(ConfigError, match=r"delta 1\.0, expected a probability"):
        PrivacyAccountant(1.0)
