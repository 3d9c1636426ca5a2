"""Data sets in files: idx (MNIST's format), folders of pictures, .npz without pickle, recordings."""

from __future__ import annotations

import ast
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.data.idx import read_idx
from har_edge.data.pictures import MAX_FILE_BYTES as MAX_PICTURE_BYTES
from har_edge.data.pictures import AspectRule, PictureShape, decode_picture
from har_edge.errors import DataError
from har_edge.extras import require
from har_edge.files import read_member, read_regular
from har_edge.learning.data.datasets import (
    MAX_DATASET_BYTES,
    TEST_SHARE,
    Array,
    Dataset,
    check_labels,
    check_size,
    split_samples,
)
from har_edge.learning.data.recorded_windows import WindowFormat, read_windows
from har_edge.protocol.text import name_pictures

_IDX = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-images[-.]idx[34]-ubyte(\.gz)?")
_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_MAX_HEADER = 10_000  # of a .npy file, as NumPy itself bounds it
_DAMAGED = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
)
_TRAIN, _TEST = "train", ("test", "t10k", "val", "validation")


class DataFormat(Enum):
    """The formats that `read_data` knows; the value is what a message calls it."""

    IDX = "idx files"
    PICTURES = "a folder of pictures, one folder a class"
    NPZ = "an .npz file"
    RECORDINGS = "recordings"


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files become samples.

    `shape` is the size of pictures that the model takes. `windows` says how recordings are cut; without, a description
    (.toml) beside them does, or else they are mHealth's, with `length` rows a window if given. `classes` names the
    classes where files give numbers alone. `seed` draws the test samples where the files name none.
    """

    shape: PictureShape | None = None
    windows: WindowFormat | None = None
    classes: tuple[str, ...] = ()
    seed: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Samples to train on and to test with; `how` says in words how the test samples were chosen."""

    train: Dataset
    test: Dataset
    how: str


def read_data(path: Path, options: ReadOptions | None = None) -> LabelledData:
    """Read a data set with its test samples: those that the files name, else some that are held back.

    Raises DataError for files that are damaged or of no known format, with the place and the formats expected.
    """
    options = options or ReadOptions()
    train, test = read_parts(path, options)
    if test is None:
        return hold_back(train, options.seed)
    return LabelledData(train, test, "those that the files name")


def read_test_data(path: Path, options: ReadOptions | None = None) -> LabelledData:
    """Read samples to test with, where others train: those that the files name, else all of them.

    `train` says their classes and their origin. Raises DataError as `read_data` does.
    """
    train, test = read_parts(path, options or ReadOptions())
    if test is None:
        return all_for_test(train)
    return LabelledData(train, test, "those that the files name; nodes train on their own")


def hold_back(data: Dataset, seed: int) -> LabelledData:
    """Split samples of which none are named for a test."""
    train, test = split_samples(data, seed)
    return LabelledData(train, test, _held_back(train, test))


def all_for_test(data: Dataset) -> LabelledData:
    """Take all samples to test with: nodes train on their own."""
    return LabelledData(data, data, "all of them; nodes train on their own")


def _held_back(train: Dataset, test: Dataset) -> str:
    """Return in words which samples were held back to test with."""
    if train.groups is not None and test.groups is not None:
        names = sorted(set(test.groups.tolist()))
        if not set(train.groups.tolist()) & set(names):
            return f"all of {', '.join(names)}, held back"
    return f"{'the last ' if test.overlap else ''}{TEST_SHARE:.0%} of each class, held back"


def read_parts(path: Path, options: ReadOptions) -> tuple[Dataset, Dataset | None]:
    """Return the samples to train on, and those to test with where the files name some."""
    kind = find_format(path)
    if kind is DataFormat.IDX:
        return _read_idx_set(path, options)
    if kind is DataFormat.NPZ:
        return _read_npz(path, options)
    if kind is DataFormat.PICTURES:
        return _read_pictures(path, options)
    return read_windows(
        path, options.windows or WindowFormat.of_description(description_of(path), options.length)
    ), None


def description_of(path: Path) -> str | Path:
    """Return the description of recordings: the one in their folder, else mHealth's by its name."""
    folder = path if path.is_dir() else path.parent
    described = sorted(folder.glob("*.toml"))
    if len(described) > 1:
        names = ", ".join(file.name for file in described)
        raise DataError(f"{folder} holds several descriptions ({names}); keep the one of its recordings there")
    return described[0] if described else "mhealth"


