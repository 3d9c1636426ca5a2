"""How codes enter a model: untouched where they are its input, else restored and, for integers, quantised."""

import re

import numpy as np
import pytest

from har_edge.errors import ConfigError, MessageError
from har_edge.inference.feed import make_feed
from har_edge.inference.interpreter import Port
from har_edge.reduction.catalog import make_reducer

LENGTH, CHANNELS = 20, 3


def port(dtype="float32", scale=0.0, zero=0, shape=(-1, LENGTH, CHANNELS)):
    return Port("chest_in", shape, np.dtype(dtype), scale, zero)


def window(seed=0, count=3):
    return np.random.default_rng(seed).normal(0, 5, (count, LENGTH, CHANNELS)).astype(np.float32)


def codes_of(spec, windows):
    reducer = make_reducer(spec, LENGTH, CHANNELS)
    return reducer, np.stack([reducer.encode(one) for one in windows])


@pytest.mark.parametrize(
    ("spec", "target"),
    [("none", port()), ("q8:0.25:-7", port("int8", 0.25, -7)), ("q16:0.125:0", port("int16", 0.125, 0))],
)
def test_a_code_that_is_the_input_passes_bit_for_bit(spec, target):
    reducer, codes = codes_of(spec, window())
    assert make_feed("chest", reducer, target, LENGTH, CHANNELS)(codes) is codes


@pytest.mark.parametrize("spec", ["none", "paa:5", "q8", "q16", "paa:5+q8", "q8:0.5:1"])
def test_any_other_code_is_restored_for_a_float_model(spec):
    reducer, codes = codes_of(spec, window())
    fed = make_feed("chest", reducer, port(), LENGTH, CHANNELS)(codes)
    assert fed.dtype == np.float32
    assert fed.tobytes() == np.stack([reducer.decode(code) for code in codes]).astype(np.float32).tobytes()


@pytest.mark.parametrize("spec", ["none", "paa:5", "q8", "q8:0.5:1"])
@pytest.mark.parametrize(("dtype", "bits"), [("int8", 8), ("int16", 16)])
def test_and_quantised_as_the_model_does_for_an_integer_one(spec, dtype, bits):
    reducer, codes = codes_of(spec, window())
    fed = make_feed("chest", reducer, port(dtype, 0.25, 3), LENGTH, CHANNELS)(codes)
    limits = np.iinfo(dtype)
    restored = np.stack([reducer.decode(code) for code in codes])
    plain = np.clip(np.rint(restored * np.float32(4)) + 3, limits.min, limits.max)
    assert fed.dtype == dtype and np.array_equal(fed, plain)


@pytest.mark.parametrize("shape", [(-1, 21, CHANNELS), (-1, LENGTH, 4), (-1, LENGTH), (-1, LENGTH, CHANNELS, 1)])
def test_windows_of_another_size_are_refused_by_name(shape):
    text = (
        f"source 'chest' gives windows [20, 3], but the input 'chest_in' of the model takes {list(shape[1:])}; "
        "use the window, channels and model that belong together"
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_feed("chest", make_reducer("none", LENGTH, CHANNELS), port(shape=shape), LENGTH, CHANNELS)


@pytest.mark.parametrize("target", [port("int32"), port("int8"), port("uint8", 0.5, 1), port("float16")])
def test_an_input_that_windows_cannot_enter_is_refused_by_name(target):
    with pytest.raises(
        ConfigError, match=f"input 'chest_in' of the model is {target.dtype}; windows can enter float32"
    ):
        make_feed("chest", make_reducer("none", LENGTH, CHANNELS), target, LENGTH, CHANNELS)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, LENGTH, CHANNELS + 1), np.float32),
        np.zeros((LENGTH, CHANNELS), np.float32),
        np.zeros((0, LENGTH, CHANNELS), np.float32),
        np.zeros((1, LENGTH, CHANNELS), np.float64),
        np.zeros((), np.float32),
        np.zeros((1, LENGTH * CHANNELS), np.uint8),
    ],
)
@pytest.mark.parametrize("target", [port(), port("int8", 0.5, 0)])
def test_codes_the_reducer_did_not_make_are_the_senders_mistake(codes, target):
    feed = make_feed("chest", make_reducer("none", LENGTH, CHANNELS), target, LENGTH, CHANNELS)
    text = (
        f"the code of source 'chest' is {codes.dtype} {list(codes.shape)}; expected float32 [windows, 20, 3] as 'none' "
        "makes it; give sensor and stage the same reducer"
    )
    with pytest.raises(MessageError, match=re.escape(text)):
        feed(codes)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_no_integer_stands_for_are_the_senders_mistake(wrong):
    feed = make_feed("chest", make_reducer("none", LENGTH, CHANNELS), port("int8", 0.5, 0), LENGTH, CHANNELS)
    codes = window(count=1)
    codes[0, 3, 1] = wrong
    with pytest.raises(MessageError, match="code holds NaN or infinity, expected finite"):
        feed(codes)


def test_a_byte_code_with_an_impossible_range_is_the_senders_mistake():
    reducer, codes = codes_of("q8", window(count=1))
    codes[0, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    with pytest.raises(MessageError, match="reducer q8: code has a range that is none"):
        make_feed("chest", reducer, port(), LENGTH, CHANNELS)(codes)
