"""Pictures to the size that a model takes. Pillow decodes them; nothing is decoded before its size is known."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError
from har_edge.extras import require
from har_edge.units import plural

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
# Sides of a picture that a model takes.
MAX_SIDE = 8192
# Pixels of a picture that is decoded: those of the largest cameras of phones; as RGB they take 300 MB with their copy.
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 64 * 1024 * 1024
# Formats that are only pixels; EPS, for one, would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# The EXIF tag of the orientation, and the first of its values for a picture that lies on its side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, 5


class AspectRule(str, Enum):
    """How a picture of another aspect ratio gets that of the model.

    STRETCH: height and width are scaled apart. CROP: the middle part of that ratio is cut out. PAD: black borders are
    added.
    """

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


class PictureFault(Enum):
    """Why a picture is refused; the value names its counter."""

    UNREADABLE = "unreadable_pictures"
    TRUNCATED = "truncated_pictures"
    HUGE = "huge_pictures"
    FRAME_SIZE = "wrong_frame_sizes"


class BadPicture(DataError):
    """A picture that is refused, of this kind."""

    def __init__(self, fault: PictureFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class PictureShape:
    """The size of pictures: uint8 [height, width, channels], 3 channels for RGB and 1 for grey."""

    height: int
    width: int
    channels: int

    @property
    def bytes(self) -> int:
        """Bytes of one picture, one a value."""
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        return f"{self.width} x {self.height} {'RGB' if self.channels == 3 else 'grey'}"


def decode_picture(content: bytes, name: str, shape: PictureShape, rule: AspectRule) -> Pixels:
    """Return the picture in a file, uint8 [height, width, channels]; of several in it, the first.

    A picture is turned upright where its EXIF data say so. It is resized as `fit_picture` does.

    Args:
        content: a file of one of FORMATS.
        name: of the picture, for errors.

    Raises BadPicture for anything else, for what is damaged or incomplete, and, before it is decoded, for more than
    MAX_PIXELS.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of is refused below, or harmless
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check_size(name, *picture.size)
                return _fit(_upright(picture), shape, rule)
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(PictureFault.HUGE, f"{name} is refused: {error}; expected {MAX_PIXELS} at most") from None
    except Exception as error:  # decoders of many formats raise errors of many kinds for damaged files
        raise _explain(error, content, name) from None


def picture_size(content: bytes, name: str) -> tuple[int, int]:
    """Return width and height of the picture in a file by its header, turned upright; raises as `decode_picture`."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                width, height = picture.size
                return (height, width) if picture.getexif().get(_ORIENTATION, 1) >= _ON_ITS_SIDE else (width, height)
    except Exception as error:
        raise _explain(error, content, name) from None


def decode_frame(content: bytes, name: str, size: PictureShape, shape: PictureShape, rule: AspectRule) -> Pixels:
    """Return a raw frame of this size, its bytes row by row, as a picture of this shape; BadPicture for other bytes."""
    if len(content) != size.bytes:
        raise BadPicture(
            PictureFault.FRAME_SIZE,
            f"{name} is refused: it has {plural(len(content), 'byte')}; expected {size.bytes} for {size}",
        )
    return fit_picture(np.frombuffer(content, np.uint8).reshape(size.height, size.width, size.channels), shape, rule)


def fit_picture(pixels: Pixels, shape: PictureShape, rule: AspectRule) -> Pixels:
    """Return a picture in another size: uint8 [height, width, 1 or 3] (or [height, width], grey) to that of `shape`.

    A picture of this shape passes as it is. Another one is resampled bilinearly over the area that a pixel covers
    (Pillow's BILINEAR), and RGB becomes grey by the luma of ITU-R BT.601. Raises DataError for another array, and
    ConfigError where Pillow is missing.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise DataError(
            f"a picture came as {pixels.dtype} {list(pixels.shape)}; expected uint8 [height, width], or [height, "
            "width, channels] with 1 channel (grey) or 3 (RGB)"
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if pixels.shape == (shape.height, shape.width, shape.channels):
        return pixels
    if not pixels.size:
        raise DataError(f"a picture came without pixels, {list(pixels.shape)}; expected some")
    _check_size("an array", pixels.shape[1], pixels.shape[0])
    require("resizing pictures", "PIL")
    from PIL import Image

    return _fit(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]), shape, rule)


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(
            PictureFault.HUGE,
            f"{name} is refused: its header says {width} x {height} pixels; expected {MAX_PIXELS} at most",
        )


def _upright(picture: Image) -> Image:
    """Return a picture decoded, with 8 bits a value, turned as its EXIF data say."""
    from PIL import ImageOps

    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        raise ValueError(f"its values have 32 bits ({picture.mode})")
    if picture.mode.startswith("I"):  # 16 bits: convert() would clip them
        from PIL import Image

        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.load()
    return ImageOps.exif_transpose(picture) or picture


def _fit(picture: Image, shape: PictureShape, rule: AspectRule) -> Pixels:
    from PIL import Image, ImageOps

    picture = picture.convert("RGB" if shape.channels == 3 else "L")
    size, method = (shape.width, shape.height), Image.Resampling.BILINEAR
    if picture.size != size:
        if rule is AspectRule.CROP:
            picture = ImageOps.fit(picture, size, method)
        elif rule is AspectRule.PAD:
            picture = ImageOps.pad(picture, size, method)
        else:
            picture = picture.resize(size, method)
    return np.asarray(picture).reshape(shape.height, shape.width, shape.channels)


def _explain(error: Exception, content: bytes, name: str) -> BadPicture:
    """Return why a picture could not be decoded: it ends too early, or it is none."""
    said = str(error)
    if not content:
        return BadPicture(PictureFault.TRUNCATED, f"{name} is refused: it is empty; expected a picture")
    if isinstance(error, EOFError) or "truncated" in said.lower() or "not enough" in said.lower():
        return BadPicture(
            PictureFault.TRUNCATED, f"{name} is refused: it ends too early ({said}); expected a whole picture"
        )
    if type(error).__name__ == "UnidentifiedImageError":
        said = f"{plural(len(content), 'byte')} that begin with {content[:4]!r}"
    return BadPicture(
        PictureFault.UNREADABLE, f"{name} is no picture: {said}; expected one of {', '.join(FORMATS)}, 8 bits a value"
    )
