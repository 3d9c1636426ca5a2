"""The samples of a node itself: what is read, and what leaves when they cannot be used."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from har_edge.errors import DataError
from har_edge.learning.data.own_samples import read_own_samples
from har_edge.protocol.training import TrainingFile, TrainingJob
from tests.learning.made_data import pictures, write_mnist


def job(shape=(6, 6, 1), classes=("0", "1", "2", "3")):
    file = TrainingFile("0" * 64, 1)
    return TrainingJob(
        run="r", author="a", started=1.0, graph=file, spec=file, batch=8, parameters=10, shape=shape, classes=classes,
        own=True,
    )  # fmt: skip


def test_samples_take_the_shape_and_classes_of_the_job(tmp_path):
    write_mnist(tmp_path, pictures(), pictures(12, seed=1))
    own = read_own_samples(tmp_path, job())
    assert (own.shape, own.classes, len(own)) == ((6, 6, 1), ("0", "1", "2", "3"), 40)
    assert own.x.dtype == np.uint8
    assert read_own_samples(tmp_path, job(classes=("a", "b", "c", "d", "e"))).classes == ("a", "b", "c", "d", "e")


def test_classes_are_found_by_name(tmp_path):
    data = pictures()
    np.savez(tmp_path / "a.npz", x=data.x, y=data.y, classes=np.array(["d", "c", "b", "a"]))
    own = read_own_samples(tmp_path / "a.npz", job(classes=("a", "b", "c", "d")))
    assert np.array_equal(own.y, 3 - data.y)


def test_a_model_without_classes_takes_any(tmp_path):
    write_mnist(tmp_path, pictures())
    assert len(read_own_samples(tmp_path, job(classes=()))) == 40


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shape": (28, 28, 1)}, "do not fit the training: samples of shape [6, 6] came, expected [28, 28, 1]"),
        ({"classes": ("a", "b", "c", "x")}, "4 classes came, expected 4; unknown: d; missing: x"),
    ],
)  # fmt: skip
def test_another_shape_and_other_classes_are_told_to_the_server(tmp_path, other, message):
    data = pictures()
    np.savez(tmp_path / "secret-name.npz", x=data.x, y=data.y, classes=np.array(list("abcd")))
    with pytest.raises(DataError) as refused:
        read_own_samples(tmp_path / "secret-name.npz", job(**{"classes": ("a", "b", "c", "d"), **other}))
    assert message in str(refused.value)
    assert "secret-name" not in str(refused.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train-labels-idx1-ubyte.gz").unlink(),
        lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bdamaged"),
        lambda folder: np.savez(folder / "x.npz", x=np.full((2, 3), np.nan), y=np.array([0, 1])),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
    ],
    ids=["no labels", "damaged", "no numbers", "gone"],
)
def test_neither_file_names_nor_values_leave_the_node(tmp_path, caplog, damage):
    folder = write_mnist(tmp_path / "of-anna", pictures())
    damage(folder)
    place = folder / "x.npz" if (folder / "x.npz").exists() else folder
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as refused:
        read_own_samples(place, job())
    assert str(refused.value) == "its own samples cannot be read; the log of this node says which, and why"
    assert refused.value.__cause__ is None
    assert "of-anna" in caplog.text
