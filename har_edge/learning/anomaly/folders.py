"""Folders of pictures to learn anomalies from: in the layout of MVTec AD, or plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from har_edge.data.pictures import (
    MAX_FILE_BYTES,
    AspectRule,
    BadPicture,
    PictureShape,
    Pixels,
    decode_picture,
    picture_size,
)
from har_edge.errors import DataError
from har_edge.extras import require
from har_edge.files import read_regular
from har_edge.learning.anomaly.pictures import NORMAL, AnomalyPictures, Flags
from har_edge.learning.data.dataset_files import list_folders, list_pictures
from har_edge.learning.data.datasets import check_size
from har_edge.protocol.text import name_pictures
from har_edge.units import plural

# Folders of normal pictures; the first is that of MVTec AD (Bergmann et al. 2019).
NORMAL_FOLDERS = (NORMAL, "normal", "ok")
# Every so many-th normal picture of plain folders is for the test.
_TESTED = 5
# Values of a mask from here on mark a pixel that is not normal.
_MARKED = 128
_SUFFIXES = ("_mask", "")


@dataclass(frozen=True, slots=True)
class _TestFile:
    """A picture to test with: its kind, and its mask where there is one."""

    path: Path
    kind: str
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Normal pictures, pictures to test with, and what is to be told about them."""

    normal: Sequence[Path]
    test: Sequence[_TestFile]
    masked: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reader:
    """Reads pictures of one shape, and passes over bad ones with the reason."""

    shape: PictureShape
    rule: AspectRule
    refused: list[str] = field(default_factory=list)

    def picture(self, path: Path) -> Pixels | None:
        """Return a picture, uint8 [height, width, channels]; None for a bad one."""
        content = self._content(path)
        return None if content is None else self._decoded(path, content, self.shape)

    def marked(self, path: Path, mask: Path) -> tuple[Pixels, Flags] | None:
        """Return a picture and its mask, bool [height, width]; None where one of them is bad, or they do not fit."""
        content, marks = self._content(path), self._content(mask)
        if content is None or marks is None:
            return None
        grey = PictureShape(self.shape.height, self.shape.width, 1)
        pixels, values = self._decoded(path, content, self.shape), self._decoded(mask, marks, grey)
        if pixels is None or values is None:
            return None
        size, other = picture_size(content, str(path)), picture_size(marks, str(mask))
        if size != other:
            self.refused.append(
                f"{path} is passed over: it has {size[0]} x {size[1]} pixels, and its mask {mask.name} "
                f"{other[0]} x {other[1]}; expected the same"
            )
            return None
        found = values[:, :, 0] >= _MARKED
        # Marks of 1 instead of 255, or smaller than half a pixel of the model, count all the same.
        return pixels, found if found.any() else values[:, :, 0] > 0

    def _content(self, path: Path) -> bytes | None:
        try:
            return read_regular(path, MAX_FILE_BYTES)
        except OSError as error:
            self.refused.append(f"{path} is refused: it cannot be read: {error.strerror}")
            return None

    def _decoded(self, path: Path, content: bytes, shape: PictureShape) -> Pixels | None:
        try:
            return decode_picture(content, str(path), shape, self.rule)
        except BadPicture as error:
            self.refused.append(str(error))
            return None


def read_anomaly_folder(path: Path, shape: PictureShape, rule: AspectRule = AspectRule.STRETCH) -> AnomalyPictures:
    """Read pictures to learn anomalies from, brought to a shape as a sensor does.

    The folder has the layout of MVTec AD (train/good, test/KIND, ground_truth/KIND/NAME_mask.png), or a folder "good",
    "normal" or "ok" and others beside it, or normal pictures alone. Every fifth normal picture of plain folders is for
    the test. Bad pictures are passed over; `refused` says which and why. There are no masks where a kind has none.

    Raises DataError for no normal picture, and for more pictures than memory should hold.
    """
    require("reading pictures", "PIL")
    found, reader = _find_layout(path), _Reader(shape, rule)
    size = (shape.height, shape.width, shape.channels)
    check_size(len(found.normal) + len(found.test), size, 1, str(path))
    train = _stack((reader.picture(one) for one in found.normal), len(found.normal), size)
    if not len(train):
        reason = f"; the first: {reader.refused[0]}" if reader.refused else ""
        raise DataError(
            f"{path} has no normal picture that can be read ({plural(len(found.normal), 'file')} came{reason}); "
            "anomalies are learnt from normal pictures: bring some"
        )
    kept, pixels, masks = list[_TestFile](), list[Pixels](), list[Flags]()
    empty = np.zeros((shape.height, shape.width), np.bool_)
    for one in found.test:
        both = reader.marked(one.path, one.mask) if found.masked and one.mask is not None else None
        picture = both[0] if both is not None else reader.picture(one.path) if one.mask is None else None
        if picture is not None:
            kept.append(one)
            pixels.append(picture)
            masks.append(both[1] if both is not None else empty)
    return AnomalyPictures(
        train=train,
        test=_stack(iter(pixels), len(pixels), size),
        anomalous=np.array([one.kind != NORMAL for one in kept], np.bool_),
        kinds=tuple(one.kind for one in kept),
        names=tuple(f"{one.kind}/{one.path.name}" for one in kept),
        masks=np.stack(masks) if found.masked and masks else None,
        name=name_pictures(path.resolve().name or "pictures"),
        real=False,  # nobody says so
        refused=(*found.remarks, *reader.refused),
    )


