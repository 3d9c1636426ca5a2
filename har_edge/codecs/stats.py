"""Window statistics: a few numbers that describe each channel; the window cannot be restored from them."""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import numpy.typing as npt

from har_edge.codecs.checks import check_code, check_window, refuse_decoding, to_float32
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples

_Rows = npt.NDArray[np.float64]

STATISTICS = (
    "mean",
    "standard deviation",
    "least",
    "first quartile",
    "median",
    "third quartile",
    "largest",
    "mean absolute change",
    "dominant frequency",
    "dominant amplitude",
    "spectral entropy",
)


class WindowStatistics:
    """Describes each channel by eleven statistics, in the order of `STATISTICS`.

    A code is float32 [11 * channels]: the first statistic of each channel, then the second of each, and so on.
    - Standard deviation: of the window itself (divided by L). The spectral energy of the sources, the sum of the
      squared FFT magnitudes over L without the constant one, is L times its square (Parseval): it is not sent twice.
    - Quartiles: linear between neighbours. Mean absolute change: between consecutive samples; 0 for one sample.
    - Dominant frequency: of the largest FFT magnitude but the constant one, the lowest of equals, in cycles a sample.
      Dominant amplitude: that of the sine that this magnitude stands for, in the units of the channel.
    - Spectral entropy: of the squared magnitudes but the constant one as shares of their sum, from 0 for one frequency
      to 1 for all of them alike. A channel that does not change has 0 for all three.

    Source: Bao and Intille, "Activity recognition from user-annotated acceleration data", Pervasive 2004, section 4.2
    (mean, energy, entropy); Ravi, Dandekar, Mysore, Littman, "Activity recognition from accelerometer data", IAAI 2005,
    section 3 (mean, standard deviation, energy). Correlations of axes are left out: nothing here knows which channels
    are axes of one sensor.
    """

    spec = "stats"
    code_dtype = "float32"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = False, False

    def __init__(self, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]."""
        self._shape = (length, channels)
        self.code_shape: tuple[int] = (len(STATISTICS) * channels,)
        self.feature_shape = self.code_shape
        self.most_bytes = 4 * self.code_shape[0]
        levels = ceil(log2(length)) if length > 1 else 1
        # Sort L log2 L, FFT of reals 2.5 L log2 L, sums and differences 8 L, half a spectrum at 8 a frequency.
        self.operations = channels * int(3.5 * length * levels + 8 * length + 8 * (length // 2))

    def encode(self, window: Samples) -> Code:
        """Return the statistics, float32 [11 * channels]; DataError for another shape or dtype, NaN or infinity."""
        check_window(self.spec, window, self._shape)
        rows = window.T.astype(np.float64)
        ordered = np.sort(rows, axis=1)
        mean = rows.mean(axis=1)
        centred = rows - mean[:, np.newaxis]
        changes = np.abs(np.diff(rows, axis=1))
        table = [
            mean,
            np.sqrt(np.mean(centred**2, axis=1)),
            *(_quantile(ordered, share) for share in (0, 0.25, 0.5, 0.75, 1)),
            changes.mean(axis=1) if len(window) > 1 else np.zeros(len(rows)),
            *_spectrum(centred, ordered[:, 0] < ordered[:, -1]),
        ]
        return to_float32(np.concatenate(table))

    def features(self, code: Code) -> Samples:
        """Return the statistics themselves; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return code

    def decode(self, code: Code) -> Samples:
        """Refuse with ConfigError: statistics are no window."""
        remedy = f"use a model that takes float32 {list(self.feature_shape)}, or another reducer"
        raise refuse_decoding(self.spec, remedy)


def _quantile(ordered: _Rows, share: float) -> _Rows:
    place = share * (ordered.shape[1] - 1)
    low = int(place)
    high = min(low + 1, ordered.shape[1] - 1)
    value: _Rows = ordered[:, low] * (1 - (place - low)) + ordered[:, high] * (place - low)
    return value


def _spectrum(centred: _Rows, changes: npt.NDArray[np.bool_]) -> tuple[_Rows, _Rows, _Rows]:
    """Return dominant frequency, its amplitude, and spectral entropy of each row; zeros where it does not change."""
    rows, length = centred.shape
    if length < 2:
        return np.zeros(rows), np.zeros(rows), np.zeros(rows)
    # Scaled to 1, lest the squares of the smallest float32 values vanish; rows without change stay 0.
    largest = np.where(changes, np.abs(centred).max(axis=1), np.inf)
    magnitude = np.abs(np.fft.rfft(centred / largest[:, np.newaxis], axis=1)[:, 1:])
    peak = magnitude.argmax(axis=1)
    # The last frequency of an even length is its own mirror image: a cosine at it has all of its energy in one place.
    alone = (2 * (peak + 1) == length) + 0
    amplitude = magnitude[np.arange(rows), peak] * np.where(changes, largest, 0) * (2 - alone) / length
    power = magnitude**2
    share = power / np.where(changes, power.sum(axis=1), 1)[:, np.newaxis]
    logarithm = np.log2(share, out=np.zeros_like(share), where=share > 0)
    most = log2(share.shape[1]) if share.shape[1] > 1 else 1
    entropy = -(share * logarithm).sum(axis=1) / most
    return np.where(changes, (peak + 1) / length, 0), amplitude, entropy
