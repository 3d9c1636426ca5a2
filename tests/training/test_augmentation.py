"""Augmentation keeps what it must keep and stays within its limits."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from har_edge.data.description import StreamDescription
from har_edge.data.grouping import regroup, regroup_recording
from har_edge.data.recording import Recording, Source
from har_edge.training.augmentation import Augmentation, Augmenter, change_pace, drop_sources, rotations
from har_edge.training.dataset import Batch, Draw, WindowPool
from har_edge.training.scaling import Scaling, ValueRange, measure_scaling, measure_values

LABELS = list(range(1, 13))
STILL = Augmentation(
    rotation_deg=0, posture_deg={}, lean=0, exchange=0, swing={}, other_swing=0, turning=0, noise=0, pace=0
)


def test_rotations_are_rotations_within_their_limit() -> None:
    limit = np.linspace(0, 90, 200)
    matrices = rotations(limit, np.random.default_rng(0)).astype(np.float64)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (200, 3, 3)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, atol=1e-6)
    angle = np.rad2deg(np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert (angle <= limit + 0.1).all()
    assert angle[100:].mean() > 20


def test_pace_one_changes_nothing_and_others_stretch_about_the_middle() -> None:
    rows = np.arange(11, dtype=np.float32)[None, :, None].repeat(3, 0)
    changed = change_pace(rows, np.array([1.0, 0.5, 1.2]))[:, :, 0]
    np.testing.assert_array_equal(changed[0], np.arange(11))
    np.testing.assert_allclose(changed[1], 2.5 + np.arange(11) / 2)
    np.testing.assert_allclose(changed[2][[0, 5, 10]], [1, 5, 9], atol=1e-6)
    assert changed[2].min() >= 0
    assert changed[2].max() <= 10


@pytest.fixture
def batch(recordings: list[Recording]) -> Batch:
    return WindowPool(recordings, 250, LABELS).draw().batch()


def plain(spread: dict[str, np.ndarray]) -> Scaling:
    """A scaling of which only the spread matters, and noise of that size."""
    return Scaling({}, spread, {}, spread)


def change(batch: Batch, description: StreamDescription, settings: Augmentation, seed: int = 0) -> Batch:
    labels = [description.labels[label] for label in LABELS]
    spread = {source: np.ones(values.shape[2], np.float32) for source, values in batch.samples.items()}
    samples = {source: values.reshape(-1, values.shape[2]) for source, values in batch.samples.items()}
    draw = Draw(samples, 250, np.arange(len(batch)) * 250, batch.classes)
    return Augmenter(description, labels, settings).change(draw, plain(spread), np.random.default_rng(seed))


def test_turning_keeps_the_length_of_vectors_and_other_channels(batch: Batch, description: StreamDescription) -> None:
    turned = change(batch, description, replace(STILL, rotation_deg=20.0, lean=0.5))
    for source, triads in {"chest": [0], "ankle": [0, 6], "arm": [0, 6]}.items():
        for first in triads:
            was, now = (b.samples[source][:, :, first : first + 3] for b in (batch, turned))
            np.testing.assert_allclose(np.linalg.norm(now, axis=2), np.linalg.norm(was, axis=2), rtol=1e-4, atol=1e-4)
            assert np.abs(now - was).max() > 0.1
    np.testing.assert_array_equal(turned.samples["chest"][:, :, 3:], batch.samples["chest"][:, :, 3:])


def test_postures_turn_further_than_movements(batch: Batch, description: StreamDescription) -> None:
    further = {"sitting and relaxing": {"chest": 40.0}}
    settings = replace(STILL, rotation_deg=1.0, posture_deg=further)
    turned = change(batch, description, settings)
    moved = np.abs(turned.samples["chest"] - batch.samples["chest"])[:, :, :3].max((1, 2))
    sitting = batch.classes == LABELS.index(2)
    assert moved[sitting].mean() > 5 * moved[~sitting].mean()


def test_who_sits_leans_either_way_and_nobody_else(batch: Batch, description: StreamDescription) -> None:
    leaning = change(batch, description, replace(STILL, lean=0.5))
    was, now = (b.samples["chest"] for b in (batch, leaning))
    np.testing.assert_allclose(np.abs(now), np.abs(was), atol=1e-5)
    other_way = (np.abs(now - was) > 1e-3).any(1)
    sitting = batch.classes == LABELS.index(2)
    assert not other_way[~sitting].any()
    assert not other_way[:, [0, 1, 3, 4]].any()
    assert 0.2 < other_way[sitting, 2].mean() < 0.8
    for source in ("ankle", "arm"):
        np.testing.assert_allclose(leaning.samples[source], batch.samples[source], atol=1e-5)


def test_sources_are_exchanged_within_an_activity(batch: Batch, description: StreamDescription) -> None:
    numbered = Batch(
        {
            source: np.broadcast_to(np.arange(len(batch), dtype=np.float32)[:, None, None], values.shape).copy()
            for source, values in batch.samples.items()
        },
        batch.classes,
    )
    mixed = change(numbered, description, replace(STILL, exchange=0.5))
    np.testing.assert_allclose(mixed.samples["chest"], numbered.samples["chest"], rtol=1e-5)
    came = {source: np.rint(mixed.samples[source][:, 0, 0]).astype(int) for source in ("ankle", "arm")}
    for of in came.values():
        np.testing.assert_array_equal(batch.classes[of], batch.classes)
        assert 0.3 < (of != np.arange(len(batch))).mean() < 0.6
    assert (came["ankle"] != came["arm"]).any()


def test_the_batch_given_stays_as_it_is_and_the_seed_decides(batch: Batch, description: StreamDescription) -> None:
    before = {source: values.copy() for source, values in batch.samples.items()}
    first, second, other = (change(batch, description, Augmentation(), seed) for seed in (1, 1, 2))
    for source in before:
        np.testing.assert_array_equal(batch.samples[source], before[source])
        np.testing.assert_array_equal(first.samples[source], second.samples[source])
        assert (first.samples[source] != other.samples[source]).any()


def test_movement_is_stronger_or_weaker_and_gravity_stays(batch: Batch, description: StreamDescription) -> None:
    swung = change(batch, description, replace(STILL, swing={"arm": 0.4}, turning=0.3))
    np.testing.assert_allclose(swung.samples["chest"], batch.samples["chest"], atol=1e-5)
    np.testing.assert_allclose(swung.samples["ankle"][:, :, :3], batch.samples["ankle"][:, :, :3], atol=1e-5)
    was, now = (b.samples["arm"].astype(np.float64) for b in (batch, swung))
    np.testing.assert_allclose(now[:, :, :3].mean(1), was[:, :, :3].mean(1), atol=1e-4)
    moved = was[:, :, :3].std(1).min(1) > 1
    strength = np.log(now[moved, :, 0].std(1) / was[moved, :, 0].std(1))
    assert np.abs(strength).max() <= 0.4 + 1e-4
    assert strength.std() > 0.15
    turned = np.log(np.abs(now[:, :, 3:6]).sum((1, 2)) / np.abs(was[:, :, 3:6]).sum((1, 2)))
    assert 0.2 < np.abs(turned).max() <= 0.3 + 1e-4
    np.testing.assert_allclose(now[:, :, 6:], was[:, :, 6:], atol=1e-4)


def test_noise_is_as_strong_as_asked_for_and_never_the_same(batch: Batch, description: StreamDescription) -> None:
    noisy = change(batch, description, replace(STILL, noise=0.2))
    for source, values in batch.samples.items():
        noise = noisy.samples[source] - values
        assert noise.std() == pytest.approx(0.2, rel=0.02)
        assert abs(noise.mean()) < 0.002
        assert (np.diff(noise, axis=0) != 0).any((1, 2)).all()


@pytest.mark.parametrize("grouping", ["all", "type"])
def test_grouping_changes_nothing_about_what_is_done(
    recordings: list[Recording], description: StreamDescription, grouping: str
) -> None:
    settings = replace(Augmentation(), noise=0.0)
    grouped = [regroup_recording(recording, description, grouping) for recording in recordings]
    labels = [description.labels[label] for label in LABELS]
    made = {}
    for kind, data in (("location", recordings), (grouping, grouped)):
        layout = regroup(description, kind)
        spread = {source.name: np.ones(len(source.channels), np.float32) for source in layout.sources}
        draw = WindowPool(data, 250, LABELS).draw()
        changed = Augmenter(layout, labels, settings).change(draw, plain(spread), np.random.default_rng(3))
        made[kind] = {
            channel if kind != "location" else f"{source.name}_{channel}": changed.samples[source.name][:, :, at]
            for source in layout.sources
            for at, channel in enumerate(source.channels)
        }
    assert set(made[grouping]) == set(made["location"])
    for channel, values in made["location"].items():
        np.testing.assert_allclose(made[grouping][channel], values, rtol=1e-4, atol=1e-4, err_msg=channel)


def test_sources_in_no_table_are_stuck_on_any_way_and_shifted(description: StreamDescription) -> None:
    motor = Source("motor", ("acc_x", "acc_y", "acc_z", "temp"))
    fans = dataclasses.replace(description, name="fans", sources=(motor,))
    windows = np.tile(np.array([0, 0, 9.8, 40], np.float32), (300, 20, 1))
    spread = {"motor": np.array([1, 1, 1, 3], np.float32)}
    draw = Draw({"motor": windows.reshape(-1, 4)}, 20, np.arange(300) * 20, np.zeros(300, np.int64))
    settings = replace(Augmentation(), noise=0.0)
    changed = Augmenter(fans, ["calm"], settings).change(draw, plain(spread), np.random.default_rng(0)).samples["motor"]
    np.testing.assert_allclose(np.linalg.norm(changed[:, 0, :3], axis=1), 9.8, rtol=1e-4)
    tilt = np.rad2deg(np.arccos(changed[:, 0, 2] / 9.8001))
    assert 15 < tilt.mean() < 40
    assert tilt.max() <= 60.1
    assert np.ptp(changed, axis=1).max() < 1e-3  # what was constant in a window still is
    assert changed[:, 0, 3].std() == pytest.approx(3, rel=0.15)


def test_whole_sources_are_dropped_but_never_all() -> None:
    samples = {name: np.ones((1000, 4, 2), np.float32) for name in ("chest", "ankle", "arm")}
    drop_sources(samples, 0.4, np.random.default_rng(0))
    there = np.stack([values.any((1, 2)) for values in samples.values()])
    assert (there == np.stack([values.all((1, 2)) for values in samples.values()])).all()
    assert there.any(0).all()
    assert ((there.mean(1) > 0.55) & (there.mean(1) < 0.72)).all()


def test_nearly_constant_channels_are_not_blown_up() -> None:
    flat = np.full((500, 2), 3, np.float32)
    scaling = measure_values("wrist", flat, ValueRange(-22, 22))
    assert scaling.spread["wrist"].tolist() == pytest.approx([2.2, 2.2])
    assert np.abs(scaling.apply({"wrist": flat})["wrist"]).max() < 1e-6


def test_scaling_is_measured_on_what_it_is_given(recordings: list[Recording], description: StreamDescription) -> None:
    alone, both = measure_scaling(recordings[:1], description), measure_scaling(recordings[:2], description)
    values = np.clip(recordings[0].samples["arm"], -22, 22)
    np.testing.assert_allclose(alone.mean["arm"], values.mean(0), atol=1e-3)
    assert (alone.mean["arm"] != both.mean["arm"]).any()
    assert alone.ranges["arm"] == ValueRange(-22, 22)


def test_another_data_set_is_measured() -> None:
    random = np.random.default_rng(0)
    even = random.normal(0, 3, (4000, 3)).astype(np.float32)
    scaling = measure_values("motor", even)
    span = scaling.ranges["motor"]
    assert span is not None
    assert span.low == -span.high
    assert 9 < span.high < 13
    np.testing.assert_allclose(scaling.spread["motor"], 3, rtol=0.1)


def test_channels_too_different_for_one_step_are_scaled_by_themselves() -> None:
    random = np.random.default_rng(0)
    mixed = np.stack([random.normal(20, 0.5, 4000), random.normal(0, 900, 4000), np.full(4000, 7)], 1)
    scaling = measure_values("motor", mixed.astype(np.float32))
    assert scaling.ranges["motor"] is None
    scaled = scaling.apply({"motor": mixed.astype(np.float32)})["motor"]
    np.testing.assert_allclose(scaled.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=0.01)
    assert np.abs(scaled).max() <= 5
