"""Magnitudes and medians: what NumPy computes in training is what the graph of an encoder computes."""

from __future__ import annotations

import numpy as np
import pytest

from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording
from har_edge.training.magnitude import KINDS, magnitudes, measure_magnitudes, middle, triads_of
from har_edge.training.scaling import measure_scaling


@pytest.mark.parametrize(
    ("channels", "every", "kinds"),
    [
        (("acc_x", "acc_y", "acc_z", "ecg_1"), [0], [0]),
        (("gyro_x", "gyro_y", "gyro_z", "mag_x", "mag_y", "mag_z"), [0, 3], [0]),
        (("temp", "chest_acc_x", "chest_acc_y", "chest_acc_z"), [1], [1]),
        (("acc_x", "acc_y", "acc_w"), [], []),
        (("acc_x", "acc_y"), [], []),
        (("accord_x", "accord_y", "accord_z"), [0], []),
    ],
)
def test_vectors_are_found_by_name(channels: tuple[str, ...], every: list[int], kinds: list[int]) -> None:
    assert triads_of(channels) == every
    assert triads_of(channels, KINDS) == kinds


def test_magnitudes_do_not_see_how_a_sensor_is_turned() -> None:
    random = np.random.default_rng(0)
    windows = random.normal(0, 5, (4, 30, 5)).astype(np.float32)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0].astype(np.float32)
    turned = windows.copy()
    turned[:, :, 1:4] = windows[:, :, 1:4] @ turn
    np.testing.assert_allclose(magnitudes(turned, [1]), magnitudes(windows, [1]), rtol=1e-4)
    np.testing.assert_allclose(magnitudes(windows, [1])[..., 0], np.linalg.norm(windows[..., 1:4], axis=-1), rtol=1e-6)
    assert magnitudes(windows, []).shape == (4, 30, 0)


@pytest.mark.parametrize("length", [1, 2, 3, 50, 51])
def test_the_median_is_the_lower_one_within_bounds(length: int) -> None:
    values = np.random.default_rng(length).normal(0, 3, (20, length, 2)).astype(np.float32)
    lower = np.sort(values, axis=1)[:, (length - 1) // 2]
    np.testing.assert_array_equal(middle(values), np.clip(lower / 4, -1, 1))


def test_scaled_magnitudes_are_comparable(recordings: list[Recording], description: StreamDescription) -> None:
    vectors = measure_magnitudes(recordings, description, measure_scaling(recordings, description))
    assert vectors.triads == {"chest": (0,), "ankle": (0, 3), "arm": (0, 3)}
    every = np.concatenate([recording.samples["arm"] for recording in recordings])[None]
    scaled = vectors.scaled("arm", every)[0]
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)
    assert (scaled.std(0) < 1.01).all()
    # No magnitude is blown up beyond a tenth of full scale.
    assert (vectors.spread["arm"] >= 2.2 - 1e-6).all()


def test_a_grouping_finds_the_same_vectors(recordings: list[Recording], description: StreamDescription) -> None:
    together = regroup(description, "all")
    grouped = [regroup_recording(recording, description, "all") for recording in recordings]
    vectors = measure_magnitudes(grouped, together, measure_scaling(grouped, together))
    assert vectors.triads == {"all": (0, 5, 8, 14, 17)}
    apart = measure_magnitudes(recordings, description, measure_scaling(recordings, description))
    means = np.concatenate([apart.mean[source.name] for source in description.sources])
    np.testing.assert_allclose(vectors.mean["all"], means, rtol=1e-5)
