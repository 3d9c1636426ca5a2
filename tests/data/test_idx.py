"""idx files, as they should be and as they come."""

import gzip
import struct

import numpy as np
import pytest

from har_edge.data.idx import read_idx
from har_edge.errors import DataError
from tests.learning.made_data import idx


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_every_type_is_read_in_the_order_of_this_machine(tmp_path, kind, pack):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)
    (tmp_path / "a").write_bytes(pack(idx(values)))
    read = read_idx(tmp_path / "a")
    assert read.dtype == np.dtype(kind)
    assert np.array_equal(read, values)


WHOLE = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_every_truncation_is_refused(tmp_path, length):
    (tmp_path / "a").write_bytes(WHOLE[:length])
    with pytest.raises(DataError, match=r"is no idx file|ends in its header|fetch or copy the file anew"):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", r"is no idx file: it begins with 50 4b 03 04; expected 00 00"),
        (b"\0\0\x08\x05" + bytes(20), "1 to 4 dimensions"),
        (WHOLE + b"\0", r"announces \[2, 3\] values, 6 bytes, and holds more"),
        (struct.pack(">HBB4I", 0, 8, 4, *[2**31] * 4), "bytes of values; expected at most"),
        (struct.pack(">HBB4I", 0, 8, 4, *[2**32 - 1] * 3, 0), "which no array has"),
        (gzip.compress(WHOLE)[:-9], "cannot be read"),
        (gzip.compress(WHOLE)[:-8] + bytes(8), "cannot be read: CRC check failed"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "a")


def test_a_small_file_that_unpacks_to_much_stops_at_its_header(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(idx(np.zeros(100_000, np.uint8))))
    assert (tmp_path / "a").stat().st_size < 1000
    with pytest.raises(DataError, match="announces 100000 bytes of values; expected at most 1000"):
        read_idx(tmp_path / "a", limit=1000)
