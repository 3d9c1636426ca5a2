"""Piecewise aggregate approximation: the mean of every few consecutive samples."""

from __future__ import annotations

import numpy as np

from har_edge.codecs.checks import check_code, check_window
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError


class PiecewiseAggregate:
    """Replaces each piece of consecutive samples by its mean, channel by channel; the last piece may be shorter.

    Source: Keogh, Chakrabarti, Pazzani, Mehrotra, "Dimensionality reduction for fast similarity search in large time
    series databases", Knowledge and Information Systems 3, 2001, section 3.
    """

    code_dtype = "float32"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, False

    def __init__(self, piece: int, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]; ConfigError for a piece that does not fit."""
        if not 1 <= piece <= length:
            raise ConfigError(f"paa:{piece}: expected a piece of 1 to {length} samples, the length of the window")
        self.spec = f"paa:{piece}"
        self._piece = piece
        self._shape = (length, channels)
        self._whole = length // piece
        self._rest = length - self._whole * piece
        self.code_shape: tuple[int, int] = (self._whole + (self._rest > 0), channels)
        self.feature_shape = self.code_shape
        self.most_bytes = 4 * self.code_shape[0] * channels
        self.operations = (length + self.code_shape[0]) * channels
        self._counts = np.full(self.code_shape[0], piece)
        self._counts[self._whole :] = self._rest

    def encode(self, window: Samples) -> Code:
        """Return the means, float32 [pieces, channels]; DataError for a window of another shape or dtype."""
        check_window(self.spec, window, self._shape)
        channels = self._shape[1]
        cut = self._whole * self._piece
        code = np.empty(self.code_shape, np.float32)
        # Sums in float64: a mean lies between the least and the largest sample, whatever their size. `out=` would not
        # do: NumPy sums in the dtype of what it writes to.
        code[: self._whole] = window[:cut].reshape(self._whole, self._piece, channels).mean(axis=1, dtype=np.float64)
        if self._rest:
            code[self._whole] = window[cut:].mean(axis=0, dtype=np.float64)
        return code

    def features(self, code: Code) -> Samples:
        """Return the means themselves; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return code

    def decode(self, code: Code) -> Samples:
        """Repeat each mean over its piece; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return np.repeat(code, self._counts, axis=0)
