"""Tensors on their way: rounded to float16 or int8, compressed without loss, and what is refused."""

from __future__ import annotations

import contextlib
import sys
import tracemalloc
import types

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.errors import ConfigError, MessageError
from har_edge.protocol import compression
from har_edge.protocol.compression import compress, expand
from har_edge.protocol.packing import FLOAT16_MOST, pack, unpack
from har_edge.protocol.wire import DTYPES, Message, decode, encode
from har_edge.tflite.packing import Rounding, TensorPacking, find_packing_flaw, parse_packing

F4 = np.dtype(np.float32)
arrays = hnp.arrays(
    st.sampled_from(list(DTYPES.values())), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
)


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["f2", "zstd", "f2+zstd", "q8:0.0123:-4", "q8:0.5:127+zstd", "q8:1e-30:-128"])
def test_a_packing_is_read_as_it_is_written(text: str) -> None:
    assert parse_packing(text).text == text


BAD = (
    "", "f4", "zstd+f2", "f2+f2", "zstd+zstd", "f2+", "+zstd", "q8", "q8:", "q8:1", "q8:0:0", "q8:-1:0", "q8:nan:0",
    "q8:inf:0", "q8:1e-31:0", "q8:1e31:0", "q8:1:128", "q8:1:-129", "q8:1:0.5", "q8:1:0:0", "q8:x:y", "f2:1", "zstd:3",
    "f2+q8:1:0", "F2",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"packing .* came; expected f2, q8:SCALE:ZERO .*, zstd, f2"):
        parse_packing(text)


def test_before_calibration_q8_has_no_figures() -> None:
    asked = parse_packing("q8+zstd", calibrated=False)
    assert not asked.is_calibrated and asked.zstd and parse_packing("f2", calibrated=False).is_calibrated
    with pytest.raises(ConfigError, match="expected f2, q8, zstd"):
        parse_packing("q8:1:0", calibrated=False)
    found = asked.calibrated(-1.0, 3.0)
    assert (found.zero, found.zstd) == (-64, True) and found.scale == pytest.approx(4 / 254)


def test_what_cannot_round_is_refused() -> None:
    assert find_packing_flaw("zstd", "int8") == find_packing_flaw("f2", "float32") == ""
    assert "came for a tensor of int8; expected zstd" in find_packing_flaw("f2", "int8")
    assert "for a tensor of float16" in find_packing_flaw("q8:1:0", "float16")
    assert "expected f2" in find_packing_flaw("lz4", "float32")


# --- rounding ---------------------------------------------------------------------------------------------------------

floats = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)


@settings(max_examples=200, deadline=None)
@given(array=floats)
def test_calibrated_values_come_back_within_half_a_step(array: np.ndarray) -> None:
    packing = TensorPacking(Rounding.INT8).calibrated(float(array.min()), float(array.max()))
    packed, clipped = pack(array, packing)
    back = unpack(packed, packing, F4)
    assert (packed.dtype, back.dtype, clipped) == (np.dtype("i1"), F4, 0)
    assert np.abs(back - array).max() <= packing.scale * 0.501
    again, _ = pack(back, packing)
    assert again.tobytes() == packed.tobytes()


RANGES = [(0.0, 6.0), (-3.0, 0.0), (-1.0, 4.0), (0.0, 0.0), (5.0, 6.0), (-1e29, 1e29), (0.0, 1e-40)]


@pytest.mark.parametrize("bounds", RANGES)
def test_zero_comes_back_as_zero(bounds: tuple[float, float]) -> None:
    packing = TensorPacking(Rounding.INT8).calibrated(*bounds)
    assert parse_packing(packing.text) == packing
    assert unpack(pack(np.zeros(3, np.float32), packing)[0], packing, F4).tolist() == [0.0] * 3


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (np.nan, 1.0), (-np.inf, 0.0), (0.0, np.nan), (-1e33, 0.0)])
def test_a_range_that_no_scale_holds_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="to calibrate q8 with"):
        TensorPacking(Rounding.INT8).calibrated(*bounds)


def test_float16_clips_what_it_cannot_carry_and_counts_it() -> None:
    array = np.array([1.0, 65504.0, 65519.0, 65520.0, -1e30, np.inf, -np.inf, np.nan], np.float32)
    packed, clipped = pack(array, parse_packing("f2"))
    back = unpack(packed, parse_packing("f2"), F4)
    assert clipped == 2  # 65519 still rounds to the largest
    assert back[:7].tolist() == [1.0, 65504.0, 65504.0, FLOAT16_MOST, -FLOAT16_MOST, np.inf, -np.inf]
    assert np.isnan(back[7]) and back.dtype == np.float32


