"""Trained networks as reducers: an encoder makes the code, and a decoder, if there is one, restores the window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from har_edge.codecs.checks import check_code, check_window, refuse_decoding
from har_edge.codecs.files import TensorCodec
from har_edge.codecs.quantize import AffineQuantizer
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError, DataError, MessageError

_INTEGERS = ("int8", "int16")


@dataclass(frozen=True, slots=True)
class _Port:
    """One end of a model: its shape and dtype, and the quantiser for it, None for float32."""

    shape: tuple[int, ...]
    dtype: str
    quantizer: AffineQuantizer | None

    def take(self, values: Samples) -> Code:
        """Return float32 values in the dtype of the port."""
        return values if self.quantizer is None else self.quantizer.encode(values)

    def give(self, values: Code) -> Samples:
        """Return the values of the port as float32."""
        return values if self.quantizer is None else self.quantizer.decode(values)


class LearnedEncoder:
    """Runs an encoder .tflite on each window and sends its output as it is, such as int8; a decoder restores.

    Serves `ae` (dense autoencoder), `cae` (convolutional autoencoder) and `bottleneck` (the first slice of a
    classifier, which no decoder belongs to): they differ in what was trained, not in how they run.
    Source: Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", Science 313, 2006
    (autoencoder); Masci et al., "Stacked convolutional auto-encoders for hierarchical feature extraction", ICANN 2011;
    Eshratifar, Esmaili, Pedram, "BottleNet: a deep learning architecture for intelligent mobile cloud computing
    services", ISLPED 2019 (bottleneck).
    """

    is_coding = False

    def __init__(self, spec: str, encoder: TensorCodec, decoder: TensorCodec | None, shape: tuple[int, ...]) -> None:
        """Build for windows float32 [L, C] of this shape. Raises ConfigError when a model does not fit them or the
        other model.
        """
        self.spec = spec
        self.restores = decoder is not None
        self._shape = shape
        self._encoder, self._decoder = encoder, decoder
        self._window, self._code = _input(spec, "encoder", encoder), _output(spec, "encoder", encoder)
        _expect(spec, "the encoder takes", self._window.shape, shape, "windows")
        self.code_shape = self.feature_shape = self._code.shape
        self.code_dtype = self._code.dtype
        self.code_scale = self._code.quantizer.code_scale if self._code.quantizer else 0.0
        self.code_zero = self._code.quantizer.code_zero if self._code.quantizer else 0
        self.most_bytes = int(np.prod(self.code_shape)) * np.dtype(self.code_dtype).itemsize
        if decoder is not None:
            self._back, self._restored = _input(spec, "decoder", decoder), _output(spec, "decoder", decoder)
            _expect(spec, "the decoder takes", self._back.shape, self.code_shape, "the encoder's codes")
            _expect(spec, "the decoder makes", self._restored.shape, shape, "windows")

    @property
    def enters(self) -> AffineQuantizer | None:
        """The quantiser of windows for the encoder, None where it takes float32."""
        return self._window.quantizer

    @property
    def operations(self) -> int:
        """Arithmetic operations of encoder and quantisation, counted on demand, since that reads the model."""
        return self._encoder.operations + (self._window.quantizer.operations if self._window.quantizer else 0)

    def encode(self, window: Samples) -> Code:
        """Return the encoder's output; DataError for another shape or dtype, NaN or infinity, in or out."""
        check_window(self.spec, window, self._shape)
        code = self._encoder.run(self._window.take(window))
        if code.dtype.kind == "f" and not np.isfinite(code).all():
            raise DataError(f"reducer {self.spec}: the encoder makes NaN or infinity of a window; train it anew")
        return code

    def features(self, code: Code) -> Samples:
        """Return the encoder's output as float32; MessageError for another shape or dtype, NaN or infinity."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return self._code.give(code)

    def decode(self, code: Code) -> Samples:
        """Run the decoder. Raises MessageError for another code or a result that is no window, ConfigError without a
        decoder.
        """
        if self._decoder is None:
            raise refuse_decoding(self.spec, f"use a model that takes float32 {list(self.feature_shape)}, or a decoder")
        features = self.features(code)
        given = code if _agree(self._code, self._back) else self._back.take(features)
        window = self._restored.give(self._decoder.run(given))
        if not np.isfinite(window).all():
            raise MessageError(f"reducer {self.spec}: the decoder makes NaN or infinity of this code")
        return window


def _input(spec: str, role: str, codec: TensorCodec) -> _Port:
    return _make_port(spec, role, codec.input_shape, codec.input_dtype, codec.input_scale, codec.input_zero)


def _output(spec: str, role: str, codec: TensorCodec) -> _Port:
    return _make_port(spec, role, codec.output_shape, codec.output_dtype, codec.output_scale, codec.output_zero)


def _make_port(spec: str, role: str, shape: tuple[int, ...], dtype: str, scale: float, zero: int) -> _Port:
    if dtype == "float32":
        return _Port(shape, dtype, None)
    if dtype not in _INTEGERS or scale <= 0:
        raise ConfigError(
            f"reducer {spec}: the {role} has a port of {dtype} with scale {scale}, expected float32, or int8 or int16 "
            "with one scale above 0; convert it so"
        )
    return _Port(shape, dtype, AffineQuantizer(dtype, scale, zero, shape))


def _agree(one: _Port, other: _Port) -> bool:
    """Return whether the bits of one port mean the same at the other."""
    return (one.quantizer and one.quantizer.spec) == (other.quantizer and other.quantizer.spec)


def _expect(spec: str, what: str, came: tuple[int, ...], expected: tuple[int, ...], meaning: str) -> None:
    if came != expected:
        raise ConfigError(
            f"reducer {spec}: {what} {list(came)}, expected {list(expected)} as {meaning} are; use models that were "
            "trained for this source and window, and for each other"
        )
