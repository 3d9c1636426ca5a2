"""Pictures of every format and mode to the size of a model; anything else is refused with its name and its kind."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from har_edge.data.pictures import (
    MAX_PIXELS,
    AspectRule,
    BadPicture,
    PictureFault,
    PictureShape,
    decode_frame,
    decode_picture,
    fit_picture,
)
from har_edge.errors import ConfigError, DataError
from tests.data.pillow_made import ALL, LOSSLESS, file_of, pixels, png_of_size

RGB, GREY = PictureShape(8, 6, 3), PictureShape(8, 6, 1)


def decode(content: bytes, shape: PictureShape = RGB, rule: AspectRule = AspectRule.STRETCH) -> np.ndarray:
    return decode_picture(content, "cat", shape, rule)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_right_size_keeps_its_bytes(kind: str, channels: int) -> None:
    values = pixels(8, 6, channels)
    made = decode(file_of(values, kind), PictureShape(8, 6, channels))
    assert made.dtype == np.uint8 and np.array_equal(made, values)


@pytest.mark.parametrize("kind", ALL)
def test_every_format_gives_what_pillow_decodes(kind: str) -> None:
    content = file_of(pixels(8, 6), kind)
    assert np.array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_a_picture_of_another_size_is_resampled_as_pillow_does() -> None:
    values = pixels(50, 40)
    wanted = np.asarray(Image.fromarray(values).resize((6, 8), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(file_of(values)), wanted)
    assert np.array_equal(fit_picture(values, RGB, AspectRule.STRETCH), wanted)


def test_the_rules_stretch_crop_and_pad() -> None:
    """Of a wide picture, left red and right blue, with a green middle."""
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :15, 0], wide[:, 15:25, 1], wide[:, 25:, 2] = 255, 255, 255
    square = PictureShape(10, 10, 3)
    stretched = fit_picture(wide, square, AspectRule.STRETCH)
    assert stretched[5, 0].tolist() == [255, 0, 0] and stretched[5, 9].tolist() == [0, 0, 255]
    assert (fit_picture(wide, square, AspectRule.CROP) == [0, 255, 0]).all()
    padded = fit_picture(wide, square, AspectRule.PAD)
    assert (padded[:3] == 0).all() and (padded[-3:] == 0).all() and padded[5, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_or_grey(mode: str) -> None:
    picture, made = Image.fromarray(pixels(8, 6)).convert(mode), io.BytesIO()
    picture.save(made, "TIFF")
    assert np.array_equal(decode(made.getvalue()), np.asarray(picture.convert("RGB")))
    assert np.array_equal(decode(made.getvalue(), GREY)[:, :, 0], np.asarray(picture.convert("L")))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values, made = np.arange(48, dtype=np.uint16).reshape(8, 6) * 1300, io.BytesIO()
    Image.fromarray(values).save(made, "PNG")
    assert np.array_equal(decode(made.getvalue(), GREY)[:, :, 0], values >> 8)


def test_a_photo_is_turned_upright_by_its_exif_data() -> None:
    values, exif = pixels(6, 8), Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    made = decode(file_of(values, "PNG", exif=exif))
    assert np.array_equal(made, np.rot90(values, -1))


@pytest.mark.parametrize("kind", ALL)
def test_a_file_that_ends_too_early_is_refused_with_its_name(kind: str) -> None:
    content = file_of(pixels(64, 64), kind)
    with pytest.raises(BadPicture, match=r"^cat is ") as caught:
        decode(content[: len(content) // 2])
    assert caught.value.fault in (PictureFault.TRUNCATED, PictureFault.UNREADABLE)
    if kind in ("BMP", "JPEG", "PNG", "PPM"):  # the others do not say so
        assert caught.value.fault is PictureFault.TRUNCATED and "expected a whole picture" in str(caught.value)


@pytest.mark.parametrize("content", [b"no picture", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadPicture, match=r"^cat is no picture: \d+ bytes that begin with b.*expected one of BMP") as it:
        decode(content)
    assert it.value.fault is PictureFault.UNREADABLE


def test_an_empty_file_and_floats_are_refused() -> None:
    with pytest.raises(BadPicture, match="it is empty"):
        decode(b"")
    made = io.BytesIO()
    Image.fromarray(np.ones((8, 6), np.float32)).save(made, "TIFF")
    with pytest.raises(BadPicture, match=r"its values have 32 bits \(F\)"):
        decode(made.getvalue())


@pytest.mark.parametrize("size", [(8192, 8192), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_huge_picture_is_refused_by_its_header(size: tuple[int, int]) -> None:
    """Beyond our limit, beyond that of Pillow's warning, and beyond that of its error."""
    with pytest.raises(BadPicture, match=f"^cat is refused: .*expected {MAX_PIXELS} at most") as caught:
        decode(png_of_size(*size))
    assert caught.value.fault is PictureFault.HUGE


@given(st.data())
def test_whatever_is_damaged_is_a_picture_or_refused(data: st.DataObject) -> None:
    content = bytearray(file_of(pixels(9, 7), data.draw(st.sampled_from(ALL))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content[: data.draw(st.integers(0, len(content)))])).shape == (8, 6, 3)
    except BadPicture as error:
        assert str(error).startswith("cat is ")


def test_a_raw_frame_has_its_size() -> None:
    values, size = pixels(4, 5), PictureShape(4, 5, 3)
    assert np.array_equal(decode_frame(values.tobytes(), "frame 0", size, size, AspectRule.STRETCH), values)
    with pytest.raises(BadPicture, match=r"^frame 0 is refused: it has 59 bytes; expected 60 for 5 x 4 RGB") as caught:
        decode_frame(values.tobytes()[:59], "frame 0", size, RGB, AspectRule.STRETCH)
    assert caught.value.fault is PictureFault.FRAME_SIZE


@pytest.mark.parametrize(
    "values", [np.zeros((8, 6, 3), np.float32), np.zeros((8, 6, 2), np.uint8), np.zeros(8, np.uint8)]
)
def test_another_array_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \[height, width\], or"):
        fit_picture(values, RGB, AspectRule.STRETCH)


def test_only_resizing_an_array_needs_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    grey = pixels(8, 6, 1)
    assert np.array_equal(fit_picture(grey[:, :, 0], GREY, AspectRule.CROP), grey)
    with pytest.raises(ConfigError, match=r"resizing pictures needs Pillow.*har-edge\[images\]"):
        fit_picture(pixels(9, 9), RGB, AspectRule.STRETCH)
