"""One class of labelled pictures as the normal one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from har_edge.errors import DataError
from har_edge.learning.anomaly.classes import one_class
from har_edge.learning.data.dataset_files import LabelledData
from har_edge.learning.data.datasets import Dataset


def labelled(labels: list[int], shape: tuple[int, ...] = (4, 4), dtype: str = "uint8") -> LabelledData:
    x = np.arange(len(labels) * int(np.prod(shape)), dtype=np.float64).astype(dtype).reshape(len(labels), *shape)
    data = Dataset(x, np.array(labels, np.int64), ("a", "b", "c"), "letters", real=True)
    return LabelledData(data, replace(data, y=np.array([*labels[1:], labels[0]], np.int64)), "")


def test_one_class_is_normal() -> None:
    data = labelled([0, 1, 0, 1])
    found = one_class(data, "b")
    np.testing.assert_array_equal(found.train[..., 0], data.train.x[[1, 3]])
    assert found.test.shape == (4, 4, 4, 1)
    assert found.anomalous.tolist() == [False, True, False, True]
    assert found.kinds == ("b", "a", "b", "a")
    assert (found.name, found.real, found.masks) == ("letters, class b", True, None)
    assert found.origin == "letters, class b (real): 2 normal pictures, 4 test pictures, 2 of them anomalous"


def test_a_class_without_pictures_is_refused() -> None:
    with pytest.raises(DataError, match=r"letters has no pictures of class 'c' to train with"):
        one_class(labelled([0, 1]), "c")
    with pytest.raises(DataError, match=r"letters has the classes a, b, c; 'd' came as the normal one"):
        one_class(labelled([0, 1]), "d")


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "float32"), ((4, 4, 2), "uint8"), ((4,), "uint8")])
def test_samples_that_are_no_pictures_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(DataError, match=r"samples are .*; expected pictures uint8"):
        one_class(labelled([0, 1], shape, dtype), "a")
