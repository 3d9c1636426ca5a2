"""Decimation: a low-pass filter against aliases, then one of every few samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from har_edge.codecs.checks import check_code, check_window, to_float32
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError

_LONGEST = 4096  # the filter is a matrix, and a sensor has little memory
_LOBES = 5  # zero crossings of the sinc on either side of its middle


class Decimator:
    """Filters each channel with a windowed-sinc FIR of zero phase, and keeps every FACTOR-th sample.

    The filter is a sinc with its cut at the new Nyquist rate, 10 * FACTOR + 1 taps under a Hamming window, with a gain
    of 1 at zero frequency. `decode` interpolates with a sinc over 10 codes under the same window; on mHealth its error
    is less than that of lines between the codes (tests/codecs/test_decimate.py). The kept samples stand in the
    middle of the window: as many are left off before the first as behind the last, or one less. Beyond its ends a
    window goes on as its mirror image through the end point, so constants and straight lines come back as they were.

    Source: Crochiere and Rabiner, "Interpolation and decimation of digital signals - a tutorial review", Proceedings of
    the IEEE 69(3), 1981; filter design by windows: Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5.
    """

    code_dtype = "float32"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, False

    def __init__(self, factor: int, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]; ConfigError for a factor that does not fit."""
        if not 2 <= factor <= length:
            raise ConfigError(
                f"decimate:{factor}: expected a factor of 2 to {length} samples, the length of the window"
            )
        if length > _LONGEST:
            raise ConfigError(f"decimate:{factor}: window of {length} samples, expected at most {_LONGEST}; use paa")
        self.spec = f"decimate:{factor}"
        self._shape = (length, channels)
        kept = np.arange((length - 1) % factor // 2, length, factor)
        # Both ways are linear, so each is one matrix, ends included.
        self._filter = _sinc_weights(kept, length, factor)
        self._interpolation = _sinc_weights((np.arange(length) - kept[0]) / factor, len(kept), 1)
        self.code_shape: tuple[int, int] = (len(kept), channels)
        self.feature_shape = self.code_shape
        self.most_bytes = 4 * self.code_shape[0] * channels
        self.operations = 2 * int(np.count_nonzero(self._filter)) * channels

    def encode(self, window: Samples) -> Code:
        """Return the kept samples, float32 [n, channels]; DataError for another shape or dtype, NaN or infinity."""
        check_window(self.spec, window, self._shape)
        return to_float32(self._filter @ window.astype(np.float64))

    def features(self, code: Code) -> Samples:
        """Return the kept samples themselves; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return code

    def decode(self, code: Code) -> Samples:
        """Interpolate; MessageError for a code of another shape or dtype, NaN or infinity."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return to_float32(self._interpolation @ code.astype(np.float64))


def _sinc_weights(places: npt.NDArray[np.generic], length: int, width: int) -> npt.NDArray[np.float64]:
    """Return [places, length]: the weight of each sample in a sinc around each place, `width` samples a lobe."""
    margin = _LOBES * width + 1
    distance = np.subtract.outer(places, np.arange(-margin, length + margin)) / width
    window = 0.54 + 0.46 * np.cos(np.pi * distance / _LOBES)
    weights = np.where(np.abs(distance) <= _LOBES, np.sinc(distance) * window, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    # The weight of a mirrored sample goes to the samples that it is made of.
    mirrored = np.pad(np.eye(length), ((margin, margin), (0, 0)), mode="reflect", reflect_type="odd")
    made: npt.NDArray[np.float64] = weights @ mirrored
    return made
