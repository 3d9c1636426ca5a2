"""Compressed updates: golden bytes, round trips, error feedback, malformed input."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.errors import ConfigError, HarEdgeError, MessageError, ModelError
from har_edge.learning.updates.compression import BLOCK, PackedVector, TopK, decode, make_compressor

SPECS = ("none", "float16", "int8", "topk:0.01", "topk:0.3", "topk:1")
VECTORS = hnp.arrays(np.float32, st.integers(1, 700), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def normal(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def topk(*gaps: int, text: bytes | None = None, count: int | None = None, scale: float = 1.0) -> bytes:
    """Return an update with these gaps, each value 1."""
    packed = zlib.compress(bytes(gaps) if text is None else text)
    count = len(gaps) if count is None else count
    blocks = -(-count // BLOCK)
    return struct.pack("<II", count, len(packed)) + packed + struct.pack("<f", scale) * blocks + b"\1" * count


def test_golden_bytes() -> None:
    vector = np.array([1, -2, 0], np.float32)
    assert make_compressor("none", 3).encode(vector).data.hex() == "0000803f000000c000000000"
    # The scale is 2**-13: -2 becomes -16384.
    assert make_compressor("float16", 3).encode(vector).data.hex() == "00000039" + "0070" + "00f4" + "0000"
    assert make_compressor("int8", 3).encode(vector).data == struct.pack("<f3b", 2 / 127, 64, -127, 0)


def test_gaps_in_bytes() -> None:
    vector = np.zeros(2000, np.float32)
    vector[[0, 1, 256, 512, 1300]] = 5  # gaps of 0, 0, 254, 255 and 787 = 3 * 255 + 22
    data = make_compressor("topk:0.0025", 2000).encode(vector).data
    count, length = struct.unpack("<II", data[:8])
    assert count == 5
    assert list(zlib.decompress(data[8 : 8 + length])) == [0, 0, 254, 255, 0, 255, 255, 255, 22]
    np.testing.assert_allclose(decode(PackedVector("topk", 2000, data), 2000), vector, rtol=1e-6)


@given(VECTORS, st.sampled_from(SPECS))
def test_any_finite_vector_comes_back_within_its_bound(vector: np.ndarray, spec: str) -> None:
    packed = make_compressor(spec, vector.size).encode(vector)
    again, largest = decode(packed, vector.size), np.max(np.abs(vector))
    assert again.dtype == np.float32 and packed.size == vector.size
    error = np.abs(again.astype(np.float64) - vector)
    if spec == "none":
        assert again.tobytes() == vector.tobytes()
    elif spec == "float16":  # 11 bits of each value, or the smallest step at the scale of the largest
        assert np.all(error <= np.maximum(np.abs(vector) * 2**-11, largest * 2.0**-38) + 2**-126)
    elif spec in ("int8", "topk:1"):
        blocks = np.array([np.max(np.abs(vector[start : start + BLOCK])) for start in range(0, vector.size, BLOCK)])
        assert np.all(error <= np.repeat(blocks, BLOCK)[: vector.size] / 127 * 0.5001 + 127 * 2.0**-126)
    else:
        kept = np.flatnonzero(again)
        dropped = np.delete(np.abs(vector), kept)
        assert kept.size <= np.ceil(float(spec[5:]) * vector.size)
        assert np.all(error[kept] <= largest / 127 * 0.5001) and dropped.size + kept.size == vector.size


@given(hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-100, 100, width=32)), st.floats(0.001, 1))
def test_nothing_is_lost_with_error_feedback(vector: np.ndarray, fraction: float) -> None:
    """What was sent and what waits make up all that came."""
    sender, sent = make_compressor(f"topk:{fraction}", vector.size), np.zeros(vector.size)
    for _ in range(5):
        sent += decode(sender.encode(vector), vector.size)
    assert sender.residual is not None
    np.testing.assert_allclose(sent + sender.residual, 5.0 * vector, rtol=0, atol=1e-3)


def test_every_value_is_sent_in_the_end() -> None:
    sender = make_compressor("topk:0.05", 100)
    vector, nothing = normal(100), np.zeros(100, np.float32)
    sent = decode(sender.encode(vector), 100)
    for _ in range(60):
        sent = sent + decode(sender.encode(nothing), 100)
    np.testing.assert_allclose(sent, vector, rtol=0, atol=1e-3)


def test_an_update_that_was_not_counted_is_sent_with_the_next() -> None:
    counted, lost = make_compressor("topk:0.1", 50), make_compressor("topk:0.1", 50)
    first, second = normal(50, 1), normal(50, 2)
    lost.restore(lost.encode(first))
    np.testing.assert_allclose(lost.residual, first, rtol=0, atol=1e-6)
    counted.load_residual(first)
    np.testing.assert_allclose(decode(lost.encode(second), 50), decode(counted.encode(second), 50), rtol=0, atol=1e-6)


def test_a_restored_residual_goes_on_to_the_same_bytes() -> None:
    sender, again = make_compressor("topk:0.1", 50), make_compressor("topk:0.1", 50)
    sender.encode(normal(50, 1))
    again.load_residual(sender.residual)
    assert again.encode(normal(50, 2)) == sender.encode(normal(50, 2))


@pytest.mark.parametrize("spec", ["none", "float16", "int8"])
def test_without_error_feedback_there_is_no_residual(spec: str) -> None:
    compressor = make_compressor(spec, 3)
    assert compressor.residual is None
    compressor.load_residual(None)
    with pytest.raises(ModelError, match=f"compression {spec} keeps no residual"):
        compressor.load_residual(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("residual", "says"),
    [
        (None, "a residual of none, expected float32 \\[3\\]"),
        (np.zeros(4, np.float32), "a residual of float32 \\[4\\]"),
        (np.zeros(3), "a residual of float64 \\[3\\]"),
        (np.array([0, np.inf, 0], np.float32), "1 of 3 values are not finite"),
    ],
)
def test_a_residual_that_does_not_fit_is_refused(residual: np.ndarray | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        make_compressor("topk:0.1", 3).load_residual(residual)


def test_one_percent_is_less_than_a_sixtieth_of_dense() -> None:
    size = 61_706
    packed = TopK("topk:0.01", 0.01, size).encode(normal(size))
    assert len(packed.data) < 4 * size / 180


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sender_refuses_values_that_are_not_finite(spec: str, value: float) -> None:
    vector = np.array([1, value, 2], np.float32)
    compressor = make_compressor(spec, 3)
    with pytest.raises(ModelError, match="1 of 3 values are not finite; the learning rate may be too high"):
        compressor.encode(vector)
    assert decode(compressor.encode(np.zeros(3, np.float32)), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("spec", ["", "top", "topk", "topk:", "topk:0", "topk:1.1", "topk:nan", "int8:4", "none:"])
def test_errors_say_what_is_legal(spec: str) -> None:
    with pytest.raises(
        ConfigError, match="expected one of none, float16, int8, topk:FRACTION, with a fraction above 0"
    ):
        make_compressor(spec, 3)


MALFORMED = {
    "another size": (PackedVector("f4", 5, b"\0" * 20), "an update of 5 values, expected 4; both sides need"),
    "unknown format": (PackedVector("f8", 4, b"\0" * 32), "in format 'f8', expected one of f4, f2, i1, topk"),
    "dense, short": (PackedVector("f4", 4, b"\0" * 15), "format f4: 15 bytes, expected 16"),
    "dense, long": (PackedVector("f4", 4, b"\0" * 17), "format f4: 17 bytes, expected 16"),
    "dense, not finite": (PackedVector("f4", 4, struct.pack("<4f", 0, np.nan, np.inf, 0)), "with 2 values that"),
    "float16, short": (PackedVector("f2", 4, b"\0" * 8), "format f2: 8 bytes, expected 12"),
    "float16, infinite": (PackedVector("f2", 4, struct.pack("<f4e", 1, 0, 0, 0, np.inf)), "with 1 values that"),
    "float16, scale": (PackedVector("f2", 4, struct.pack("<f4e", np.nan, 0, 0, 0, 0)), "with 4 values that"),
    "int8, short": (PackedVector("i1", 4, b"\0" * 7), "format i1: 7 bytes, expected 8"),
    "int8, scale": (PackedVector("i1", 4, struct.pack("<f4b", np.inf, 1, 1, 0, 1)), "with 4 values that"),
    "topk, no head": (PackedVector("topk", 4, b"\0" * 7), "format topk of 7 bytes, expected at least 8"),
    "topk, none": (PackedVector("topk", 4, topk()), "0 values and 8 bytes of gaps in 16 bytes, expected 1 to 4"),
    "topk, too many": (PackedVector("topk", 4, topk(0, 0, 0, 0, 0)), "5 values and 11 bytes"),
    "topk, length": (PackedVector("topk", 4, struct.pack("<II", 1, 2**32 - 1)), "1 values and 4294967295 bytes"),
    "topk, values": (PackedVector("topk", 4, topk(0, 0)[:-1]), "format i1: 5 bytes, expected 6"),
    "topk, no zlib": (PackedVector("topk", 4, struct.pack("<IIf", 1, 0, 1) + b"\1"), "(it ends too early)"),
    "topk, beyond": (PackedVector("topk", 4, topk(2, 1)), "a value at 4, expected below 4"),
    "topk, far beyond": (PackedVector("topk", 1000, topk(255, 255, 255, 255, 0, count=1)), "at most 4 bytes"),
    "topk, more gaps": (PackedVector("topk", 4, topk(0, 0, count=1)), "cannot be read (expected at most 1 bytes)"),
    "topk, fewer gaps": (PackedVector("topk", 4, topk(0, count=2)), "1 gaps, expected 2, each with its last byte"),
    "topk, open gap": (PackedVector("topk", 600, topk(0, 255, count=1)), "each with its last byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_updates(name: str) -> None:
    packed, says = MALFORMED[name]
    with pytest.raises(MessageError) as error:
        decode(packed, 1000 if packed.size == 1000 else 600 if packed.size == 600 else 4)
    assert says in str(error.value)


@pytest.mark.parametrize("spec", SPECS)
def test_every_truncation_is_refused(spec: str) -> None:
    packed = make_compressor(spec, 300).encode(normal(300))
    for stop in range(len(packed.data)):
        with pytest.raises(MessageError):
            decode(PackedVector(packed.kind, 300, packed.data[:stop]), 300)


@given(st.sampled_from(["f4", "f2", "i1", "topk"]), st.binary(max_size=60), st.integers(0, 20))
def test_any_bytes_are_refused_or_finite(kind: str, data: bytes, size: int) -> None:
    try:
        assert np.isfinite(decode(PackedVector(kind, size, data), size)).all()
    except HarEdgeError as error:
        assert isinstance(error, MessageError)


def test_a_small_message_cannot_ask_for_much_memory() -> None:
    bomb = zlib.compress(b"\0" * 50_000_000)
    data = struct.pack("<IIf", 1, len(bomb), 1.0) + bomb + b"\1"
    tracemalloc.start()
    with pytest.raises(MessageError, match="cannot be read"):
        decode(PackedVector("topk", 1000, data), 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