def test_int8_clips_what_is_beyond_its_range_and_counts_it() -> None:
    packing = parse_packing("q8:0.5:28")
    array = np.array([0.0, 49.5, 49.74, 50.0, -78.0, -79.0, np.inf, -np.inf, 3e38], np.float32)
    packed, clipped = pack(array, packing)
    assert (packed.tolist(), clipped) == ([28, 127, 127, 127, -128, -128, 127, -128, 127], 5)
    assert unpack(packed, packing, F4)[:2].tolist() == [0.0, 49.5]


def test_int8_has_no_place_for_nan() -> None:
    with pytest.raises(MessageError, match=r"2 of 3 values are no number, which q8:1.0:0 cannot carry"):
        pack(np.array([np.nan, 1.0, -np.nan], np.float32), parse_packing("q8:1.0:0"))


@pytest.mark.parametrize("text", ["f2", "q8:1:0"])
@pytest.mark.parametrize("came", ["float32", "uint8", "float64"])
def test_a_tensor_of_another_type_is_refused(text: str, came: str) -> None:
    with pytest.raises(MessageError, match=f"{came} came; expected .* slices of one cut on all nodes"):
        unpack(np.zeros(2, came), parse_packing(text), F4)


# --- compression ------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(array=arrays)
def test_what_was_compressed_comes_back_to_the_bit(array: np.ndarray) -> None:
    back = expand(compress(array), array.dtype, array.shape)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not back.flags.writeable and back.flags.c_contiguous


def test_strided_arrays_keep_their_order() -> None:
    array = np.arange(240, dtype=np.int16).reshape(4, 6, 10)[::2, ::-3, 1::2]
    assert expand(compress(array), array.dtype, array.shape).tolist() == array.tolist()


def test_the_layout_is_that_of_the_page() -> None:
    """Channel by channel, then byte by byte."""
    array = np.array([[1, 2], [3, 4], [5, 6 + 7 * 256]], np.uint16)
    content = zstandard.ZstdDecompressor().decompress(compress(array))
    assert list(content) == [1, 3, 5, 2, 4, 6, *[0] * 5, 7]


def test_smooth_values_become_smaller() -> None:
    steps = np.linspace(0, 1, 56 * 56, dtype=np.float32).reshape(1, 56, 56, 1)
    array = np.repeat(steps, 16, axis=3)
    assert len(compress(array)) < array.nbytes / 20


def frames(content: bytes) -> dict[str, bytes]:
    """Return frames that are not those of `content` alone, by what is wrong."""
    good = zstandard.ZstdCompressor(level=1).compress(content)
    return {
        "another size": zstandard.ZstdCompressor().compress(content + b"\0"),
        "no size": zstandard.ZstdCompressor(write_content_size=False).compress(content),
        "two frames": good + good,
        "bytes behind": good + b"\0",
        "no frame": content,
        "nothing": b"",
        "a bomb": zstandard.ZstdCompressor().compress(bytes(50_000_000)),
        "a skippable frame": b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    }


