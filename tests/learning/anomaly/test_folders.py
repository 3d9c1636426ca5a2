"""Folders of pictures to learn anomalies from: MVTec AD's layout, plain ones, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from har_edge.data.pictures import AspectRule, PictureShape
from har_edge.errors import DataError
from har_edge.learning.anomaly.folders import read_anomaly_folder
from har_edge.protocol.text import name_pictures
from tests.data.pillow_made import file_of, pixels, png_of_size

SHAPE = PictureShape(8, 6, 3)


def put(path: Path, values: np.ndarray | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(values if isinstance(values, bytes) else file_of(values))


def mask(height: int = 8, width: int = 6, value: int = 255) -> np.ndarray:
    """Return a mask with the upper left quarter marked."""
    made = np.zeros((height, width, 1), np.uint8)
    made[: height // 2, : width // 2] = value
    return made


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """A set in the layout of MVTec AD: four normal pictures, two normal and two anomalous ones to test with."""
    folder = tmp_path / "bottle"
    for number in range(4):
        put(folder / "train" / "good" / f"{number:03}.png", pixels(8, 6, seed=number))
    for number in range(2):
        put(folder / "test" / "good" / f"{number:03}.png", pixels(8, 6, seed=10 + number))
        put(folder / "test" / "crack" / f"{number:03}.png", pixels(8, 6, seed=20 + number))
        put(folder / "ground_truth" / "crack" / f"{number:03}_mask.png", mask())
    return folder


def test_the_layout_of_mvtec_ad(mvtec: Path) -> None:
    found = read_anomaly_folder(mvtec, SHAPE)
    assert np.array_equal(found.train, np.stack([pixels(8, 6, seed=number) for number in range(4)]))
    assert np.array_equal(found.test, np.stack([pixels(8, 6, seed=seed) for seed in (20, 21, 10, 11)]))
    assert found.kinds == ("crack", "crack", "good", "good") and found.anomalous.tolist() == [True, True, False, False]
    assert found.names == ("crack/000.png", "crack/001.png", "good/000.png", "good/001.png")
    assert (found.name, found.real, found.refused) == (name_pictures("bottle"), False, ())
    assert found.origin.startswith("pictures of bottle (nothing is known of their origin): ")
    expected = mask()[:, :, 0] > 0
    assert found.masks is not None and [one.tolist() for one in found.masks[:2]] == [expected.tolist()] * 2
    assert not found.masks[2:].any()


def test_plain_folders_and_pictures_alone(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / "plain" / "normal" / f"{number}.png", pixels(8, 6, seed=number))
    put(tmp_path / "plain" / "scratch" / "a.png", pixels(8, 6, seed=30))
    found = read_anomaly_folder(tmp_path / "plain", SHAPE)
    assert (len(found.train), found.kinds, found.masks) == (8, ("good", "good", "scratch"), None)
    assert found.names == ("good/4.png", "good/9.png", "scratch/a.png")
    alone = read_anomaly_folder(tmp_path / "plain" / "normal", SHAPE)
    assert (len(alone.train), len(alone.test), alone.anomalous.tolist()) == (10, 0, [])


def test_pictures_of_other_sizes_and_modes_are_brought_to_size_with_their_masks(mvtec: Path) -> None:
    put(mvtec / "train" / "good" / "big.png", pixels(40, 60, 1, seed=7))
    put(mvtec / "test" / "crack" / "000.png", pixels(40, 60, seed=8))
    put(mvtec / "ground_truth" / "crack" / "000_mask.png", mask(40, 60, value=1))
    found = read_anomaly_folder(mvtec, PictureShape(8, 12, 1))
    assert found.train.shape == (5, 8, 12, 1) and found.test.shape == (4, 8, 12, 1) and not found.refused
    assert found.masks is not None and found.masks[0][:4, :6].all() and found.masks[0].mean() < 0.35
    padded = read_anomaly_folder(mvtec, SHAPE, AspectRule.PAD)
    assert padded.masks is not None and not padded.masks[0][:2].any()


def test_bad_pictures_are_passed_over_with_their_names(mvtec: Path) -> None:
    whole = file_of(pixels(64, 64))
    put(mvtec / "train" / "good" / "half.png", whole[: len(whole) // 2])
    put(mvtec / "train" / "good" / "none.png", b"hello")
    put(mvtec / "test" / "good" / "bomb.png", png_of_size(60_000, 60_000))
    put(mvtec / "test" / "crack" / "unmarked.png", pixels(8, 6))
    put(mvtec / "ground_truth" / "crack" / "001_mask.png", mask(9, 6))
    put(mvtec / "ground_truth" / "crack" / "alone_mask.png", mask())
    put(mvtec / "train" / "crack" / "a.png", pixels(8, 6))
    found = read_anomaly_folder(mvtec, SHAPE)
    assert len(found.train) == 4 and found.kinds == ("crack", "good", "good")
    said = "\n".join(found.refused)
    assert len(found.refused) == 7, said
    for text in (
        "half.png is refused: it ends too early",
        "none.png is no picture: 5 bytes that begin with b'hell'",
        "bomb.png is refused: ",
        "unmarked.png is passed over: it has no mask",
        "001.png is passed over: it has 6 x 8 pixels, and its mask 001_mask.png 6 x 9; expected the same",
        "alone_mask.png is left out: no picture has its name",
        "train/crack is left out: only normal pictures are learnt from",
    ):
        assert text in said


def test_a_kind_without_any_mask_leaves_pixels_unscored(mvtec: Path) -> None:
    put(mvtec / "test" / "stain" / "a.png", pixels(8, 6))
    found = read_anomaly_folder(mvtec, SHAPE)
    assert found.masks is None and found.refused == ("no masks of stain: pixels are not scored",)
    assert found.kinds == ("crack", "crack", "good", "good", "stain")


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, "holds nothing, and no normal pictures; expected train/good, a folder good or normal, or pictures"),
        ({"train/crack/a.png": b"x"}, "holds no pictures, but pictures of crack; expected normal ones in"),
        (
            {"cap/train/good/a.png": b"x"},
            r"holds cap, and no normal pictures; expected one of these sets, such as .*cap",
        ),
        (
            {"good/a.png": b"x", "bad/b.png": b"y"},
            r"no normal picture that can be read \(1 file came; the first: .*a.png",
        ),
        ({"crack/a.png": b"x"}, "holds crack, and no normal pictures"),
    ],
)
def test_without_normal_pictures_nothing_is_learnt(files: dict[str, bytes], text: str, tmp_path: Path) -> None:
    for name, content in files.items():
        put(tmp_path / "set" / name, content)
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=text):
        read_anomaly_folder(tmp_path / "set", SHAPE)
    with pytest.raises(DataError, match="no such folder"):
        read_anomaly_folder(tmp_path / "nowhere", SHAPE)


def test_more_pictures_than_memory_holds_are_refused_before_one_is_read(mvtec: Path) -> None:
    with pytest.raises(DataError, match=r"8 samples of shape .* take .*, expected at most"):
        read_anomaly_folder(mvtec, PictureShape(8192, 8192, 3))
