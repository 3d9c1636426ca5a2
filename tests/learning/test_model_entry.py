"""A trained model says itself what it is for: classes, pixels, sources and data travel in its entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from har_edge.config.catalog import find_model, load_catalog
from har_edge.data.description import load_description
from har_edge.errors import ConfigError, ModelError
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.data.input_layout import InputLayout
from har_edge.learning.lenet import write_lenet5
from har_edge.learning.model_entry import Purpose, TrainingOrigin, check_folder, purpose_of, store_model
from har_edge.tflite.model import read_model
from tests.learning.made_data import pictures

ORIGIN = TrainingOrigin("digits (real): 9 samples", True, ("digits",), "har-edge train --on-devices", 3)


def lenet(side: int = 6, classes: int = 4) -> bytes:
    return bytes(write_lenet5(classes, shape=(side, side)))


def store(tmp_path: Path, content: bytes, purpose: Purpose) -> None:
    store_model(content, purpose, ORIGIN, tmp_path / "mine.tflite")


def test_a_model_of_pictures_knows_its_classes_and_what_bytes_mean(tmp_path: Path) -> None:
    data, content = pictures(), lenet()
    store(tmp_path, content, purpose_of(read_model(content), data, None, None, tmp_path))
    entry = find_model(str(tmp_path / "mine.tflite")).entry
    assert entry is not None and entry.task.image is not None
    assert entry.task.labels == ["0", "1", "2", "3"]
    assert (entry.task.image.shape.height, entry.task.image.mean, entry.task.image.std) == (6, (0.0,), (255.0,))
    assert (entry.data, entry.real, entry.trained_on, entry.seed) == (ORIGIN.data, True, ["digits"], 3)


def test_samples_of_values_become_windows_with_a_description_beside_them(tmp_path: Path) -> None:
    data = pictures()
    data, content = replace(data, x=data.values(), scale=1.0), lenet()
    store(tmp_path, content, purpose_of(read_model(content), data, None, None, tmp_path))
    (entry,) = load_catalog(tmp_path).models
    assert (entry.task.image, entry.task.stream.length, entry.task.labels) == (None, 36, list(data.classes))
    assert len(load_description(tmp_path / entry.task.stream.description).sources[0].channels) == 1


def test_a_listed_model_keeps_its_task_and_a_described_one_gets_one(tmp_path: Path) -> None:
    found = find_model("float")
    assert found.entry is not None
    rows = np.zeros((4, 250, 23), np.float32)
    sources = (("chest", 5), ("ankle", 9), ("arm", 9))
    labels = tuple(found.entry.task.labels)
    data = Dataset(rows, np.arange(4), labels, "mhealth", True, sources=sources, groups=np.array(list("aabb")))
    model = read_model(found.path)
    assert purpose_of(model, data, found, None, tmp_path) == Purpose(found.entry.task)
    known = purpose_of(model, data, None, "mhealth", tmp_path).task
    assert (known.inputs.keys(), known.labels, known.stream.grouping) == (
        found.entry.task.inputs.keys(), list(labels), "location"
    )  # fmt: skip


def test_a_model_that_nothing_describes_is_said_to_be_so(tmp_path: Path) -> None:
    found = find_model("float")
    data = Dataset(np.zeros((4, 250, 23), np.float32), np.arange(4), tuple("abcdefghijkl"), "rows", True)
    with pytest.raises(ConfigError, match="no manifest says what they mean"):
        purpose_of(read_model(found.path), data, None, None, tmp_path)


def test_a_manifest_of_another_kind_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is no manifest of models"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "shape"),
    [(((4, 2), (4, 3)), (4, 5)), (((2,), (3,)), (5,)), (((4, 2), (3,)), (11,)), (((6, 6, 1),), (6, 6, 1))],
)
def test_inputs_stand_side_by_side_and_come_apart_again(
    shapes: tuple[tuple[int, ...], ...], shape: tuple[int, ...]
) -> None:
    names = tuple("abc"[: len(shapes)])
    layout = InputLayout(names, shapes)
    generator = np.random.default_rng(0)
    inputs = {name: generator.random((7, *one)).astype(np.float32) for name, one in zip(names, shapes, strict=True)}
    joined = layout.join(inputs)
    assert joined.shape == (7, *shape) and layout.shape == shape
    assert all(np.array_equal(part, inputs[name]) for name, part in layout.split(joined).items())


def test_own_samples_are_brought_into_the_order_of_the_job() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 1, 6)
    data = Dataset(x, np.array([0, 1]), ("a", "b"), "rows", True, sources=(("arm", 2), ("chest", 4)))
    arranged = data.arranged((("chest", 4), ("arm", 2)))
    assert arranged.x[0, 0].tolist() == [2, 3, 4, 5, 0, 1] and arranged.sources == (("chest", 4), ("arm", 2))
