"""Detectors: the file that is served gives what the formulas say, and tells what is not normal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.api.model import load_model
from har_edge.config.anomaly import NOTE_FILE, AnomalyNote, read_anomaly_note, with_anomaly_note
from har_edge.data.pictures import AspectRule
from har_edge.errors import ConfigError, DataError, ModelError
from har_edge.evaluation.anomaly_metrics import grow
from har_edge.inference.anomaly import AnomalyDetector
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.anomaly.choosing import FeatureReader, LearnedFeatures, separation
from har_edge.learning.anomaly.defects import add_defects, rearrange
from har_edge.learning.anomaly.detector import DetectorSettings, Pool, write_detector, write_head
from har_edge.learning.anomaly.features import NetworkFeatures, PictureFeatures, ReconstructionFeatures, pick_layers
from har_edge.learning.anomaly.finishing import DataOrigin, finish_detector
from har_edge.learning.anomaly.local_run import train_here
from har_edge.learning.anomaly.methods import (
    autoencoder_features,
    joint_features,
    normalize,
    prepare_autoencoder,
    prepare_student,
)
from har_edge.learning.anomaly.networks import AutoencoderSize, write_autoencoder
from har_edge.learning.anomaly.pictures import normal_dataset, split_normal
from har_edge.learning.anomaly.statistics import OPTIMIZER, FeatureStatistics, prepare_statistics, read_statistics
from har_edge.tflite.feature_copy import FeatureCopy
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.metadata import append_files
from har_edge.tflite.model import read_model
from tests.learning.anomaly_pictures import stripes, with_spot

SHAPE = (16, 16, 1)
NETWORK = bytes(write_autoencoder(SHAPE, AutoencoderSize(4, 3)))
STATISTICS = FeatureStatistics(9, (np.full(SHAPE, 0.1, np.float32),), (np.full(SHAPE, 0.04, np.float32),))
ORIGIN = DataOrigin("stripes", real=False)


def statistics_of(features, pictures):
    sums = prepare_statistics(features, pictures.shape[1:], 8)
    data = normal_dataset(pictures, "stripes", real=False)
    return read_statistics(train_here(sums, data, OPTIMIZER, 1, 0), sums.spec)


@pytest.mark.parametrize("pool", Pool)
def test_a_detector_gives_what_the_formula_says(pool: Pool) -> None:
    settings = DetectorSettings(pool, regularization=0.5)
    features = ReconstructionFeatures(read_model(NETWORK))
    content = bytes(write_detector(features, SHAPE, STATISTICS, settings, 2.5))
    pictures = stripes(3)
    x = pictures.astype(np.float32) / 255
    residual = x - Interpreter(NETWORK).run({"picture": x})["reconstruction"]
    heat = np.abs(residual[..., 0] - 0.1) / np.sqrt(0.04 + 0.5 * 0.04)
    got = Interpreter(content).run({"picture": pictures})
    np.testing.assert_allclose(got["heat_map"], heat, rtol=1e-4, atol=1e-5)
    wanted = heat.max(axis=(1, 2)) if pool is Pool.MAX else np.sqrt(np.square(heat).mean(axis=(1, 2)))
    np.testing.assert_allclose(got["score"], wanted, rtol=1e-4)
    assert got["threshold"].tolist() == [2.5]
    assert [port.shape for port in Interpreter(content).outputs] == [(-1,), (-1, 16, 16), (1,)]
    alone = [float(Interpreter(content).run({"picture": one[None]})["score"][0]) for one in pictures]
    np.testing.assert_allclose(got["score"], alone, rtol=1e-5)


@pytest.mark.parametrize("pool", Pool)
def test_slices_of_a_detector_give_its_bits_at_every_cut(pool: Pool, tmp_path: Path) -> None:
    features = ReconstructionFeatures(read_model(NETWORK))
    settings = DetectorSettings(pool, regularization=0.5, blur=1.0)
    (tmp_path / "anomaly.tflite").write_bytes(write_detector(features, SHAPE, STATISTICS, settings, 2.5))
    model = load_model(tmp_path / "anomaly.tflite", pictures=True)
    cuts = [cut.index for cut in model.cuts]
    assert len(cuts) > 15
    model.verify(cuts)
    for cut in cuts:
        model.verify([cut])


def test_full_covariances_give_mahalanobis_distances() -> None:
    pictures = stripes(40)
    features = ReconstructionFeatures(read_model(NETWORK), "down0")
    sums = prepare_statistics(features, SHAPE, 8, full=True)
    data = normal_dataset(pictures, "stripes", real=False)
    statistics = read_statistics(train_here(sums, data, OPTIMIZER, 1, 0), sums.spec)
    settings = DetectorSettings(regularization=0.5, weights=(0.0, 1.0))
    content = bytes(write_detector(features, SHAPE, statistics, settings))
    network = read_model(NETWORK)
    builder = GraphBuilder()
    x = builder.empty((40, *SHAPE), name="x")
    (number,) = FeatureCopy(builder, network).write(x, ["down0"])
    builder.rename(number, "down0")
    run = Interpreter(bytes(builder.encode([x], [number]))).run
    values = run({"x": pictures.astype(np.float32) / 255})["down0"].astype(np.float64)
    floor = 0.5 * values.var(axis=0).mean() * np.eye(4)
    wanted = np.empty((3, 8, 8))
    for row, column in np.ndindex(8, 8):
        here = values[:, row, column]
        off = here[:3] - here.mean(axis=0)
        inverse = np.linalg.inv(np.cov(here, rowvar=False, bias=True) + floor)
        wanted[:, row, column] = np.sqrt(np.einsum("ni,ij,nj->n", off, inverse, off) / 4)
    found = AnomalyDetector(content).run(pictures[:3])
    grown = np.sqrt(grow((wanted**2).astype(np.float32), 16, 16))  # a heat map has the size of the finest map
    np.testing.assert_allclose(found.heat_maps, grown, rtol=1e-3, atol=1e-3)


def test_a_blur_keeps_an_even_map_even() -> None:
    features = ReconstructionFeatures(read_model(NETWORK))
    far = FeatureStatistics(9, (np.full(SHAPE, 1e4, np.float32),), (np.full(SHAPE, 1.0, np.float32),))
    content = bytes(write_detector(features, SHAPE, far, DetectorSettings(blur=2.0)))
    heat = AnomalyDetector(content).run(stripes(1)).heat_maps
    np.testing.assert_allclose(heat, np.full((1, 16, 16), heat.mean()), rtol=1e-3)


def test_an_autoencoder_tells_a_spot() -> None:
    split = split_normal(stripes(80), 0.25, 0)
    trainable = prepare_autoencoder(SHAPE, 8, AutoencoderSize(4, 3), 0)
    losses: list[float] = []
    data = normal_dataset(split.train, "stripes", real=False)
    weights = train_here(trainable, data, "adam:lr=0.005", 8, 0, lambda one: losses.append(one.loss))
    assert losses[-1] < losses[0] / 10
    features = autoencoder_features(trainable, weights)
    learned = LearnedFeatures("autoencoder", features, statistics_of(features, split.train), SHAPE)
    found = finish_detector(learned, split.held_out, ORIGIN, 0.9)
    again = finish_detector(learned, split.held_out, ORIGIN, 0.9)
    assert found.content == again.content
    assert found.separation > 0.9
    detector, note = AnomalyDetector(found.content), read_anomaly_note(read_model(found.content))
    assert note == found.note
    assert note is not None
    normal, changed = detector.run(split.held_out), detector.run(with_spot(split.held_out))
    assert note.threshold in normal.scores
    assert (normal.scores > note.threshold).sum() == 1  # the 19th of 20 in order is the threshold
    assert (changed.scores > note.threshold).all()
    assert changed.heat_maps[:, 2:6, 3:7].mean() > 2 * changed.heat_maps[:, 10:].mean()
    assert (note.method, note.quantile, note.held_out, note.data, note.real) == (
        "autoencoder",
        0.9,
        20,
        "stripes",
        False,
    )


def test_a_student_learns_its_teacher_on_normal_pictures() -> None:
    pictures = stripes(24, side=64)
    network = read_model(bytes(write_autoencoder((64, 64, 1), AutoencoderSize(4, 3))))
    features = NetworkFeatures(network, ("down1", "down2"), scaling=((1 / 255,), (0.0,)))
    teacher = normalize(features, statistics_of(features, pictures))
    student = prepare_student(teacher, (64, 64, 1), 8, 4, 0)
    losses: list[float] = []
    data = normal_dataset(pictures, "stripes", real=False)
    weights = train_here(student.trainable, data, "adam:lr=0.005", 6, 0, lambda one: losses.append(one.loss))
    assert losses[-1] < 0.7 * losses[0]
    found = student.features(weights)
    statistics = statistics_of(found, pictures)
    assert [mean.shape for mean in statistics.means] == [(16, 16, 8), (8, 8, 16)]
    share = sum(float((v + m**2).sum()) for v, m in zip(statistics.variances, statistics.means, strict=True)) / (
        16 * 16 * 8 + 8 * 8 * 16
    )
    assert share == pytest.approx(losses[-1], rel=0.3)  # the loss is the mean square of the differences


def test_the_note_is_checked() -> None:
    note = AnomalyNote("padim", 1.0, 0.99, 5, 0.5, 2.0, AspectRule.PAD, "x", real=True)
    assert read_anomaly_note(read_model(bytes(with_anomaly_note(memoryview(NETWORK), note)))) == note
    assert read_anomaly_note(read_model(NETWORK)) is None
    for content in (b"{}", b"\xff", note.encode().replace(b"1.0", b"1e999"), b" " * 70_000):
        damaged = read_model(bytes(append_files(memoryview(NETWORK), {NOTE_FILE: content})))
        with pytest.raises(ModelError, match=r"anomaly\.json cannot be read: .*train the detector anew"):
            read_anomaly_note(damaged)


def test_other_models_and_pictures_are_refused() -> None:
    with pytest.raises(ModelError, match=r"outputs reconstruction came; expected a detector of anomalies"):
        AnomalyDetector(NETWORK)
    features = ReconstructionFeatures(read_model(NETWORK))
    detector = AnomalyDetector(bytes(write_detector(features, SHAPE, STATISTICS)))
    for wrong in (stripes(1, side=8), stripes(1, channels=3), stripes(1)[:0], stripes(1).astype(np.float32)):
        with pytest.raises(DataError, match=r"pictures came as .*expected uint8 \[n, 16, 16, 1\]"):
            detector.run(wrong)


def test_defects_change_the_pixels_that_their_masks_say() -> None:
    pictures = stripes(6)
    found = add_defects(pictures, 3)
    changed = (found.pictures != pictures).any(axis=3)
    np.testing.assert_array_equal(changed, found.masks)
    assert (changed.sum(axis=(1, 2)) > 4).all()
    np.testing.assert_array_equal(add_defects(pictures, 3).pictures, found.pictures)
    assert (add_defects(pictures, 4).pictures != found.pictures).any()


def test_separation_counts_pairs() -> None:
    normal, defective = np.array([1.0, 2, 3], np.float32), np.array([2.0, 5], np.float32)
    assert separation(normal, defective) == (1.5 + 3) / 6


def test_too_few_normal_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"4 normal pictures came; expected at least 5"):
        split_normal(stripes(4), 0.2, 0)
    split = split_normal(stripes(5), 0.01, 0)
    assert (len(split.train), len(split.held_out)) == (4, 1)


@pytest.mark.parametrize("shape", [(30, 28, 1), (18, 18, 1), (36, 40, 3)])
def test_sides_that_cannot_be_halved_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"takes sides that are multiples of [48]"):
        write_autoencoder(shape)


def test_layers_are_those_on_the_way_down() -> None:
    network = read_model(bytes(write_autoencoder((64, 64, 3), AutoencoderSize(4, 3))))
    assert pick_layers(network, 2) == ("down1", "grow2")


def test_rearranged_pictures_have_values_of_normal_ones_in_another_order() -> None:
    pictures = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
    found = rearrange(pictures, 0)
    assert (found != pictures).any(axis=(1, 2, 3)).all()
    for number in (0, 1, 2, 4, 5):  # all but the one that takes a half of another picture
        assert sorted(found[number].ravel()) == sorted(pictures[number].ravel())
    same = (found[3] == pictures[3]).mean()
    assert same == 0.5
    wide = rearrange(pictures[:, :4], 0)
    assert wide.shape == (6, 4, 8, 1) and sorted(wide[0].ravel()) == sorted(pictures[0, :4].ravel())


def test_joint_features_count_all_and_score_as_the_head_behind_them() -> None:
    pictures = stripes(60)
    network = NetworkFeatures(read_model(NETWORK), ("down0", "down1"), scaling=((1 / 255,), (0.0,)))
    features = joint_features(network)
    sums = prepare_statistics(features, SHAPE, 8, full=True)
    data = normal_dataset(pictures[:40], "stripes", real=False)
    statistics = read_statistics(train_here(sums, data, OPTIMIZER, 1, 0), sums.spec)
    assert [mean.shape for mean in statistics.means] == [(8, 8, 4), (4, 4, 8), (1, 1, 256)]
    learned = LearnedFeatures("joint", features, statistics, SHAPE, weighted=True)
    made = finish_detector(learned, pictures[40:], ORIGIN)
    assert len(made.settings.weights) == 3 and sum(made.settings.weights) == pytest.approx(1)
    maps = FeatureReader(features, SHAPE).read(with_spot(pictures[:3]))
    scores, heat = maps.run(Interpreter(bytes(write_head(statistics, made.settings))))
    found = AnomalyDetector(made.content).run(with_spot(pictures[:3]))
    np.testing.assert_allclose(scores, found.scores, rtol=1e-5)
    np.testing.assert_allclose(heat, found.heat_maps, rtol=1e-4, atol=1e-5)
    assert (found.scores > made.note.threshold).all()


def test_the_picture_as_a_feature_has_at_most_1024_values() -> None:
    builder = GraphBuilder()
    (row,) = PictureFeatures().write(builder, builder.empty((1, 64, 48, 3)))
    assert builder.shape(row) == (1, 1, 1, 16 * 12 * 3)


def test_a_note_can_be_read_whatever_the_names_of_layers_are() -> None:
    layers = ("a" * 600 + ";b", "c" * 600 + ";" + "d" * 900)
    network = NetworkFeatures(read_model(NETWORK), layers)
    assert "b" not in network.origin.split(": ")[1] and len(network.origin) > 1200

    class Named:
        origin = network.origin

        def write(self, builder: GraphBuilder, x: int) -> list[int]:
            return ReconstructionFeatures(read_model(NETWORK)).write(builder, x)

    learned = LearnedFeatures("padim", Named(), STATISTICS, SHAPE)
    made = finish_detector(learned, stripes(8), DataOrigin("x" * 2000, real=False))
    note = read_anomaly_note(read_model(made.content))
    assert note is not None and note.data == "x" * 1000 and note.features == network.origin[:1000]
