"""Principal components against scikit-learn, and every file that is none."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.files import NO_FILES
from har_edge.codecs.pca import read_basis
from har_edge.errors import ConfigError
from tests.codecs.samples import SampleFiles, some_basis, some_window


class OneFile:
    """Files with these arrays under every name."""

    def __init__(self, arrays):
        self._arrays = arrays

    def arrays(self, name):
        return self._arrays


@pytest.fixture(scope="module")
def windows():
    return np.stack([some_window(50, 4, seed) for seed in range(60)])


def test_codes_are_the_coordinates_of_scikit_learn(windows):
    spread = windows.std(axis=(0, 1))
    rows = (windows / spread).reshape(len(windows), -1).astype(np.float64)
    oracle = PCA(n_components=6, svd_solver="full").fit(rows)
    coordinates = oracle.transform(rows)
    scale = np.abs(coordinates).max(axis=0) / 127
    reducer = make_reducer(
        "pca:chest.npz",
        50,
        4,
        OneFile(
            {
                "mean": (oracle.mean_.reshape(50, 4) * spread).astype(np.float32),
                "spread": spread.astype(np.float32),
                "components": oracle.components_.reshape(6, 50, 4).astype(np.float32),
                "scale": scale.astype(np.float32),
            }
        ),
    )
    codes = np.stack([reducer.encode(window) for window in windows])
    assert codes.dtype == np.int8 and codes.shape == (60, 6)
    assert (np.abs(codes - coordinates / scale) <= 0.5 + 1e-3).all()
    features = np.stack([reducer.features(code) for code in codes])
    np.testing.assert_allclose(features, codes * scale, rtol=1e-5)
    restored = np.stack([reducer.decode(code) for code in codes])
    expected = oracle.inverse_transform(features).reshape(windows.shape) * spread
    np.testing.assert_allclose(restored, expected, rtol=1e-4, atol=1e-3)


def test_coordinates_beyond_the_range_saturate():
    reducer = make_reducer("pca:basis.npz", 250, 9, SampleFiles(250, 9))
    window = np.full((250, 9), 3e38, np.float32)
    codes = reducer.encode(window), reducer.encode(-window)
    assert 127 in codes[0] and -127 in codes[1] and min(codes[0].min(), codes[1].min()) == -127
    assert np.isfinite(reducer.decode(codes[0])).all()


def test_operations_count_the_projection():
    size = len(some_basis()["scale"])
    operations = make_reducer("pca:basis.npz", 250, 9, SampleFiles(250, 9)).operations
    assert operations == 2250 + 2 * 2250 * size + 5 * size


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", None, "the file holds components, scale, spread, expected mean, spread, components, scale"),
        ("other", np.zeros(3), "the file holds components, mean, other, scale, spread, expected"),
        (
            "components",
            np.zeros((8, 125, 9), np.float32),
            r"components are \[8, 125, 9\], expected \[K, 250, 9\] for windows \[250, 9\]; fit it for this source",
        ),
        ("components", np.zeros((0, 250, 9), np.float32), r"components are \[0, 250, 9\], expected \[K, 250, 9\]"),
        ("components", np.zeros((9, 2250), np.float32), r"components are \[9, 2250\], expected \[K, 250, 9\]"),
        ("components", np.ones((27, 250, 9), np.float32), "components are not orthonormal"),
        ("components", np.ones((9, 250, 9)), r"components is float64 \[9, 250, 9\], expected float32"),
        (
            "mean",
            np.zeros((250, 8), np.float32),
            r"mean is float32 \[250, 8\], expected float32 \[250, 9\]; fit it again",
        ),
        ("mean", np.full((250, 9), np.nan, np.float32), "mean holds NaN or infinity, expected finite values"),
        ("spread", np.zeros(9, np.float32), "spread has values of 0 or less, expected them above 0"),
        ("scale", np.full(27, -1, np.float32), "scale has values of 0 or less"),
        ("scale", np.ones(4, np.float32), r"scale is float32 \[4\], expected float32 \[27\]"),
    ],
)
def test_a_file_for_something_else_is_refused(key, value, message):
    arrays = {**some_basis(), key: value}
    with pytest.raises(ConfigError, match=f"pca:x.npz: {message}"):
        read_basis("x.npz", {name: array for name, array in arrays.items() if array is not None}, 250, 9)


def test_without_files_it_says_where_they_belong():
    with pytest.raises(ConfigError, match=r"needs the file 'x.npz', but there are no files here; .*SOURCE.files"):
        make_reducer("pca:x.npz", 250, 9)
    with pytest.raises(ConfigError, match=r"needs the file 'x.tflite'"):
        NO_FILES.model("x.tflite")
