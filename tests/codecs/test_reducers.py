"""Every reducer against plain NumPy, its error bound, and what it must refuse."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.codecs.catalog import METHODS, make_reducer
from har_edge.codecs.packing import pack, unpack
from har_edge.codecs.quantize import RangeQuantizer
from har_edge.codecs.spec import parse_spec
from har_edge.errors import ConfigError, DataError, MessageError
from tests.codecs.samples import SampleFiles, some_window

SPECS = [
    "none",
    "paa:5",
    "paa:7",
    "q8",
    "q16",
    "q8:0.25:-3",
    "q16:0.001:0",
    "u8:0.5:128",
    "paa:5+q8",
    "paa:3+q16:0.01:7",
    "none+paa:2",
    "decimate:4",
    "decimate:2+paa:5+q16",
    "stats",
    "stats+q8",
    "sod:0.5",
    "sod:0.5,0.5,1.0,1.0,2.0,2.0,1e-05,3.0,4.0",
    "door:0.5",
    "door:0.25+zlib:6",
    "paa:2+sod:0.5+zstd:3",
    "pca:basis.npz",
    "pca:basis.npz+zlib:6",
    "ae:enc.tflite",
    "ae:enc.tflite:dec.tflite",
    "cae:enc.tflite",
    "cae:enc.tflite:dec.tflite+zstd:3",
    "bottleneck:enc.tflite+zlib:6",
    "zlib:1",
    "zstd:3",
    "q8+zlib:9",
    "q16+zstd:19",
    "paa:5+q8:0.25:-3+zlib:6",
    "q16:0.001:0+zstd:1",
]


def make(spec, length, channels):
    """Build a reducer whose files, if it has any, fit these windows."""
    return make_reducer(spec, length, channels, SampleFiles(length, channels))


FIXED = [spec for spec in SPECS if None not in make(spec, 250, 9).code_shape]
RAGGED = [spec for spec in SPECS if spec not in FIXED]
RESTORING = [spec for spec in SPECS if make(spec, 250, 9).restores]
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
WINDOWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 5)), elements=FINITE)


@pytest.mark.parametrize("spec", SPECS)
def test_a_reducer_says_what_it_makes(spec):
    window = some_window()
    reducer = make(spec, *window.shape)
    code = reducer.encode(window)
    assert code.ndim == len(reducer.code_shape)
    assert all(size in (None, got) for size, got in zip(reducer.code_shape, code.shape, strict=True))
    assert code.dtype.name == reducer.code_dtype == ("uint8" if spec in RAGGED else code.dtype.name)
    assert code.nbytes <= reducer.most_bytes and (code.nbytes == reducer.most_bytes) == (spec in FIXED)
    assert reducer.spec == spec
    again = make(reducer.spec, *window.shape)
    np.testing.assert_array_equal(again.encode(window), code)
    assert code.nbytes < window.nbytes or spec == "none"


@pytest.mark.parametrize("spec", RESTORING)
@pytest.mark.parametrize("shape", [(250, 9), (50, 1), (12, 5), (10, 3)])
def test_what_restores_gives_a_window_near_the_first(spec, shape):
    spec = spec.replace("sod:0.5,0.5,1.0,1.0,2.0,2.0,1e-05,3.0,4.0", "sod:0.5")
    window = some_window(*shape)
    reducer = make(spec, *shape)
    restored = reducer.decode(reducer.encode(window))
    assert restored.shape == window.shape and restored.dtype == np.float32
    if "q8:" not in spec:  # whose fixed range these windows exceed
        share = 1.1 if parse_spec(spec)[0].files else 0.6  # files for tests keep little more than means
        assert np.sqrt(np.mean((restored - window) ** 2)) < share * window.std()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in RESTORING])
def test_what_does_not_restore_says_so(spec):
    reducer = make(spec, 250, 9)
    with pytest.raises(ConfigError, match=r"cannot be made into a window again; use a model that takes float32 \["):
        reducer.decode(reducer.encode(some_window()))


@pytest.mark.parametrize("spec", SPECS)
def test_the_largest_values_stay_finite(spec):
    largest = float(np.finfo(np.float32).max)
    window = np.where(np.random.default_rng(2).random((250, 9)) < 0.5, -largest, largest).astype(np.float32)
    reducer = make(spec, 250, 9)
    if "sod" in spec or "door" in spec:
        with pytest.raises(DataError, match=r"window spans more than 2\^31 steps, expected a larger step"):
            reducer.encode(window)
    else:
        assert np.isfinite(reducer.features(reducer.encode(window))).all()


@pytest.mark.parametrize("spec", RAGGED)
def test_every_truncation_of_a_code_that_varies_is_refused(spec):
    reducer = make(spec, 30, 9)
    code = reducer.encode(some_window(30))
    for size in range(len(code)):
        with pytest.raises(MessageError, match="code"):
            reducer.features(code[:size])
    with pytest.raises(MessageError, match="code"):
        reducer.features(np.append(code, np.uint8(0)))


@pytest.mark.parametrize("spec", SPECS)
def test_bytes_at_random_give_a_window_or_a_message_error(spec):
    rng = np.random.default_rng(0)
    reducer = make(spec, 30, 9)
    code = reducer.encode(some_window(30))
    for _ in range(100):
        flat = np.frombuffer(code.tobytes(), np.uint8).copy()
        flat[rng.integers(len(flat), size=rng.integers(1, 5))] = rng.integers(256, dtype=np.uint8)
        try:
            features = reducer.features(flat.view(code.dtype).reshape(code.shape))
        except MessageError:
            continue
        assert features.shape == reducer.feature_shape and np.isfinite(features).all()


@pytest.mark.parametrize("spec", SPECS)
def test_codes_of_a_batch_survive_packing(spec):
    reducer = make(spec, 250, 9)
    codes = [reducer.encode(some_window(seed=seed)) for seed in range(3)]
    for code, again in zip(codes, unpack(reducer, pack(reducer, codes), 3), strict=True):
        np.testing.assert_array_equal(code, again)


@given(WINDOWS)
def test_none_is_exact(window):
    reducer = make_reducer("none", *window.shape)
    np.testing.assert_array_equal(reducer.decode(reducer.encode(window)), window)


@given(WINDOWS, st.data())
def test_paa_is_the_mean_of_each_piece(window, data):
    length, channels = window.shape
    piece = data.draw(st.integers(1, length))
    reducer = make_reducer(f"paa:{piece}", length, channels)
    pieces = [window[start : start + piece] for start in range(0, length, piece)]
    means = np.array([part.astype(np.float64).mean(axis=0) for part in pieces], np.float32)
    code = reducer.encode(window)
    np.testing.assert_allclose(code, means, rtol=1e-6, atol=1e-6 * float(np.abs(window).max()))
    expected = np.concatenate([np.tile(mean, (len(part), 1)) for mean, part in zip(code, pieces, strict=True)])
    np.testing.assert_array_equal(reducer.decode(code), expected)


@pytest.mark.parametrize("bits", [8, 16])
@given(window=WINDOWS)
def test_range_quantisation_is_within_half_a_step(bits, window):
    reducer = make_reducer(f"q{bits}", *window.shape)
    code = reducer.encode(window)
    assert code.nbytes == window.shape[1] * 8 + window.size * bits // 8
    wide = window.astype(np.float64)
    step = (wide.max(axis=0) - wide.min(axis=0)) / (2**bits - 1)
    rounding = np.abs(wide).max(axis=0) * 2.0**-23 + (2**bits) * 2.0**-149
    assert (np.abs(reducer.decode(code) - wide) <= step / 2 + step * 2**bits * 2.0**-24 + rounding).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_range_quantisation_of_extremes(bits):
    largest = np.finfo(np.float32).max
    window = np.array([[-largest, 3.5, 0], [largest, 3.5, 1e-45]], np.float32)
    reducer = make_reducer(f"q{bits}", 2, 3)
    restored = reducer.decode(reducer.encode(window))
    np.testing.assert_allclose(restored[:, 0], window[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(restored[:, 1], window[:, 1])


def test_range_code_layout():
    code = make_reducer("q8", 3, 2).encode(np.array([[0, -1], [1, -1], [255, -1]], np.float32))
    assert code[:16].view("<f4").tolist() == [0, -1, 1, 0]
    assert code[16:].tolist() == [0, 0, 1, 0, 255, 0]


@pytest.mark.parametrize(("bits", "scale", "zero"), [(8, 0.25, -3), (8, 0.1, 127), (16, 0.001, 0), (16, 3.0, -7)])
def test_affine_quantisation_rounds_and_saturates(bits, scale, zero):
    limits = np.iinfo(f"int{bits}")
    rng = np.random.default_rng(1)
    window = np.concatenate([rng.uniform(-200, 200, 5000), [-1e30, 1e30]]).astype(np.float32).reshape(-1, 1)
    reducer = make_reducer(f"q{bits}:{scale}:{zero}", *window.shape)
    exact = window.astype(np.float64) / np.float32(scale) + zero
    code = reducer.encode(window)
    inside = (exact > limits.min) & (exact < limits.max)
    assert (np.abs(code - exact)[inside] <= 0.5 + 1e-2).all()
    assert code[-2:, 0].tolist() == [limits.min, limits.max]
    expected = (code.astype(np.float32) - np.float32(zero)) * np.float32(scale)
    np.testing.assert_array_equal(reducer.decode(code), expected)


def test_affine_quantisation_rounds_halves_to_even_as_the_runtime_does():
    window = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]], np.float32)
    assert make_reducer("q8:1:0", 1, 6).encode(window).tolist() == [[-2, -2, 0, 0, 2, 2]]


@given(st.integers(-128, 127), st.integers(-128, 127))
def test_affine_codes_survive_a_round_trip(level, zero):
    reducer = make_reducer(f"q8:0.5:{zero}", 1, 1)
    code = np.array([[level]], np.int8)
    np.testing.assert_array_equal(reducer.encode(reducer.decode(code)), code)


@pytest.mark.parametrize("spec", SPECS)
def test_a_window_of_another_kind_is_refused(spec):
    reducer = make(spec, 250, 9)
    with pytest.raises(DataError, match=r"window is float32 \[250, 8\], expected float32 \[250, 9\]"):
        reducer.encode(some_window(250, 8))
    with pytest.raises(DataError, match=r"window is float64 \[250, 9\], expected float32"):
        reducer.encode(some_window().astype(np.float64))


@pytest.mark.parametrize("spec", SPECS)
def test_a_code_of_another_kind_is_refused(spec):
    reducer = make(spec, 250, 9)
    code = reducer.encode(some_window())
    for read in (reducer.features, reducer.decode) if spec in RESTORING else (reducer.features,):
        if spec in FIXED:
            with pytest.raises(MessageError, match=r"code is .*, expected .*\["):
                read(code[:-1])
        with pytest.raises(MessageError, match="code is uint32"):
            read(code.astype(np.uint32))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(spec, value):
    window = some_window()
    window[3, 4] = value
    with pytest.raises(DataError, match="window holds NaN or infinity, expected finite values"):
        make(spec, 250, 9).encode(window)


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_a_range_that_is_none_is_refused(value):
    reducer = make_reducer("q8", 250, 9)
    code = reducer.encode(some_window())
    code[36:40].view("<f4")[0] = value
    with pytest.raises(MessageError, match="a range that is none"):
        reducer.decode(code)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", r"'' in '' is no method or option, expected METHOD\[:OPTION...\]\[\+METHOD...\]"),
        ("zip", r"no method 'zip', expected none, paa:PIECE, .*, q16:SCALE:ZERO, .*joined by \+"),
        ("paa", "no method 'paa', expected none, paa:PIECE"),
        ("none:1", "no method 'none:1'"),
        ("paa:five", "PIECE is 'five', expected a whole number"),
        ("paa:0", "expected a piece of 1 to 250 samples"),
        ("paa:251", "expected a piece of 1 to 250 samples"),
        ("q8:x:0", "SCALE is 'x', expected a number"),
        ("q8:0:0", "scale is 0.0, expected a float32 above 0"),
        ("q8:-1:0", "scale is -1.0, expected"),
        ("q8:nan:0", "scale is nan, expected"),
        ("q8:1e-60:0", "scale is 1e-60, expected"),
        ("q8:1:128", "zero is 128, expected -128 to 127"),
        ("q8:1:0.5", "ZERO is '0.5', expected a whole number"),
        ("q8+paa:5", r"paa:5 cannot follow q8, whose code is uint8 \[2322\], expected float32 \[n, m\]; put it first"),
        ("q8:1:0+q8", r"q8 cannot follow q8:1.0:0, whose code is int8 \[250, 9\], expected float32 \[n\] or"),
        ("decimate:1", "expected a factor of 2 to 250 samples"),
        ("decimate:251", "expected a factor of 2 to 250 samples"),
        ("decimate:x", "FACTOR is 'x', expected a whole number"),
        ("sod:0", r"DELTA is '0', expected a number above 0 in the units of the samples, or 9 with commas"),
        ("sod:-1", "DELTA is '-1', expected a number above 0"),
        ("sod:1,2", "DELTA is '1,2', expected a number above 0"),
        ("sod:nan", "DELTA is 'nan', expected a number above 0"),
        ("door:inf", "DEVIATION is 'inf', expected a number above 0"),
        ("door:x", "DEVIATION is 'x', expected a number above 0"),
        ("zlib:0", "expected a level of 1 to 9"),
        ("zlib:10", "expected a level of 1 to 9"),
        ("zstd:23", "expected a level of 1 to 22"),
        ("zstd:x", "LEVEL is 'x', expected a whole number"),
        ("zlib+zstd", r"zstd cannot follow zlib:6, whose code is uint8 \[any\], expected what is not compressed"),
        ("sod:1+q8", r"q8 cannot follow sod:1.0, whose code is uint8 \[any\], expected float32"),
        ("stats+paa:2", r"paa:2 cannot follow stats, whose code is float32 \[99\], expected float32 \[n, m\]"),
        ("paa:5+", "'' in '' is no method"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reducer(spec, 250, 9)


@pytest.mark.parametrize("spec", SPECS)
def test_features_are_what_the_last_method_but_codings_makes(spec):
    window = some_window()
    reducer = make(spec, *window.shape)
    features = reducer.features(reducer.encode(window))
    assert features.shape == reducer.feature_shape and features.dtype == np.float32
    parts = [str(part) for part in parse_spec(spec)]
    last = max((at for at, part in enumerate(parts) if part[0] not in "qz"), default=0)
    before = make("+".join(parts[: last + 1]), 250, 9)
    expected = before.features(before.encode(window))
    # Codings at the end are exact, or quantisers: within half a step of the widest range.
    if "q8:" not in spec:
        np.testing.assert_allclose(features, expected, atol=0.51 * np.ptp(expected) / 255 if "q" in spec else 0)


def test_a_vector_is_quantised_over_one_range():
    reducer = RangeQuantizer(8, (3,))
    code = reducer.encode(np.array([0, 255, 10], np.float32))
    assert code[:8].view("<f4").tolist() == [0, 1] and code[8:].tolist() == [0, 255, 10]
    assert reducer.decode(code).tolist() == [0, 255, 10]


def test_the_operations_of_a_chain_are_those_of_its_methods():
    assert make_reducer("none", 250, 9).operations == 0
    assert make_reducer("paa:5", 250, 9).operations == (250 + 50) * 9
    assert make_reducer("q8:1:0", 50, 9).operations == 5 * 450
    assert make_reducer("paa:5+q8:1:0", 250, 9).operations == (250 + 50) * 9 + 5 * 450


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("none")])
def test_operations_grow_with_the_window_and_stay_plausible(spec):
    """From one operation a sample, to some hundred: an FFT, or a compressor at its slowest level."""
    spec = spec.replace("sod:0.5,0.5,1.0,1.0,2.0,2.0,1e-05,3.0,4.0", "sod:0.5")
    once, twice = make(spec, 250, 3), make(spec, 500, 3)
    assert 1 <= once.operations / 750 <= 500
    assert 1.8 * once.operations < twice.operations < 2.5 * once.operations


def test_a_window_too_long_for_a_matrix_is_refused():
    with pytest.raises(ConfigError, match="decimate:5: window of 4097 samples, expected at most 4096; use paa"):
        make_reducer("decimate:5", 4097, 9)


def test_every_method_of_the_catalog_is_tested():
    tested = {part.method for spec in SPECS for part in parse_spec(spec)}
    assert tested == {name for name, _ in METHODS}


def test_every_method_of_the_catalog_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "reducers.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("# Reducers")[2].splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([a-z0-9]+)[^`]*`", row.split("|")[1])}
    assert documented == {name for name, _ in METHODS}
