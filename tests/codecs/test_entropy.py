"""Entropy coding: the same bits again, the documented bytes, and what must not be expanded."""

import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.compressors import Zlib
from har_edge.codecs.entropy import EntropyCoder
from har_edge.codecs.reducer import CodeLayout
from har_edge.errors import ConfigError, DataError, MessageError
from tests.codecs.samples import some_window

BEFORE = ["none", "paa:5", "stats", "q8", "q16", "q8:0.3:5", "q16:0.01:0", "stats+q8", "sod:0.5", "door:0.5"]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("coder", ["zlib", "zstd"])
def test_the_code_before_comes_back_bit_for_bit(before, coder):
    window = some_window()
    plain, coded = make_reducer(before, 250, 9), make_reducer(f"{before}+{coder}", 250, 9)
    np.testing.assert_array_equal(coded.features(coded.encode(window)), plain.features(plain.encode(window)))
    assert coded.restores == plain.restores and coded.feature_shape == plain.feature_shape
    if plain.restores:
        np.testing.assert_array_equal(coded.decode(coded.encode(window)), plain.decode(plain.encode(window)))
    if before != "stats+q8":  # a hundred bytes without pattern
        assert len(coded.encode(window)) < plain.encode(window).nbytes


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "float32"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(max_dims=3, max_side=9),
            elements=st.floats(-(2.0**100), 2.0**100, width=32) if dtype == "float32" else None,
        )
    )
)
def test_any_values_come_back(code):
    coder = EntropyCoder(Zlib(6), CodeLayout(0, code.dtype.name, code.shape), code.nbytes)
    again = coder.decode(coder.encode(code))
    assert again.dtype == code.dtype
    np.testing.assert_array_equal(again, code)


def test_layout_of_whole_numbers():
    """Differences in time, zigzag, channel by channel, low bytes first."""
    coder = EntropyCoder(Zlib(6), CodeLayout(0, "int16", (3, 2)), 12)
    code = coder.encode(np.array([[1, -1], [301, -1], [300, 9]], np.int16))
    # Channel 0: 1, 300, -1 -> 2, 600 = 2 * 256 + 88, 1. Channel 1: -1, 0, 10 -> 1, 0, 20.
    assert list(zlib.decompress(code.tobytes())) == [2, 88, 1, 1, 0, 20, 0, 2, 0, 0, 0, 0]


def test_layout_of_a_range_code():
    window = np.array([[0, -1], [1, -1], [255, -1]], np.float32)
    text = zlib.decompress(make_reducer("q8+zlib", 3, 2).encode(window).tobytes())
    assert text[:16] == np.array([0, -1, 1, 0], "<f4").tobytes()
    assert list(text[16:]) == [0, 2, 3, 0, 0, 0]  # 0, 1, 254 = -2


def test_layout_of_real_values():
    window = np.array([[1, 2], [3, 4]], np.float32)
    text = zlib.decompress(make_reducer("zlib", 2, 2).encode(window).tobytes())
    assert text == b"".join(np.array([1, 3, 2, 4], "<f4").tobytes()[plane::4] for plane in range(4))


@pytest.mark.parametrize("coder", ["zlib", "zstd"])
@pytest.mark.parametrize("before", ["q8", "sod:1"])
def test_what_cannot_be_compressed_stays_within_most_bytes(coder, before):
    reducer = make_reducer(f"{before}+{coder}", 250, 9)
    noise = np.random.default_rng(0).uniform(-1e9, 1e9, (250, 9)).astype(np.float32)
    assert len(reducer.encode(noise)) <= reducer.most_bytes


@pytest.mark.parametrize(
    ("coder", "compress"), [("zlib", zlib.compress), ("zstd", zstandard.ZstdCompressor(level=19).compress)]
)
@pytest.mark.parametrize("before", ["q8", "sod:1"])
def test_a_bomb_is_refused_before_it_takes_memory(coder, compress, before):
    reducer = make_reducer(f"{before}+{coder}", 250, 9)
    bomb = np.frombuffer(compress(bytes(50_000_000)), np.uint8)
    tracemalloc.start()
    with pytest.raises(MessageError, match=r"cannot be expanded: expected at most \d+ bytes"):
        reducer.features(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bomb) < 60_000 and peak < 1_000_000


@pytest.mark.parametrize("coder", ["zlib", "zstd"])
def test_wrong_sizes_and_junk_are_refused(coder):
    reducer = make_reducer(f"q8+{coder}", 250, 9)
    compress = {"zlib": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}[coder]
    for text, message in [
        (compress(bytes(10)), "code expands to 10 bytes, expected 2322"),
        (compress(bytes(2323)), "cannot be expanded: expected at most 2322 bytes"),
        (compress(bytes(2322)) + b"x", "cannot be expanded: .*(follow its end|unused data)"),
        (b"", "code of 0 bytes cannot be expanded"),
        (b"\x00" * 40, "code of 40 bytes cannot be expanded"),
    ]:
        with pytest.raises(MessageError, match=message):
            reducer.decode(np.frombuffer(text, np.uint8))


def test_a_frame_that_keeps_its_size_to_itself_is_refused():
    text = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2322))
    with pytest.raises(MessageError, match="cannot be expanded: expected at most 2322 bytes"):
        make_reducer("q8+zstd", 250, 9).decode(np.frombuffer(text, np.uint8))


def test_values_that_are_not_finite_are_refused():
    text = zlib.compress(bytes(8) + b"\xc0" * 4 + b"\x7f" * 4)
    with pytest.raises(MessageError, match="code holds NaN or infinity, expected finite values"):
        make_reducer("zlib", 2, 2).decode(np.frombuffer(text, np.uint8))


def test_codes_that_are_too_long_are_not_compressed():
    coder = EntropyCoder(Zlib(6), None, 10)
    with pytest.raises(DataError, match=r"code is uint8 \[11\], expected uint8, at most 10 bytes"):
        coder.encode(np.zeros(11, np.uint8))


def test_without_its_package_zstd_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        ConfigError,
        match=r"zstd:3 needs zstandard, which is not installed; pip install 'har-edge\[zstd\]', or use zlib",
    ):
        make_reducer("zstd", 250, 9)


@pytest.mark.dataset
@pytest.mark.parametrize("before", ["q8", "q16", "q8:0.25:0", "none"])
def test_the_order_of_the_bytes_pays_on_recordings(before, recorded_windows):
    plain, coded = (make_reducer(spec, *recorded_windows.shape[1:]) for spec in (before, f"{before}+zlib"))
    bare = sum(len(zlib.compress(plain.encode(window).tobytes())) for window in recorded_windows)
    assert sum(len(coded.encode(window)) for window in recorded_windows) < bare
