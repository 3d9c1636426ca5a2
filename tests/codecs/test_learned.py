"""Encoders and decoders: what passes through them, and models that do not belong together."""

from dataclasses import replace

import numpy as np
import pytest

from har_edge.codecs.catalog import make_reducer
from har_edge.codecs.learned import LearnedEncoder
from har_edge.errors import ConfigError, DataError, MessageError
from har_edge.inference.codecs import TfliteCodec
from tests.codecs.samples import SampleFiles, some_window
from tests.codecs.test_quantize_runtime import quantize_model

FILES = SampleFiles(250, 9)
ENCODER, DECODER = FILES.model("enc.tflite"), FILES.model("dec.tflite")
WINDOW = some_window()


def means(window):
    return window.reshape(5, 50, 9).mean(axis=1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_the_code_is_the_output_of_the_encoder(dtype):
    scale = {"int8": 0.5, "int16": 2.0**-7, "float32": 0.0}[dtype]
    encoder = replace(ENCODER, input_dtype="float32", output_dtype=dtype, output_scale=scale)
    decoder = replace(DECODER, input_dtype=dtype, input_scale=scale)
    reducer = LearnedEncoder("ae:e.tflite:d.tflite", encoder, decoder, (250, 9))
    code = reducer.encode(WINDOW)
    np.testing.assert_array_equal(code, encoder.run(WINDOW))
    assert (reducer.code_shape, reducer.code_dtype, reducer.code_scale) == ((5, 9), dtype, scale)
    assert reducer.code_zero == (0 if dtype == "float32" else -7)
    np.testing.assert_allclose(reducer.features(code), means(WINDOW), atol=scale / 2 + 1e-4)
    np.testing.assert_allclose(reducer.decode(code), np.repeat(means(WINDOW), 50, axis=0), atol=scale / 2 + 1e-4)
    assert reducer.operations == encoder.operations


def test_windows_are_quantised_as_the_encoder_wants():
    reducer = LearnedEncoder("ae:e.tflite", ENCODER, None, (250, 9))
    levels = np.clip(np.rint(WINDOW) + 3, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(reducer.encode(WINDOW), ENCODER.run(levels))
    assert reducer.operations == ENCODER.operations + 5 * 2250


def test_a_decoder_of_another_scale_gets_the_values_not_the_levels():
    decoder = replace(
        DECODER, input_dtype="int16", input_scale=0.01, input_zero=0, output_dtype="int8", output_scale=0.25
    )
    reducer = LearnedEncoder("ae:e.tflite:d.tflite", ENCODER, decoder, (250, 9))
    code = np.full((5, 9), 13, np.int8)
    np.testing.assert_allclose(reducer.decode(code), np.full((250, 9), 10), atol=0.13)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        ({"input_shape": (125, 9)}, {}, r"the encoder takes \[125, 9\], expected \[250, 9\] as windows are"),
        ({"input_shape": (250, 9, 1)}, {}, r"the encoder takes \[250, 9, 1\], expected \[250, 9\]"),
        ({}, {"input_shape": (6, 9)}, r"the decoder takes \[6, 9\], expected \[5, 9\] as the encoder's codes are"),
        ({}, {"output_shape": (250, 8)}, r"the decoder makes \[250, 8\], expected \[250, 9\] as windows are"),
        ({"input_dtype": "uint8"}, {}, "the encoder has a port of uint8 with scale 1.0, expected float32, or int8"),
        ({"output_scale": 0.0}, {}, "the encoder has a port of int8 with scale 0.0"),
        ({}, {"output_dtype": "int32"}, "the decoder has a port of int32"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(encoder, decoder, message):
    with pytest.raises(ConfigError, match=f"reducer cae:e.tflite:d.tflite: {message}"):
        LearnedEncoder("cae:e.tflite:d.tflite", replace(ENCODER, **encoder), replace(DECODER, **decoder), (250, 9))


def test_a_file_for_another_window_is_refused_by_its_specification():
    with pytest.raises(ConfigError, match=r"bottleneck:enc.tflite: the encoder takes \[250, 9\], expected \[50, 9\]"):
        make_reducer("paa:5+bottleneck:enc.tflite", 250, 9, FILES)


def test_an_encoder_that_runs_away_is_told_of():
    encoder = replace(ENCODER, input_dtype="float32", output_dtype="float32", matrix=ENCODER.matrix * np.inf)
    with pytest.raises(DataError, match="the encoder makes NaN or infinity of a window; train it anew"):
        LearnedEncoder("ae:e.tflite", encoder, None, (250, 9)).encode(WINDOW)


def test_a_code_of_which_the_decoder_makes_no_window_is_refused():
    encoder = replace(ENCODER, output_dtype="float32", output_scale=0.0)
    decoder = replace(DECODER, input_dtype="float32", matrix=DECODER.matrix * 100)
    reducer = LearnedEncoder("ae:e.tflite:d.tflite", encoder, decoder, (250, 9))
    with pytest.raises(MessageError, match="the decoder makes NaN or infinity of this code"):
        reducer.decode(np.full((5, 9), 3e38, np.float32))
    with pytest.raises(MessageError, match="code holds NaN or infinity, expected finite values"):
        reducer.features(np.full((5, 9), np.nan, np.float32))


def test_a_model_of_the_runtime_is_an_encoder():
    """One QUANTIZE operator from float32: its codes are those of the quantiser with its scale, and stay put."""
    encoder = TfliteCodec(quantize_model((1, 250, 8), "int8", 0.5, 3), "quantize.tflite")
    reducer = LearnedEncoder("bottleneck:quantize.tflite", encoder, None, (250, 8))
    windows = [some_window(250, 8, seed) for seed in range(3)]
    codes = [reducer.encode(window) for window in windows]
    oracle = make_reducer("q8:0.5:3", 250, 8)
    for window, code in zip(windows, codes, strict=True):
        np.testing.assert_array_equal(code, oracle.encode(window))
        np.testing.assert_array_equal(reducer.features(code), oracle.decode(code))
    assert (reducer.code_scale, reducer.code_zero) == (0.5, 3) and reducer.operations >= 0
