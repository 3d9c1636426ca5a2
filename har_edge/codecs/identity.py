"""No reduction: the code is the window."""

from __future__ import annotations

import numpy as np

from har_edge.codecs.checks import check_code, check_window
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples


class IdentityReducer:
    """Passes windows through; the baseline of every other method."""

    spec = "none"
    code_dtype = "float32"
    code_scale, code_zero = 0.0, 0
    operations = 0
    restores, is_coding = True, False

    def __init__(self, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]."""
        self.code_shape: tuple[int, int] = (length, channels)
        self.feature_shape = self.code_shape
        self.most_bytes = 4 * length * channels

    def encode(self, window: Samples) -> Code:
        """Return the window itself; DataError for another shape or dtype, or where a value is not finite."""
        check_window(self.spec, window, self.code_shape)
        return np.ascontiguousarray(window)

    def features(self, code: Code) -> Samples:
        """Return the code itself, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Samples:
        """Return the code itself; MessageError for another shape or dtype, or where a value is not finite."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return code