def find_format(path: Path) -> DataFormat:
    """Return the format of a file or folder; recordings where it is none of the others. DataError for no such path."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected {_known()}")
    if path.is_file():
        if _IDX.fullmatch(path.name):
            return DataFormat.IDX
        return DataFormat.NPZ if path.suffix.lower() == ".npz" else DataFormat.RECORDINGS
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder; expected {_known()}")
    if any(_IDX.fullmatch(file.name) for file in path.iterdir()):
        return DataFormat.IDX
    folders = list_folders(path)
    found = any(_has_pictures(one) or any(map(_has_pictures, list_folders(one))) for one in folders)
    return DataFormat.PICTURES if found else DataFormat.RECORDINGS


def _known() -> str:
    return ", ".join(kind.value for kind in DataFormat)


def _read_idx_set(path: Path, options: ReadOptions) -> tuple[Dataset, Dataset | None]:
    folder, files = (path, path.iterdir()) if path.is_dir() else (path.parent, iter([path]))
    found: dict[bool, tuple[Path, str]] = {}
    for file in sorted(files):
        if match := _IDX.fullmatch(file.name):
            tested = match["part"] != _TRAIN and path.is_dir()
            if tested in found and found[tested][0].name.removesuffix(".gz") != file.name.removesuffix(".gz"):
                raise DataError(f"{folder} holds {found[tested][0].name} and {file.name}; name one of them")
            found.setdefault(tested, (file, match["set"]))
    if False not in found:
        raise DataError(f"{folder} holds {found[True][0].name} and no train-images-idx3-ubyte; get it, too")
    name = found[False][1].rstrip("-_") or folder.name or "idx"
    pairs = {tested: _read_idx_pair(images) for tested, (images, _) in found.items()}
    most = max((int(labels.max(initial=0)) for _, labels in pairs.values()), default=0)
    classes = options.classes or tuple(str(number) for number in range(most + 1))
    made = {
        tested: Dataset(x, y, classes, name, real=True, scale=1 / 255 if x.dtype == np.uint8 else 1.0)
        for tested, (x, y) in pairs.items()
    }
    return made[False], made.get(True)


def _read_idx_pair(images: Path) -> tuple[Array, npt.NDArray[np.int64]]:
    stem = re.sub(r"images([-.])idx[34]", r"labels\1idx1", images.name.removesuffix(".gz"))
    labels = next((p for p in (images.with_name(stem + ".gz"), images.with_name(stem)) if p.is_file()), None)
    if labels is None:
        raise DataError(f"{images.parent} holds {images.name} and no {stem}; expected the labels beside the samples")
    x, y = read_idx(images, MAX_DATASET_BYTES), read_idx(labels, MAX_DATASET_BYTES)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{images} holds {list(x.shape)} values and {labels.name} {list(y.shape)}; expected a label a sample"
        )
    return x if x.dtype == np.uint8 else x.astype(np.float32), _integers(y, str(labels))


def _read_npz(path: Path, options: ReadOptions) -> tuple[Dataset, Dataset | None]:
    """Read `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test` (Keras's names); `classes`, `groups`, `real`."""
    arrays = _load_npz(path)
    prefix = "_train" if "x_train" in arrays else ""
    missing = [key for key in (f"x{prefix}", f"y{prefix}") if key not in arrays]
    if missing:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; expected the arrays x and y, and maybe classes"
        )
    y = _integers(arrays[f"y{prefix}"], f"{path}, y{prefix}")
    tested = {"x_test", "y_test"} <= arrays.keys()
    y_test = _integers(arrays["y_test"], f"{path}, y_test") if tested else None
    most = max(int(y.max(initial=0)), 0 if y_test is None else int(y_test.max(initial=0)))
    named = tuple(str(name) for name in arrays["classes"].reshape(-1)) if "classes" in arrays else ()
    classes = named or options.classes or tuple(str(number) for number in range(most + 1))
    real = bool(arrays["real"].all()) if "real" in arrays else True

    def make(x: Array, labels: npt.NDArray[np.int64], name: str) -> Dataset:
        if x.dtype.kind not in "iufb":
            raise DataError(f"{name}: values came as {x.dtype}; expected numbers")
        held = x if x.dtype == np.uint8 else x.astype(np.float32)
        return Dataset(held, labels, classes, name, real, scale=1 / 255 if held.dtype == np.uint8 else 1.0)

    groups = arrays.get("groups")
    train = make(arrays[f"x{prefix}"], y, path.stem)
    if groups is not None and groups.shape == y.shape:
        train = Dataset(train.x, y, classes, path.stem, real, train.scale, groups=groups.astype(np.str_))
    return train, None if y_test is None else make(arrays["x_test"], y_test, f"{path.stem} (test)")