@pytest.mark.parametrize("what", frames(b"x"))
def test_a_frame_that_holds_something_else_is_refused_before_it_is_expanded(what: str) -> None:
    content = bytes(range(200)) * 20
    frame = frames(content)[what]
    tracemalloc.start()
    with pytest.raises(MessageError, match=r"came that (cannot be expanded|expands to)"):
        expand(frame, np.dtype("u1"), (4000,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_every_truncation_and_any_wrong_bit_is_refused_or_an_array() -> None:
    frame = bytearray(compress(np.arange(60, dtype=np.float32)))
    for length in range(len(frame)):
        with pytest.raises(MessageError):
            expand(bytes(frame[:length]), F4, (60,))
    for bit in range(8 * len(frame)):
        frame[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(MessageError):
            assert expand(bytes(frame), F4, (60,)).nbytes == 240
        frame[bit // 8] ^= 1 << bit % 8


# --- on the wire ------------------------------------------------------------------------------------------------------


def message(array: np.ndarray, name: str = "x") -> Message:
    return Message("s", 1, 2, (0.0,), {name: array})


def test_only_what_becomes_smaller_travels_compressed() -> None:
    even, noise = np.zeros((1, 1000), np.float32), np.random.default_rng(0).bytes(4000)
    for array, code in ((even, "zf4"), (np.frombuffer(noise, np.float32), "f4")):
        payload = encode(message(array), 3, {}, {"x"})
        assert msgspec.msgpack.decode(payload)[6][0][1] == code
        assert decode(payload).tensors["x"].tobytes() == array.tobytes()
    assert msgspec.msgpack.decode(encode(message(even), 3))[6][0][1] == "f4"
    assert encode(message(even), 1, {}, {"x"}) == encode(message(even))


@settings(max_examples=200, deadline=None)
@given(tensors=st.dictionaries(st.text(min_size=1, max_size=5), arrays, max_size=4), which=st.integers(0, 15))
def test_round_trip_of_messages(tensors: dict[str, np.ndarray], which: int) -> None:
    compressed = {name for number, name in enumerate(tensors) if which >> number & 1}
    back = decode(encode(Message("s", 1, 2, (0.0,), tensors), 3, {}, compressed)).tensors
    assert list(back) == list(tensors)
    for name, array in tensors.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_the_limit_holds_for_all_that_a_message_expands_to() -> None:
    tensors = {name: np.zeros(1000, np.float32) for name in "abc"}
    payload = encode(Message("s", 1, 2, (0.0,), tensors), 3, {}, set(tensors))
    assert decode(payload, 12_000).tensors.keys() == tensors.keys()
    with pytest.raises(MessageError, match="tensor 'c' expands to 4000 bytes; expected at most 3999 yet in this mess"):
        decode(payload, 11_999)


def raw(code: str, shape: list[int], data: bytes, version: int = 3) -> bytes:
    head = [version, "s", 1, 2, [0.0], None, [["x", code, shape, data]]]
    return msgspec.msgpack.encode([*head, {}] if version == 3 else head)


FRAME = zstandard.ZstdCompressor().compress(bytes(16))
MALFORMED = {
    "an unknown code": (raw("zf3", [4], FRAME), "dtype 'zf3'; expected one of f2, f4"),
    "compressed twice": (raw("zzf4", [4], FRAME), "dtype 'zzf4'"),
    "no code": (raw("z", [4], FRAME), "dtype 'z'"),
    "version 1": (raw("zf4", [4], FRAME, 1), "dtype 'zf4'"),
    "another shape": (raw("zf4", [5], FRAME), "tensor 'x': a frame of .* it says that it holds 16 bytes, expected 20"),
    "no elements": (raw("zf4", [0], FRAME), "it says that it holds 16 bytes, expected 0"),
    "a claim": (raw("zf4", [2**40], FRAME), "expands to 4398046511104 bytes; expected at most 16777216"),
    "a huge claim": (raw("zf4", [2**62, 2**62, 2**62], FRAME), "expands to"),
    "an empty huge claim": (raw("zf4", [2**62, 2**62, 0], compress(np.zeros(0, np.float32))), "tensor 'x': "),
    "no frame": (raw("zf4", [4], bytes(16)), "tensor 'x': a frame of 16 bytes came that cannot be expanded"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_compressed_tensors_are_refused(what: str) -> None:
    payload, expected = MALFORMED[what]
    with pytest.raises(MessageError, match=expected):
        decode(payload)


# --- machines without the package, and Python 3.14 -------------------------------------------------------------------


def test_without_the_package_compressed_tensors_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = compress(np.zeros(4, np.float32))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setattr(compression, "_BUILT_IN", (99, 0))
    with pytest.raises(MessageError, match=r"no Zstandard; pip install 'har-edge\[zstd\]', or cut the model again"):
        expand(frame, F4, (4,))
    with pytest.raises(MessageError, match="no Zstandard"):
        compress(np.zeros(4, np.float32))


def test_python_s_own_module_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the interface of Python 3.14's compression.zstd, on top of the package."""

    class Decompressor:
        def __init__(self) -> None:
            self._object = zstandard.ZstdDecompressor().decompressobj()
            self.eof, self.unused_data = False, b""

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            made: bytes = self._object.decompress(bytes(data))[:max_length]
            self.eof, self.unused_data = self._object.eof, self._object.unused_data
            return made

    def info(frame: bytes) -> types.SimpleNamespace:
        size = zstandard.get_frame_parameters(frame).content_size
        return types.SimpleNamespace(decompressed_size=None if size == 2**64 - 1 else size)

    own = types.SimpleNamespace(
        compress=lambda data, level: zstandard.ZstdCompressor(level=level).compress(bytes(data)),
        get_frame_info=info,
        ZstdDecompressor=Decompressor,
        ZstdError=zstandard.ZstdError,
    )
    array = np.arange(4000, dtype=np.uint8)
    before = compress(array)
    monkeypatch.setattr(compression, "_BUILT_IN", (3, 0))
    monkeypatch.setattr(compression, "_built_in", lambda: own)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert compression.is_available()
    assert compress(array) == before and expand(before, array.dtype, array.shape).tolist() == array.tolist()
    for frame in frames(bytes(range(200)) * 20).values():
        with pytest.raises(MessageError, match=r"came that (cannot be expanded|expands to)"):
            expand(frame, np.dtype("u1"), (4000,))
