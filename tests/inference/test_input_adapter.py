"""How codes enter a model: untouched where they are its input, else restored and, for integers, quantised."""

import re

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.packing import pack
from har_edge.codecs.quantize import METHOD_OF
from har_edge.errors import ConfigError, MessageError
from har_edge.inference.input_adapter import make_input_adapter
from har_edge.inference.interpreter import Port
from har_edge.tflite.manifest import QUANTISED, REAL

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
    [
        ("none", port()),
        ("q8:0.25:-7", port("int8", 0.25, -7)),
        ("q16:0.125:0", port("int16", 0.125, 0)),
        ("u8:0.25:121", port("uint8", 0.25, 121)),
    ],
)
def test_a_code_that_is_the_input_passes_bit_for_bit(spec, target):
    reducer, codes = codes_of(spec, window())
    assert make_input_adapter("chest", reducer, target, LENGTH, CHANNELS)(codes, len(codes)) is codes


@pytest.mark.parametrize("spec", ["none", "paa:5", "q8", "q16", "paa:5+q8", "q8:0.5:1"])
def test_any_other_code_is_restored_for_a_float_model(spec):
    reducer, codes = codes_of(spec, window())
    fed = make_input_adapter("chest", reducer, port(), LENGTH, CHANNELS)(codes, len(codes))
    assert fed.dtype == np.float32
    assert fed.tobytes() == np.stack([reducer.decode(code) for code in codes]).astype(np.float32).tobytes()


