"""Heat maps on pictures: which part of a picture is unusual, as a PNG file for people."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from har_edge.data.pictures import Pixels

# A drawing has at least so many pixels along its longer side: small pictures are enlarged by whole factors.
LEAST_SIDE = 256
# Cells from this part of the threshold on are coloured; at twice the threshold the colour is full.
_COLOURED_FROM, _FULL = 0.5, 2.0
_MOST_OPAQUE = 0.75


def draw_overlay(pixels: Pixels, heat_map: npt.NDArray[np.floating], threshold: float) -> bytes:
    """Return a PNG of a picture with its heat map over it: clear below half the threshold, yellow at it, red at twice.

    Without a threshold above 0, colours go from the smallest to the largest value.

    Args:
        pixels: uint8 [height, width, 1 or 3].
        heat_map: [h, w], which covers the whole picture; NaN stands for no value, and is clear.
    """
    from PIL import Image

    height, width = pixels.shape[:2]
    factor = max(1, -(-LEAST_SIDE // max(height, width)))
    size = (width * factor, height * factor)
    picture = Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
    below = np.asarray(picture.resize(size, Image.Resampling.NEAREST)).astype(np.float32)
    heat = Image.fromarray(_relative(heat_map, threshold)).resize(size, Image.Resampling.BILINEAR)
    part = np.asarray(heat)
    opaque = np.clip((part - _COLOURED_FROM) / (_FULL - _COLOURED_FROM), 0, 1)[:, :, None] * _MOST_OPAQUE
    green = 255 * (1 - np.clip(part - 1, 0, 1))
    colour = np.stack([np.full_like(green, 255), green, np.zeros_like(green)], axis=2)
    drawn = np.rint(below * (1 - opaque) + colour * opaque).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(drawn).save(made, "PNG")
    return made.getvalue()


def _relative(heat_map: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.float32]:
    """Return values as parts of the threshold, float32."""
    values = np.asarray(heat_map, np.float64)
    known = values[np.isfinite(values)]
    if threshold > 0 or not known.size:
        found = values / (threshold or 1.0)
    else:
        low, high = float(known.min()), float(known.max())
        found = (values - low) / ((high - low) or 1.0) * _FULL
    return np.clip(np.nan_to_num(found, nan=0.0, posinf=_FULL), 0, _FULL).astype(np.float32)