def _load_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file, each checked against the size of its member before it is allocated."""
    found: dict[str, Array] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                total += info.file_size
                if total > MAX_DATASET_BYTES:
                    raise DataError(f"{path} unpacks to more than {MAX_DATASET_BYTES} bytes; split it")
                content = read_member(archive, info, MAX_DATASET_BYTES)
                found[info.filename.removesuffix(".npy")] = _parse_npy(content, f"{path}:{info.filename}")
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read: {error}; write it with numpy.savez_compressed") from error
    return found


def _parse_npy(content: bytes, name: str) -> Array:
    """Return the array in a .npy file (NumPy's format, versions 1 to 3); objects are refused."""
    wide = content[6:7] != b"\x01"
    start = 12 if wide else 10
    size = int.from_bytes(content[8:start], "little")
    try:
        if content[:6] != b"\x93NUMPY" or size > min(_MAX_HEADER, len(content) - start):
            raise ValueError("its header is damaged")
        header = ast.literal_eval(content[start : start + size].decode("utf-8"))
        dtype, shape = np.dtype(header["descr"]), tuple(int(axis) for axis in header["shape"])
        order = "F" if header["fortran_order"] else "C"
    except (ValueError, OverflowError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} is no array of NumPy: {error}") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise DataError(f"{name} holds {dtype}; expected numbers or text: objects would need pickle, which is not read")
    body = memoryview(content)[start + size :]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise DataError(f"{name} announces {list(shape)} of {dtype} and holds {len(body)} bytes; write it anew")
    try:
        array = np.frombuffer(body, dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    except ValueError as error:  # no values, in a shape or of a type that NumPy has not
        raise DataError(f"{name} announces {dtype} of a shape that no array has ({error}); write it anew") from error
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False))


def _read_pictures(path: Path, options: ReadOptions) -> tuple[Dataset, Dataset | None]:
    shape = options.shape
    if shape is None:
        raise DataError(f"{path} is a folder of pictures; the size that the model takes must be given with it")
    require("reading pictures", "PIL")
    parts = {one.name.lower(): one for one in list_folders(path) if any(map(_has_pictures, list_folders(one)))}
    train = parts.get(_TRAIN)
    if train is None:
        return _read_classes(path, shape, _class_names(path), path.name or "pictures"), None
    test = next((parts[name] for name in _TEST if name in parts), None)
    names = _class_names(train)
    name = path.name or "pictures"
    return _read_classes(train, shape, names, name), None if test is None else _read_classes(test, shape, names, name)


def _read_classes(path: Path, shape: PictureShape, classes: Sequence[str], name: str) -> Dataset:
    unknown = [folder.name for folder in list_folders(path) if _has_pictures(folder) and folder.name not in classes]
    if unknown:
        raise DataError(f"{path} holds {', '.join(unknown)}; expected folders of the classes {', '.join(classes)}")
    files = [(file, number) for number, name_ in enumerate(classes) for file in list_pictures(path / name_)]
    check_size(len(files), (shape.height, shape.width, shape.channels), 1, str(path))
    x = np.empty((len(files), shape.height, shape.width, shape.channels), np.uint8)
    for row, (file, _) in enumerate(files):
        try:
            content = read_regular(file, MAX_PICTURE_BYTES)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}; mend or remove it") from error
        x[row] = decode_picture(content, str(file), shape, AspectRule.STRETCH)
    return Dataset(
        x, np.array([number for _, number in files], np.int64), tuple(classes), name_pictures(name), False, 1 / 255
    )


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(folder.name for folder in list_folders(path) if _has_pictures(folder))


def list_folders(path: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones; none where there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__")))


def list_pictures(folder: Path) -> list[Path]:
    """Return the picture files in a folder by name, without hidden ones; none where there is no such folder."""
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in _PICTURES)


def _has_pictures(folder: Path) -> bool:
    return bool(list_pictures(folder))


def _integers(values: Array, name: str) -> npt.NDArray[np.int64]:
    """Return labels as int64 [n]; a number that is no integer is refused with its place."""
    flat: Any = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim != 1 or flat.dtype.kind not in "biuf":
        raise DataError(f"{name}: labels came as {values.dtype} {list(values.shape)}; expected integers [samples]")
    if flat.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(flat) | (flat != np.round(flat)))
        if len(wrong):
            raise DataError(f"{name}: label {flat[wrong[0]]} of sample {wrong[0]} is no integer; mend or remove it")
    labels: npt.NDArray[np.int64] = flat.astype(np.int64)
    if len(labels):
        check_labels(labels, int(max(labels.max(), 0)) + 1, name)
    return labels
