"""Bytes of a camera to frames, however they are cut; what is damaged costs itself alone."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from har_edge.data.frames import Frame, JpegSplitter, RawSplitter
from tests.data.pillow_made import file_of, pixels

JPEGS = [file_of(pixels(16 + 8 * n, 24, seed=n), "JPEG", progressive=n == 1, quality=40) for n in range(3)]


def with_thumbnail() -> bytes:
    """Return a JPEG whose EXIF data hold another."""
    exif = Image.Exif()
    exif[0x010E] = b"\xff\xd8\xff\xd9" + file_of(pixels(8, 8), "JPEG")
    made = io.BytesIO()
    Image.fromarray(pixels(16, 16)).save(made, "JPEG", exif=exif)
    return made.getvalue()


def split(data: bytes, sizes: list[int], limit: int = 1 << 20) -> list[Frame]:
    """Feed data in pieces of these sizes, over and over, and finish."""
    splitter, found, at, turn = JpegSplitter(limit), list[Frame](), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return found + list(splitter.finish())


@given(st.lists(st.integers(1, 700), min_size=1, max_size=5))
def test_files_come_out_whole_however_they_are_cut(sizes: list[int]) -> None:
    files = [*JPEGS, with_thumbnail()]
    parts = b"".join(b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n" + one for one in files)
    assert [frame.content for frame in split(parts, sizes)] == files
    assert [frame.content for frame in split(b"".join(files), sizes)] == files


@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_a_frame_that_another_follows_too_early_costs_itself_alone(size: int) -> None:
    data = JPEGS[0][:-20] + JPEGS[1] + JPEGS[2][:-10]
    first, second, third = split(data, [size])
    assert (first.content, first.ends_early) == (b"", True)
    assert second == Frame(JPEGS[1])
    assert (third.fault, third.ends_early) == ("it ends too early", True)


@pytest.mark.parametrize("at", [2, 3, 5, 20])
def test_a_damaged_head_costs_its_frame_alone(at: int) -> None:
    broken = bytearray(JPEGS[0])
    broken[at] ^= 0x55
    found = split(bytes(broken) + JPEGS[1] + JPEGS[2], [512])
    assert Frame(JPEGS[2]) in found
    assert len([frame for frame in found if not frame.fault]) in (2, 3)


def test_more_bytes_than_a_frame_may_have_are_dropped() -> None:
    endless = JPEGS[0][:-2] + b"\0" * 20_000
    found = split(endless + JPEGS[1], [1000], limit=10_000)
    assert "more than 10000 bytes" in found[0].fault and found[-1] == Frame(JPEGS[1])


@given(st.binary(max_size=600), st.integers(1, 50))
def test_no_bytes_raise_or_stay(data: bytes, size: int) -> None:
    splitter = JpegSplitter(100)
    for at in range(0, len(data), size):
        list(splitter.feed(data[at : at + size]))
        assert len(splitter._rest) <= 100 + size
    list(splitter.finish())
    assert not splitter._rest


def test_raw_frames_are_cut_by_size_and_the_rest_is_given_at_the_end() -> None:
    splitter = RawSplitter(10)
    assert [frame.content for frame in splitter.feed(bytes(25))] == [bytes(10), bytes(10)]
    assert list(splitter.finish()) == [Frame(bytes(5))] and list(splitter.finish()) == []