def _stack(pictures: Iterable[Pixels | None], most: int, size: tuple[int, int, int]) -> Pixels:
    """Return the pictures that are some in one array."""
    made, count = np.empty((most, *size), np.uint8), 0
    for one in pictures:
        if one is not None:
            made[count] = one
            count += 1
    return made[:count]


def _find_layout(path: Path) -> _Layout:
    """Return which pictures of a folder are normal, and which are for the test; DataError where none is normal."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected pictures to learn anomalies from (docs/how-to/anomalies.md)")
    train = path / "train"
    if train.is_dir():
        return _find_parts(path, _normal_folder(train) or train)
    normal = _normal_folder(path)
    if normal is not None:
        files = list_pictures(normal)
        tested = [_TestFile(file, NORMAL) for file in files[_TESTED - 1 :: _TESTED]]
        others = [folder for folder in list_folders(path) if folder != normal]
        bad = [_TestFile(file, folder.name) for folder in others for file in list_pictures(folder)]
        held = {one.path for one in tested} if bad else set[Path]()
        return _Layout([file for file in files if file not in held], [*tested, *bad] if bad else [])
    pictures = list_pictures(path)
    if pictures:
        return _Layout(pictures, [])
    sets = [folder.name for folder in list_folders(path) if (folder / "train").is_dir()]
    there = ", ".join(sets or [folder.name for folder in list_folders(path)][:10]) or "nothing"
    raise DataError(
        f"{path} holds {there}, and no normal pictures; expected "
        + (
            f"one of these sets, such as {path / sets[0]}"
            if sets
            else "train/good, a folder good or normal, or pictures"
        )
    )


def _normal_folder(path: Path) -> Path | None:
    named = {folder.name.lower(): folder for folder in list_folders(path)}
    return next((named[name] for name in NORMAL_FOLDERS if name in named), None)


def _find_parts(path: Path, normal: Path) -> _Layout:
    """Return the pictures in the layout of MVTec AD."""
    others = [one.name for one in list_folders(path / "train") if one != normal and list_pictures(one)]
    if not list_pictures(normal):
        there = f", but pictures of {', '.join(others[:10])}" if others else ""
        raise DataError(
            f"{normal} holds no pictures{there}; expected normal ones in {path / 'train' / NORMAL}: these alone are "
            "learnt from"
        )
    remarks = [f"{path / 'train' / name} is left out: only normal pictures are learnt from" for name in others]
    marks = path / "ground_truth"
    test = list[_TestFile]()
    unmarked = list[str]()
    for folder in list_folders(path / "test"):
        kind = NORMAL if folder.name.lower() in NORMAL_FOLDERS else folder.name
        files = list_pictures(folder)
        masks = {file.stem: file for file in list_pictures(marks / folder.name)}
        if kind == NORMAL:
            test += [_TestFile(file, kind) for file in files]
            continue
        found = {file: _mask_of(file, masks) for file in files}
        remarks += _unused(masks, found)
        if not any(found.values()):
            unmarked.append(kind)
            test += [_TestFile(file, kind) for file in files]
            continue
        remarks += [f"{file} is passed over: it has no mask" for file, mask in found.items() if mask is None]
        test += [_TestFile(file, kind, mask) for file, mask in found.items() if mask is not None]
    masked = marks.is_dir() and not unmarked and any(one.mask is not None for one in test)
    if marks.is_dir() and unmarked:
        remarks.append(f"no masks of {', '.join(unmarked)}: pixels are not scored")
        test = [_TestFile(one.path, one.kind) for one in test]
    return _Layout(list_pictures(normal), test, masked, tuple(remarks))


def _mask_of(file: Path, masks: dict[str, Path]) -> Path | None:
    return next((masks[file.stem + suffix] for suffix in _SUFFIXES if file.stem + suffix in masks), None)


def _unused(masks: dict[str, Path], found: dict[Path, Path | None]) -> list[str]:
    used = set(found.values())
    return [f"{mask} is left out: no picture has its name" for mask in masks.values() if mask not in used]
