"""Learned reducers: fitted to what they should be, restoring what they can, the same with the same seed."""

from __future__ import annotations

import hashlib
import io
import re

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from har_edge.codecs.catalog import make_reducer
from har_edge.errors import ConfigError
from har_edge.training.autoencoder import AutoencoderRecipe
from har_edge.training.codec import FittedReducer, encode_windows, fit_basis, fit_reducers, write_basis
from har_edge.training.scaling import ValueRange

pytestmark = pytest.mark.training

RECIPE = AutoencoderRecipe(
    epochs=30, rate=5e-3, hidden=24, ranges={"wrist": ValueRange(-12, 12), "hip": ValueRange(-12, 12)}
)


def waves(count: int, channels: int, seed: int) -> np.ndarray:
    """Windows of 40 samples with three numbers to each: amplitude, phase and offset of one sine."""
    random = np.random.default_rng(seed)
    amplitude, phase = random.uniform(1, 5, (count, 1, 1)), random.uniform(0, 6.3, (count, 1, 1))
    time = np.arange(40)[None, :, None] / 40
    gain = np.linspace(1, 2, channels)
    offset = random.uniform(-2, 2, (count, 1, 1))
    return (gain * (amplitude * np.sin(2 * np.pi * time + phase) + offset)).astype(np.float32)


@pytest.fixture(scope="module")
def windows() -> dict[str, np.ndarray]:
    return {"wrist": waves(300, 3, 0), "hip": waves(300, 2, 1)}


def error(reducer_of: FittedReducer, windows: np.ndarray) -> float:
    """Mean squared error over variance."""
    reducer = reducer_of.open(*windows.shape[1:])
    restored = np.stack([reducer.decode(reducer.encode(window)) for window in windows])
    return float(np.mean((restored - windows) ** 2) / windows.var())


def test_components_are_those_of_a_full_decomposition() -> None:
    random = np.random.default_rng(0)
    windows = (random.normal(size=(80, 6)) @ random.normal(size=(6, 60)) * 3).reshape(80, 20, 3)
    windows = (windows + random.normal(0, 0.1, windows.shape) + 7).astype(np.float32)
    basis = fit_basis(windows, 4, seed=0)
    spread = windows.std((0, 1))
    rows = ((windows - windows.mean(0)) / spread).reshape(80, -1)
    expected = np.linalg.svd(rows, full_matrices=False)[2][:4]
    cosines = np.abs((basis.components.reshape(4, -1) * expected).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    np.testing.assert_allclose(basis.mean, windows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(basis.spread, spread, rtol=1e-4)


def test_pca_restores_what_its_components_span(windows: dict[str, np.ndarray]) -> None:
    fitted = fit_reducers("pca:3", windows, RECIPE, "har-pca")
    assert fitted["wrist"].spec == "pca:har-pca-wrist.npz"
    assert list(fitted["hip"].files) == ["har-pca-hip.npz"]
    for source, values in (("wrist", waves(50, 3, 9)), ("hip", waves(50, 2, 8))):
        assert error(fitted[source], values) < 1e-3
    assert error(fit_reducers("pca:1", windows, RECIPE, "x")["wrist"], windows["wrist"]) > 0.1


def test_a_constant_channel_is_no_trouble() -> None:
    flat = waves(50, 3, 0)
    flat[:, :, 1] = 4
    fitted = fit_reducers("pca:3", {"wrist": flat}, RECIPE, "x")["wrist"]
    assert error(fitted, flat) < 1e-3


@pytest.mark.parametrize("method", ["ae", "cae"])
def test_autoencoders_restore_better_than_the_mean(windows: dict[str, np.ndarray], method: str) -> None:
    fitted = fit_reducers(f"{method}:6", windows, RECIPE, f"har-{method}")
    assert fitted["wrist"].spec == f"{method}:har-{method}-wrist-encoder.tflite:har-{method}-wrist-decoder.tflite"
    reducer = fitted["wrist"].open(40, 3)
    assert (reducer.code_shape, reducer.code_dtype, reducer.code_zero) == ((6,), "int8", 0)
    assert reducer.code_scale == 1 / 128
    assert reducer.restores
    assert error(fitted["wrist"], waves(50, 3, 9)) < 0.3
    assert error(fitted["hip"], waves(50, 2, 8)) < 0.3


def test_channels_of_different_units_are_restored_all_the_same() -> None:
    mixed = waves(300, 2, 0)
    mixed[:, :, 1] = 40 + mixed[:, :, 1] / 20
    fitted = fit_reducers("ae:6", {"motor": mixed}, AutoencoderRecipe(epochs=30, rate=5e-3, hidden=24), "x")["motor"]
    reducer = fitted.open(40, 2)
    restored = np.stack([reducer.decode(reducer.encode(window)) for window in mixed])
    for channel in range(2):
        assert np.mean((restored - mixed)[..., channel] ** 2) < 0.3 * mixed[..., channel].var()


def test_the_same_seed_gives_the_same_files(windows: dict[str, np.ndarray]) -> None:
    short = AutoencoderRecipe(epochs=1, hidden=8)
    hip = {"hip": windows["hip"]}
    for spec in ("pca:2", "cae:3"):
        first, second = (fit_reducers(spec, hip, short, "x")["hip"] for _ in range(2))
        assert first.files == second.files


def test_a_recipe_behind_another_method_is_fitted_to_its_codes(windows: dict[str, np.ndarray]) -> None:
    fitted = fit_reducers("paa:4+pca:2+zlib", windows, RECIPE, "har")
    assert fitted["wrist"].spec == "paa:4+pca:har-1-wrist.npz+zlib"
    reducer = fitted["wrist"].open(40, 3)
    assert reducer.feature_shape == (2,)
    features = encode_windows({"wrist": reducer}, {"wrist": windows["wrist"][:5]})["wrist"]
    assert features.shape == (5, 2)
    with np.load(io.BytesIO(fitted["wrist"].files["har-1-wrist.npz"])) as arrays:
        assert arrays["components"].shape == (2, 10, 3)


def test_a_task_gets_names_and_hashes(windows: dict[str, np.ndarray]) -> None:
    content = write_basis(fit_basis(windows["hip"], 2, 0))
    enters = FittedReducer("pca:hip.npz", {"hip.npz": content}).enters("hip_code")
    assert (enters.tensor, enters.reducer) == ("hip_code", "pca:hip.npz")
    assert enters.files == {"hip.npz": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "stats+pca:3",
            "reducer 'stats+pca:3': pca:3 cannot be fitted here; expected pca:K, ae:K, cae:K on windows or",
        ),
        ("paa:5+bottleneck:4", "bottleneck:4 cannot be fitted here"),
        ("pca:121", "pca:121 asks for 121 values; expected 1 to 120 from 300 training windows [40, 3] of source wrist"),
        ("ae:0", "ae:0 asks for 0 values; expected 1 to 120"),
    ],
)
def test_what_cannot_be_fitted_is_refused(windows: dict[str, np.ndarray], spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        fit_reducers(spec, windows, RECIPE, "x")


def test_what_needs_no_fit_is_left_as_it_is(windows: dict[str, np.ndarray]) -> None:
    fitted = fit_reducers("paa:5+q8", windows, RECIPE, "x")["wrist"]
    assert fitted == FittedReducer("paa:5+q8", {})
    assert fitted.open(40, 3).spec == make_reducer("paa:5+q8", 40, 3).spec