@pytest.mark.parametrize("spec", ["none", "paa:5", "q8", "q8:0.5:1"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8"])
def test_and_quantised_as_the_model_does_for_an_integer_one(spec, dtype):
    reducer, codes = codes_of(spec, window())
    fed = make_input_adapter("chest", reducer, port(dtype, 0.25, 3), LENGTH, CHANNELS)(codes, len(codes))
    limits = np.iinfo(dtype)
    restored = np.stack([reducer.decode(code) for code in codes])
    plain = np.clip(np.rint(restored * np.float32(4)) + 3, limits.min, limits.max)
    assert fed.dtype == dtype and np.array_equal(fed, plain)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_model_that_takes_codes_gets_their_features(dtype):
    reducer, codes = codes_of("paa:5+q8", window())
    target = port(dtype, 0.25, 3, shape=(-1, 4, CHANNELS))
    fed = make_input_adapter("chest", reducer, target, LENGTH, CHANNELS)(codes, len(codes))
    features = np.stack([reducer.features(code) for code in codes])
    plain = features if dtype == "float32" else np.clip(np.rint(features * np.float32(4)) + 3, -128, 127)
    assert fed.dtype == dtype and np.array_equal(fed, plain)


@pytest.mark.parametrize(("scale", "zero", "untouched"), [(0.5, 1, True), (0.25, 1, False), (0.5, 0, False)])
def test_codes_with_the_scale_of_the_input_pass_bit_for_bit(scale, zero, untouched):
    reducer, codes = codes_of("paa:5+q8:0.5:1", window())
    target = port("int8", scale, zero, shape=(-1, 4, CHANNELS))
    fed = make_input_adapter("chest", reducer, target, LENGTH, CHANNELS)(codes, len(codes))
    assert (fed is codes) == untouched
    assert np.array_equal(fed, np.clip(np.rint((codes.astype(np.float64) - 1) * 0.5 / scale) + zero, -128, 127))


@pytest.mark.parametrize(
    ("spec", "dtype"), [("none", "float32"), ("q8", "float32"), ("u8:0.25:3", "uint8"), ("paa:2", "uint8")]
)
def test_an_image_is_a_window_of_its_pixels_row_by_row(spec, dtype):
    reducer, codes = codes_of(spec, window())
    image, flat = port(dtype, 0.25, 3, shape=(-1, 4, 5, CHANNELS)), port(dtype, 0.25, 3)
    fed = make_input_adapter("camera", reducer, image, LENGTH, CHANNELS)(codes, len(codes))
    assert fed.shape == (3, 4, 5, CHANNELS) and fed.dtype == dtype
    plain = make_input_adapter("camera", reducer, flat, LENGTH, CHANNELS)(codes, len(codes))
    assert fed.tobytes() == plain.tobytes() and np.array_equal(fed[1, 2, 3], plain[1, 2 * 5 + 3])


def test_a_clip_is_a_window_of_its_frames_in_turn():
    codes = window()
    clip = make_input_adapter(
        "camera", make_reducer("none", LENGTH, CHANNELS), port(shape=(-1, 2, 2, 5, CHANNELS)), LENGTH, CHANNELS
    )
    fed = clip(codes, len(codes))
    assert fed.shape == (3, 2, 2, 5, CHANNELS) and np.array_equal(fed[2, 1, 0, 4], codes[2, 10 + 4])


@pytest.mark.parametrize("spec", ["none", "q8", "paa:5"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    ("shape", "turned"),
    [
        ((LENGTH, CHANNELS, 1), False),
        ((1, LENGTH, CHANNELS), False),
        ((LENGTH * CHANNELS,), False),
        ((CHANNELS, LENGTH), True),
        ((CHANNELS, LENGTH, 1), True),
        ((1, CHANNELS, LENGTH), True),
    ],
)
def test_windows_enter_inputs_with_the_same_values_in_other_dimensions(spec, dtype, shape, turned):
    reducer, codes = codes_of(spec, window())
    plain = make_input_adapter("chest", reducer, port(dtype, 0.25, 3), LENGTH, CHANNELS)(codes, len(codes))
    fed = make_input_adapter("chest", reducer, port(dtype, 0.25, 3, shape=(-1, *shape)), LENGTH, CHANNELS)(
        codes, len(codes)
    )
    assert fed.shape == (3, *shape) and fed.dtype == dtype
    assert fed.tobytes() == (plain.swapaxes(1, 2) if turned else plain).tobytes()
    # An input without a batch takes one window as it is.
    alone = make_input_adapter("chest", reducer, port(dtype, 0.25, 3, shape=shape), LENGTH, CHANNELS)
    if shape[0] != 1:
        assert alone(codes[:1], 1).shape == shape and alone(codes[:1], 1).tobytes() == fed[:1].tobytes()


def test_samples_come_first_in_a_square_window():
    reducer = make_reducer("none", 4, 4)
    codes = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    assert np.array_equal(make_input_adapter("chest", reducer, port(shape=(-1, 4, 4, 1)), 4, 4)(codes)[..., 0], codes)


class Quiet:
    """Keeps the samples of windows whose first value is not 0: a code whose length varies, and no way back."""

    spec, code_shape, code_dtype, code_scale, code_zero = "quiet", (None,), "uint8", 0.0, 0
    feature_shape, operations, restores, is_coding = (2,), 0, False, False

    def encode(self, one):
        return np.frombuffer(one.tobytes() if one[0, 0] else b"", np.uint8)

    def features(self, code):
        if len(code) not in (0, 4 * LENGTH * CHANNELS):
            raise MessageError(f"{len(code)} bytes came")
        return np.array([len(code), code[:4].view(np.float32)[0] if len(code) else 0], np.float32)

    def decode(self, code):
        raise AssertionError("never asked")


def test_codes_of_varying_length_come_apart_again():
    reducer, windows = Quiet(), window(count=3)
    windows[1, 0, 0] = 0
    feed = make_input_adapter("chest", reducer, port(shape=(-1, 2)), LENGTH, CHANNELS)
    packed = pack(reducer, [reducer.encode(one) for one in windows])
    assert np.array_equal(feed(packed, 3), [[240, windows[0, 0, 0]], [0, 0], [240, windows[2, 0, 0]]])
    for codes, count in ((packed[:-1], 3), (packed, 2), (packed, 1000), (packed[:5], 2), (packed[None], 3)):
        with pytest.raises(MessageError, match=f"source 'chest' is not what 'quiet' makes of {count} windows: "):
            feed(codes, count)


def test_a_code_without_a_way_back_is_refused_where_the_model_takes_windows():
    text = "reducer 'quiet' makes features [2] and cannot restore them, but the input 'chest_in' of the model takes [20"
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_input_adapter("chest", Quiet(), port(), LENGTH, CHANNELS)


@pytest.mark.parametrize(
    "shape",
    [
        (-1, 21, CHANNELS),
        (-1, LENGTH, 4),
        (-1, LENGTH),
        (-1, LENGTH, CHANNELS, 2),
        (-1, LENGTH * CHANNELS + 1),
        (-1,),
        (-1, 4, 6, CHANNELS),
        (-1, 2, 2, 4, CHANNELS),
    ],
)
def test_windows_of_another_size_are_refused_by_name(shape):
    text = (
        "source 'chest' gives windows [20, 3], of which reducer 'paa:5' makes features [4, 3] and can restore them, "
        f"but the input 'chest_in' of the model takes {list(shape[1:])}; use the window, channels, reducer and model "
    )
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_input_adapter("chest", make_reducer("paa:5", LENGTH, CHANNELS), port(shape=shape), LENGTH, CHANNELS)


@pytest.mark.parametrize(
    "target", [port("int32"), port("int8"), port("uint8"), port("uint16", 0.5, 1), port("bool"), port("complex64")]
)
def test_an_input_that_windows_cannot_enter_is_refused_by_name(target):
    with pytest.raises(
        ConfigError, match=f"input 'chest_in' of the model is {target.dtype}; windows and codes can enter float32"
    ):
        make_input_adapter("chest", make_reducer("none", LENGTH, CHANNELS), target, LENGTH, CHANNELS)


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
    feed = make_input_adapter("chest", make_reducer("none", LENGTH, CHANNELS), target, LENGTH, CHANNELS)
    text = (
        f"the code of source 'chest' is not what 'none' makes of 1 windows: reducer none: code is {codes.dtype} "
        f"{list(codes.shape)}, expected float32 [1, 20, 3]; give sensor and stage the same reducer"
    )
    with pytest.raises(MessageError, match=re.escape(text)):
        feed(codes)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_no_integer_stands_for_are_the_senders_mistake(wrong):
    feed = make_input_adapter("chest", make_reducer("none", LENGTH, CHANNELS), port("int8", 0.5, 0), LENGTH, CHANNELS)
    codes = window(count=1)
    codes[0, 3, 1] = wrong
    with pytest.raises(MessageError, match="code holds NaN or infinity, expected finite"):
        feed(codes)


def test_a_byte_code_with_an_impossible_range_is_the_senders_mistake():
    reducer, codes = codes_of("q8", window(count=1))
    codes[0, :4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    with pytest.raises(MessageError, match="reducer q8: code has a range that is none"):
        make_input_adapter("chest", reducer, port(), LENGTH, CHANNELS)(codes)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("spec", ["none", "paa:10"])
def test_windows_enter_other_floats_rounded(dtype, spec):
    reducer = make_reducer(spec, LENGTH, CHANNELS)
    window = np.linspace(-3, 3, LENGTH * CHANNELS, dtype=np.float32).reshape(LENGTH, CHANNELS)
    window[0], window[1] = 1e6, -1e6  # beyond float16
    fed = make_input_adapter("chest", reducer, port(dtype), LENGTH, CHANNELS)(pack(reducer, [reducer.encode(window)]))
    restored = reducer.decode(reducer.encode(window))
    wanted = np.clip(restored, -65504, 65504) if dtype == "float16" else restored
    assert fed.dtype == dtype and fed.tobytes() == wanted.astype(dtype)[None].tobytes()


def test_the_types_that_are_promised_are_those_that_windows_enter():
    assert set(QUANTISED) == set(METHOD_OF)
    for dtype in REAL:
        make_input_adapter("chest", make_reducer("none", LENGTH, CHANNELS), port(dtype), LENGTH, CHANNELS)
