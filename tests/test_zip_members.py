"""Members of zips are unpacked within bounds, whatever they say of themselves."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from har_edge.config.unlisted_model import packed_labels
from har_edge.data.archive import DataFile
from har_edge.errors import DataError
from har_edge.files import open_member, read_member
from har_edge.learning.data.dataset_files import _load_npz

BOMB = 64 * 1024 * 1024


def zip_of(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED, *, claims: int | None = None) -> bytes:
    """Return a zip whose member claims to have another size than it unpacks to."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    packed = bytearray(file.getvalue())
    if claims is not None:
        directory = packed.rindex(b"PK\x01\x02")
        packed[22:26] = packed[directory + 24 : directory + 28] = claims.to_bytes(4, "little")
    return bytes(packed)


def peak_of(read) -> int:
    """Return how many bytes a call takes at its peak; it may raise."""
    tracemalloc.start()
    try:
        with pytest.raises((zipfile.BadZipFile, DataError)):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_member_that_lies_about_its_size_is_not_unpacked() -> None:
    with zipfile.ZipFile(io.BytesIO(zip_of("x", b"0" * BOMB, claims=1000))) as archive:
        assert peak_of(lambda: read_member(archive, "x", 2000)) < 1_000_000


def test_an_array_that_lies_about_its_size_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "bomb.npz").write_bytes(zip_of("x.npy", b"0" * BOMB, claims=1000))
    assert peak_of(lambda: _load_npz(tmp_path / "bomb.npz")) < 2_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_whole_blocks_is_refused(method: int, tmp_path: Path) -> None:
    packed = zip_of("labels.txt", b"0" * BOMB, method)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive, pytest.raises(zipfile.BadZipFile, match="expected it stored"):
        open_member(archive, "labels.txt")
    path = tmp_path / "data.zip"
    path.write_bytes(packed)
    assert packed_labels(path) is None
    assert peak_of(lambda: DataFile(path, "labels.txt", BOMB).read()) < 1_000_000


def test_what_is_within_its_bound_comes_whole() -> None:
    content = np.arange(1000, dtype=np.uint8).tobytes()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(io.BytesIO(zip_of("x", content, method))) as archive:
            assert read_member(archive, "x", 1000) == content
            with pytest.raises(zipfile.BadZipFile, match="'x' unpacks to 1000 bytes; expected at most 999"):
                read_member(archive, "x", 999)
