"""A model without a task takes part as a classifier of made-up images, through real slices and stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.errors import ModelError
from har_edge.experiments.model_under_test import find_model_under_test, make_windows
from har_edge.inference.interpreter import Port
from har_edge.inference.port_task import image_task


def port(shape: tuple[int, ...], dtype: str = "float32", scale: float = 0.0, zero: int = 0) -> Port:
    return Port("image", shape, np.dtype(dtype), scale, zero)


SCORES = Port("scores", (1, 10), np.dtype("float32"), 0.0, 0)


@pytest.mark.parametrize(
    ("image", "length", "reducer"),
    [
        (port((1, 8, 6, 3)), 48, "none"),
        (port((1, 8, 6, 3), "uint8", 0.0078125, 128), 48, "u8:0.0078125:128"),
        (port((1, 50, 3), "int8", 0.5, -3), 50, "q8:0.5:-3"),
        (port((1, 8, 6, 3), "uint8"), 48, "none"),
        (port((1, 4, 8, 6, 3)), 192, "none"),
    ],
)
def test_an_image_is_a_window_and_classes_go_by_index(image: Port, length: int, reducer: str) -> None:
    task = image_task(image, SCORES)
    assert (task.stream.length, task.inputs["camera"].reducer) == (length, reducer)
    assert (task.labels[3], task.label_ids[3], len(task.labels)) == ("class-3", 3, 10)


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, -1, 3), (1, 2, 3, 4, 5, 6)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"input 'image' is \[1, .*; expected an image \[1, height, width, channels\]"):
        image_task(port(shape), SCORES)


def test_a_shipped_model_keeps_its_task_and_its_windows_have_every_source(tmp_path: Path) -> None:
    from har_edge.experiments.model_under_test import cut_model

    under_test = find_model_under_test("int8", tmp_path / "models")
    pipeline = cut_model(under_test, (), tmp_path / "slices", "bench")
    windows = make_windows(pipeline, 2)
    assert [set(window) for window in windows] == [set(under_test.task.inputs)] * 2
    again = make_windows(pipeline, 2)
    assert all(np.array_equal(windows[1][source], again[1][source]) for source in windows[1])
