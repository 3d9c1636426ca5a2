"""Heat maps over pictures, as PNG files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from har_edge.data.heat_maps import LEAST_SIDE, draw_overlay


def drawn(pixels: np.ndarray, heat_map: np.ndarray, threshold: float) -> np.ndarray:
    content = draw_overlay(pixels, heat_map, threshold)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_normal_stays_as_it_is_and_what_is_not_turns_red(channels: int) -> None:
    pixels = np.full((64, 64, channels), 80, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 40.0
    made = drawn(pixels, heat, 10.0)
    assert made.shape == (LEAST_SIDE, LEAST_SIDE, 3)
    assert (made[200:, 200:] == 80).all()
    assert made[20, 20].tolist() == [211, 20, 20]  # a quarter of 80, three quarters of red
    assert (drawn(pixels, np.full((1, 1), 5.0), 10.0) == 80).all()  # half the threshold
    yellow = drawn(pixels, np.full((1, 1), 10.0), 10.0)[0, 0]
    assert yellow[0] == yellow[1] > 100 and yellow[2] < 80


def test_no_value_is_clear_and_without_a_threshold_colours_span_the_values() -> None:
    pixels = np.full((300, 400, 3), 80, np.uint8)
    made = drawn(pixels, np.array([[np.nan, np.nan]]), 1.0)
    assert made.shape == (300, 400, 3) and (made == 80).all()
    made = drawn(pixels, np.array([[-5.0, -1.0]]), 0.0)
    assert (made[:, 0] == 80).all() and made[0, -1].tolist() == [211, 20, 20]
