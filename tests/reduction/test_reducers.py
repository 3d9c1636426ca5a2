"""Every reducer against plain NumPy, its error bound, and what it must refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from har_edge.errors import ConfigError, DataError, MessageError
from har_edge.reduction.catalog import METHODS, make_reducer
from har_edge.reduction.quantize import RangeQuantizer
from har_edge.reduction.spec import parse_spec

SPECS = [
    "none",
    "paa:5",
    "paa:7",
    "q8",
    "q16",
    "q8:0.25:-3",
    "q16:0.001:0",
    "paa:5+q8",
    "paa:3+q16:0.01:7",
    "none+paa:2",
]
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
WINDOWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 5)), elements=FINITE)


def some_window(length=250, channels=9, seed=0):
    return np.random.default_rng(seed).normal(0, 20, (length, channels)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
def test_a_reducer_says_what_it_makes(spec):
    window = some_window()
    reducer = make_reducer(spec, *window.shape)
    code = reducer.encode(window)
    assert code.shape == reducer.code_shape
    assert code.dtype.name == reducer.code_dtype
    assert reducer.spec == spec
    restored = reducer.decode(code)
    assert restored.shape == window.shape and restored.dtype == np.float32
    again = make_reducer(reducer.spec, *window.shape)
    np.testing.assert_array_equal(again.encode(window), code)
    assert code.nbytes < window.nbytes or spec == "none"


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
    reducer = make_reducer(spec, 250, 9)
    with pytest.raises(DataError, match=r"window is float32 \[250, 8\], expected float32 \[250, 9\]"):
        reducer.encode(some_window(250, 8))
    with pytest.raises(DataError, match=r"window is float64 \[250, 9\], expected float32"):
        reducer.encode(some_window().astype(np.float64))


@pytest.mark.parametrize("spec", SPECS)
def test_a_code_of_another_kind_is_refused(spec):
    reducer = make_reducer(spec, 250, 9)
    code = reducer.encode(some_window())
    with pytest.raises(MessageError, match=r"code is .*, expected .*\["):
        reducer.decode(code[:-1])
    with pytest.raises(MessageError, match="code is uint32"):
        reducer.decode(code.astype(np.uint32))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(spec, value):
    window = some_window()
    window[3, 4] = value
    with pytest.raises(DataError, match="window holds NaN or infinity, expected finite values"):
        make_reducer(spec, 250, 9).encode(window)


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
        ("paa:5+", "'' in '' is no method"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_reducer(spec, 250, 9)


@pytest.mark.parametrize("spec", SPECS)
def test_features_are_what_the_last_method_but_codings_makes(spec):
    window = some_window()
    reducer = make_reducer(spec, *window.shape)
    features = reducer.features(reducer.encode(window))
    assert features.shape == reducer.feature_shape and features.dtype == np.float32
    parts = [str(part) for part in parse_spec(spec)]
    last = max((at for at, part in enumerate(parts) if not make_reducer(part, 250, 9).is_coding), default=0)
    before = make_reducer("+".join(parts[: last + 1]), 250, 9)
    expected = before.features(before.encode(window))
    # Codings at the end are exact, or quantisers: within half a step of the widest range, or of the fixed scale.
    np.testing.assert_allclose(features, expected, atol=0.51 * max(reducer.code_scale, np.ptp(window) / 255))


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


def test_every_method_of_the_catalog_is_tested():
    tested = {part.partition(":")[0] for spec in SPECS for part in spec.split("+")}
    assert tested == {name for name, _ in METHODS}
