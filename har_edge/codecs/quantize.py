"""Uniform quantisation to 8 or 16 bits: with the range of each window, or with the fixed range of a model's input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from har_edge.codecs.checks import check_code, check_window, to_float32
from har_edge.codecs.reducer import Code, CodeLayout
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError, MessageError


class RangeQuantizer:
    """Quantises each channel of a window over its own range, least to largest value: real = least + level * step.

    The code is one array of bytes: the least value of each channel and the step of each channel (float32,
    little-endian), then the levels (unsigned, little-endian), sample by sample. A decoded value is within half a step
    of the original, where a step is the channel's range / (2^bits - 1). Behind a method whose code is a vector, there
    is one range for all of it.
    """

    code_dtype = "uint8"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, True

    def __init__(self, bits: int, shape: tuple[int, ...]) -> None:
        """Build for windows float32 [L, C], or vectors [n]; bits is 8 or 16."""
        self.spec = f"q{bits}"
        self.feature_shape = shape
        self._rows = (shape[0], shape[1] if len(shape) == 2 else 1)
        self._levels = np.dtype(f"<u{bits // 8}")
        self._top = float(2**bits - 1)
        self._head = 8 * self._rows[1]
        values = self._rows[0] * self._rows[1]
        self.code_shape: tuple[int] = (self._head + values * bits // 8,)
        self.layout = CodeLayout(self._head, self._levels.name, shape)
        self.most_bytes = self.code_shape[0]
        self.operations = 6 * values  # compare with the least, the largest and the top; subtract, divide, round

    def encode(self, window: Samples) -> Code:
        """Return the code, uint8 [bytes]; DataError for another shape or dtype, or where a value is not finite."""
        check_window(self.spec, window, self.feature_shape)
        window = window.reshape(self._rows)
        least = window.min(axis=0)
        span = window.max(axis=0).astype(np.float64) - least
        code = np.empty(self.code_shape, np.uint8)
        ranges = code[: self._head].view("<f4").reshape(2, -1)
        ranges[0] = least
        ranges[1] = span / self._top
        # The step as it travels, rounded to float32; where it rounds to zero every level is 0.
        step = ranges[1].astype(np.float64)
        level = (window - ranges[0].astype(np.float64)) / np.where(step > 0, step, np.inf)
        np.rint(level, out=level)
        np.minimum(level, self._top, out=level)
        code[self._head :].view(self._levels).reshape(self._rows)[...] = level
        return code

    def features(self, code: Code) -> Samples:
        """Return the restored window or vector, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Samples:
        """Restore a window or vector; MessageError for another shape or dtype, or a range that is none."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        code = np.ascontiguousarray(code)
        least, step = code[: self._head].view("<f4").reshape(2, -1).astype(np.float64)
        if not (np.isfinite(least).all() and np.isfinite(step).all() and (step >= 0).all()):
            raise MessageError(f"reducer {self.spec}: code has a range that is none, expected finite, ascending bounds")
        level = code[self._head :].view(self._levels).reshape(self._rows)
        return to_float32(least + level * step).reshape(self.feature_shape)


METHOD_OF = {"int8": "q8", "int16": "q16", "uint8": "u8"}


class AffineQuantizer:
    """Quantises with one fixed scale and zero point, like the input of a quantised model: real = scale * (q - zero).

    Values beyond the range saturate. LiteRT has two roundings. Its reference kernel divides in float32 and rounds
    halves away from zero (kernels/internal/reference/quantize.h). The default code, XNNPACK and the vectorised kernel,
    multiplies by the float32 reciprocal and rounds halves to even (XNNPACK f32-qs8-vcvt). This class does the same, for
    the bits of the whole model. The two differ by one level, and only for values at a half or one rounding from it. For
    int16, the vectorised kernel leaves up to 7 values at the end of a tensor to the reference kernel.
    """

    restores, is_coding = True, True

    def __init__(self, dtype: str, scale: float, zero: int, shape: tuple[int, ...]) -> None:
        """Build for float32 of any shape and a dtype of METHOD_OF; ConfigError for an impossible scale or zero."""
        self.code_dtype, name = dtype, METHOD_OF[dtype]
        limits = np.iinfo(self.code_dtype)
        with np.errstate(over="ignore", divide="ignore"):
            self._scale = np.float32(scale)
            self._inverse = np.float32(1) / self._scale
        if not (np.isfinite(self._scale) and np.isfinite(self._inverse) and self._inverse > 0):
            raise ConfigError(f"{name}:{scale}:{zero}: scale is {scale}, expected a float32 above 0")
        if not limits.min <= zero <= limits.max:
            raise ConfigError(f"{name}:{scale}:{zero}: zero is {zero}, expected {limits.min} to {limits.max}")
        self.spec = f"{name}:{self._scale!s}:{zero}"
        self.code_scale = float(self._scale)
        self.code_zero = zero
        self.code_shape: tuple[int, ...] = shape
        self.feature_shape = shape
        self.most_bytes = int(np.prod(shape)) * limits.bits // 8
        self.operations = 5 * int(np.prod(shape))  # multiply, clip twice, round, add
        self._zero = np.float32(zero)
        self._least = np.float32(limits.min - zero)
        self._largest = np.float32(limits.max - zero)

    def encode(self, window: Samples) -> Code:
        """Return the code, as many values; DataError for another shape or dtype, or where a value is not finite."""
        check_window(self.spec, window, self.code_shape)
        with np.errstate(over="ignore"):
            level: npt.NDArray[np.float32] = window * self._inverse
        np.maximum(level, self._least, out=level)
        np.minimum(level, self._largest, out=level)
        np.rint(level, out=level)
        level += self._zero
        return level.astype(self.code_dtype)

    def features(self, code: Code) -> Samples:
        """Return the restored window or vector, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Samples:
        """Restore a window, as TFLite's DEQUANTIZE does; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        window: Samples = (code.astype(np.float32) - self._zero) * self._scale
        return window
