"""The digits that scikit-learn brings along: what is trained on where there is no MNIST."""

from __future__ import annotations

import numpy as np

from har_edge.extras import require
from har_edge.learning.data.datasets import Dataset, split_samples

NAME = "scikit-learn's digits"
# 8 x 8 values from 0 to 16 (Alpaydin and Kaynak, UCI Machine Learning Repository 80).
_SIDE, _FULL_SCALE = 8, 16.0


def load_digits(side: int = 28, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return samples to train on and to test with, uint8 [n, side, side]: real, 1797 in all.

    Each pixel is repeated as often as fits into the side, and zeros are put around. Raises ConfigError where
    scikit-learn is not installed.
    """
    if side < _SIDE:
        raise ValueError(f"side {side}: expected at least {_SIDE}")
    require("training on scikit-learn's digits", "sklearn")
    from sklearn import datasets

    bunch = datasets.load_digits()
    factor = side // _SIDE
    before = (side - factor * _SIDE) // 2
    margin = (before, side - factor * _SIDE - before)
    large = bunch.images.astype(np.uint8).repeat(factor, axis=1).repeat(factor, axis=2)
    x = np.pad(large, ((0, 0), margin, margin))
    classes = tuple(str(name) for name in bunch.target_names)
    data = Dataset(x, bunch.target.astype(np.int64), classes, NAME, real=True, scale=1 / _FULL_SCALE)
    return split_samples(data, seed)
