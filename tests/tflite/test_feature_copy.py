"""Copies of networks as float ones: quantised weights become real values, at any size of picture."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.tflite.feature_copy import FeatureCopy, input_scaling, real_constant
from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.schema import tflite

SCALE, ZERO = 1 / 64, 128


def quantization(scale: list[float], zero: list[int], axis: int = 0):
    found = tflite.QuantizationParametersT()
    found.scale, found.zeroPoint = np.array(scale, np.float32), np.array(zero, np.int64)
    found.quantizedDimension = axis
    return found


def quantised_network() -> Model:
    """Return a convolution and a depthwise one of stride 2, uint8, on pictures of 8 x 8, then a reshape."""
    generator = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.empty((1, 8, 8, 3), "uint8", "x")
    builder.rename(x, "x", quantization([SCALE], [ZERO]))
    filters = builder.constant(generator.integers(0, 256, (4, 3, 3, 3), np.uint8))
    builder.rename(filters, "w", quantization([0.01], [120]))
    bias = builder.constant(generator.integers(-999, 999, 4, np.int32))
    builder.rename(bias, "b", quantization([SCALE * 0.01], [0]))
    conv = tflite.Conv2DOptionsT()
    conv.strideH = conv.strideW = conv.dilationHFactor = conv.dilationWFactor = 1
    conv.padding, conv.fusedActivationFunction = tflite.Padding.SAME, tflite.ActivationFunctionType.RELU6
    made = builder.add("CONV_2D", [x, filters, bias], (1, 8, 8, 4), conv, dtype="uint8")
    builder.rename(made, "first", quantization([6 / 255], [0]))
    taps = builder.constant(generator.integers(0, 256, (1, 3, 3, 4), np.uint8))
    builder.rename(taps, "d", quantization([0.02], [130]))
    empty = builder.constant(np.zeros(4, np.int32))
    builder.rename(empty, "e", quantization([6 / 255 * 0.02], [0]))
    depth = tflite.DepthwiseConv2DOptionsT()
    depth.strideH = depth.strideW = 2
    depth.dilationHFactor = depth.dilationWFactor = depth.depthMultiplier = 1
    depth.padding, depth.fusedActivationFunction = tflite.Padding.SAME, tflite.ActivationFunctionType.RELU6
    second = builder.add("DEPTHWISE_CONV_2D", [made, taps, empty], (1, 4, 4, 4), depth, dtype="uint8")
    builder.rename(second, "second", quantization([6 / 255], [0]))
    flat = builder.identity(second, (1, 64))
    builder.rename(flat, "flat", quantization([6 / 255], [0]))
    return read_model(bytes(builder.encode([x], [flat])))


def copied(model: Model, names: list[str], shape: tuple[int, ...]) -> Interpreter:
    builder = GraphBuilder()
    x = builder.empty(shape, name="x")
    outputs = FeatureCopy(builder, model).write(x, names)
    for number, name in zip(outputs, names, strict=True):
        builder.rename(number, name)
    return Interpreter(bytes(builder.encode([x], outputs)))


def test_a_copy_gives_the_real_values_of_a_quantised_network() -> None:
    model = quantised_network()
    codes = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)
    x = (SCALE * (codes.astype(np.float32) - ZERO)).astype(np.float32)
    quantised = Interpreter(bytes(model.data)).run({"x": codes})["flat"].reshape(1, 4, 4, 4) * (6 / 255)
    found = copied(model, ["second", "first"], (1, 8, 8, 3)).run({"x": x})
    assert list(found) == ["second", "first"]
    np.testing.assert_allclose(found["second"], quantised, atol=0.15)  # each code of the middle layer is 0.024
    assert np.abs(found["second"] - quantised).mean() < 0.03
    assert input_scaling(model, {}) == ((SCALE,), (-SCALE * ZERO,))


def test_a_copy_takes_pictures_of_any_size() -> None:
    large = copied(quantised_network(), ["second"], (2, 14, 10, 3))
    assert large.run({"x": np.zeros((2, 14, 10, 3), np.float32)})["second"].shape == (2, 7, 5, 4)


def test_scales_of_channels_stand_along_their_axis() -> None:
    tensor = SimpleNamespace(
        constant=True,
        name="w",
        dtype="int8",
        shape=(1, 1, 1, 2),
        raw=SimpleNamespace(buffer=1, quantization=quantization([0.5, 2.0], [0, 0], 3)),
    )
    model = SimpleNamespace(name="m", buffers=(None, np.array([4, -3], np.int8).view(np.uint8)))
    np.testing.assert_array_equal(real_constant(model, tensor), np.array([[[[2, -6]]]], np.float32))  # type: ignore[arg-type]


def test_what_has_no_copy_is_refused_by_name() -> None:
    model = quantised_network()
    with pytest.raises(ModelError, match=r"operator 2 \(RESHAPE\) has no copy for pictures of any size"):
        copied(model, ["flat"], (1, 8, 8, 3))
    with pytest.raises(ModelError, match=r"computes no tensor 'third'; name one"):
        copied(model, ["third"], (1, 8, 8, 3))


def test_a_float_network_must_say_how_bytes_enter() -> None:
    builder = GraphBuilder()
    x = builder.empty((1, 4, 4, 3), name="x")
    model = read_model(bytes(builder.encode([x], [builder.unary("TANH", x)])))
    with pytest.raises(ModelError, match=r"no metadata say how bytes become its values"):
        input_scaling(model, {})
    assert input_scaling(model, {"x": ((127.5,), (127.5,))}) == ((1 / 127.5,), (-1.0,))
