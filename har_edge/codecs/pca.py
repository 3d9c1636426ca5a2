"""Principal components: a window as its coordinates along a few directions fitted to training windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from har_edge.codecs.checks import check_code, check_window, to_float32
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError

_TOP = 127  # levels either side of zero


@dataclass(frozen=True, slots=True)
class Basis:
    """The fitted values, and the content of the .npz of `pca:FILE.npz`: these four arrays by these names, all float32.

    - mean [L, C]: the mean of the training windows.
    - spread [C]: the divisor of each channel after that, above 0: its standard deviation, or 1 to keep its units.
    - components [K, L, C]: orthonormal directions in divided windows, as scikit-learn's PCA fits them to windows
      [n, L * C], the direction of most variance first.
    - scale [K]: the value of one level of each code, above 0; coordinates beyond 127 levels saturate.
    """

    mean: Samples
    spread: Samples
    components: Samples
    scale: Samples


def read_basis(name: str, arrays: Mapping[str, Code], length: int, channels: int) -> Basis:
    """Return the arrays of a file after a check against `Basis`, for windows [length, channels].

    Raises ConfigError, which says what differs.
    """
    expected = [field.name for field in fields(Basis)]
    if sorted(arrays) != sorted(expected):
        raise ConfigError(
            f"pca:{name}: the file holds {', '.join(sorted(arrays)) or 'nothing'}, expected {', '.join(expected)}; "
            "fit it with har-edge"
        )
    components = arrays["components"]
    if components.ndim != 3 or not len(components) or components.shape[1:] != (length, channels):
        raise ConfigError(
            f"pca:{name}: components are {list(components.shape)}, expected [K, {length}, {channels}] for windows "
            f"[{length}, {channels}]; fit it for this source, window and what stands before it in the chain"
        )
    size = len(components)
    shapes = {"mean": (length, channels), "spread": (channels,), "components": components.shape, "scale": (size,)}
    for key, shape in shapes.items():
        array = arrays[key]
        if array.shape != shape or array.dtype.name != "float32":
            raise ConfigError(
                f"pca:{name}: {key} is {array.dtype} {list(array.shape)}, expected float32 {list(shape)}; fit it again"
            )
        if not np.isfinite(array).all():
            raise ConfigError(f"pca:{name}: {key} holds NaN or infinity, expected finite values; fit it again")
        if key in ("spread", "scale") and not (array > 0).all():
            raise ConfigError(f"pca:{name}: {key} has values of 0 or less, expected them above 0")
    flat = components.reshape(size, -1).astype(np.float64)
    if not np.allclose(flat @ flat.T, np.eye(size), atol=1e-3):
        raise ConfigError(
            f"pca:{name}: components are not orthonormal, expected directions of length 1 at right angles"
        )
    return Basis(**{key: arrays[key] for key in expected})


class PrincipalComponents:
    """Projects a window onto fitted directions, and sends the coordinates as int8, each with a scale of its own.

    Source: Jolliffe and Cadima, "Principal component analysis: a review and recent developments", Philosophical
    Transactions of the Royal Society A 374, 2016, section 2.
    """

    code_dtype = "int8"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, False

    def __init__(self, name: str, basis: Basis) -> None:
        """Build from a basis that `read_basis` has checked; `name` is the name of its file."""
        self.spec = f"pca:{name}"
        size = len(basis.scale)
        self._shape = basis.mean.shape
        self.code_shape: tuple[int] = (size,)
        self.feature_shape = self.code_shape
        self.most_bytes = size
        self.operations = basis.mean.size * (1 + 2 * size) + 5 * size  # subtract, project, quantise
        self._mean = basis.mean.astype(np.float64)
        self._scale = basis.scale.astype(np.float64)
        directions = basis.components.astype(np.float64)
        self._onto: npt.NDArray[np.float64] = (directions / basis.spread).reshape(size, -1)
        self._back: npt.NDArray[np.float64] = (directions * basis.spread).reshape(size, -1)

    def encode(self, window: Samples) -> Code:
        """Return the coordinates, int8 [K]; DataError for another shape or dtype, NaN or infinity."""
        check_window(self.spec, window, self._shape)
        levels = self._onto @ (window - self._mean).reshape(-1) / self._scale
        return np.rint(np.clip(levels, -_TOP, _TOP)).astype(np.int8)

    def features(self, code: Code) -> Samples:
        """Return the coordinates, float32 [K]; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        return to_float32(code * self._scale)

    def decode(self, code: Code) -> Samples:
        """Restore a window from its coordinates; MessageError for a code of another shape or dtype."""
        check_code(self.spec, code, self.code_shape, self.code_dtype)
        restored = (code * self._scale) @ self._back
        return to_float32(restored.reshape(self._shape) + self._mean)
