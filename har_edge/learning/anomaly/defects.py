"""Synthetic defects on normal pictures, to choose settings with: no anomalous picture is needed, nor any of the test.

All kinds move or remove content of normal pictures, as CutPaste does (Li et al. 2021), so that they hold for any
pictures: a rectangle is pasted from another picture or place, or it takes the colour of its border; or whole pictures
are turned, mirrored and put together anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from har_edge.data.pictures import Pixels

# Sides of a rectangle, as parts of the picture's.
_LEAST, _MOST = 0.15, 0.4
# The one of so many rectangles is taken that changes the picture most: on an empty background many change nothing.
_TRIALS = 8


@dataclass(frozen=True, slots=True)
class DefectivePictures:
    """Pictures with a defect each, uint8 [n, h, w, c], and the pixels that were changed, bool [n, h, w]."""

    pictures: Pixels = field(repr=False)
    masks: npt.NDArray[np.bool_] = field(repr=False)


def add_defects(pictures: Pixels, seed: int) -> DefectivePictures:
    """Return a copy of each picture with one defect; pasted and erased rectangles take turns."""
    generator = np.random.default_rng(seed)
    changed, masks = pictures.copy(), np.zeros(pictures.shape[:3], np.bool_)
    for number in range(len(pictures)):
        best = -1.0
        for _ in range(_TRIALS):
            trial = _paste(pictures, number, generator) if number % 2 else _erase(pictures[number], generator)
            difference = np.abs(trial.astype(np.int16) - pictures[number]).max(axis=2)
            if (size := float(difference.sum())) > best:
                best, changed[number], masks[number] = size, trial, difference > 0
    return DefectivePictures(changed, masks)


def rearrange(pictures: Pixels, seed: int) -> Pixels:
    """Return pictures whose parts are those of normal ones, and whose whole is not; kinds take turns.

    A picture is turned by 90 degrees, mirrored, moved by half its side around the border, gets a half of another one at
    another place, or one of its halves is mirrored. Geometric transformations as anomalies: Golan and El-Yaniv 2018.
    """
    generator = np.random.default_rng(seed)
    changed: Pixels = pictures.copy()
    square = pictures.shape[1] == pictures.shape[2]
    for number, picture in enumerate(pictures):
        axis, other = int(generator.integers(2)), pictures[int(generator.integers(len(pictures)))]
        size = picture.shape[axis]
        half = slice(0, size // 2) if generator.integers(2) else slice(size // 2, size)
        place = (half, slice(None)) if axis == 0 else (slice(None), half)
        kind = number % 5
        if kind == 0 and square:
            changed[number] = np.rot90(picture, 1 + 2 * axis)
        elif kind <= 1:
            changed[number] = np.flip(picture, axis)
        elif kind == 2:
            changed[number] = np.roll(picture, size // 2, axis)
        elif kind == 3:
            reach = picture.shape[1 - axis] // 5
            moved = np.roll(other, int(generator.integers(-reach, reach + 1)), 1 - axis)
            if (moved[place] == picture[place]).all():  # it was the picture itself, at its place
                moved = np.roll(other, max(1, reach), 1 - axis)
            changed[number][place] = moved[place]
        else:
            changed[number][place] = np.flip(picture[place], 1 - axis)
    return changed


def _rectangle(shape: tuple[int, ...], generator: np.random.Generator) -> tuple[slice, slice]:
    found = []
    for side in shape[:2]:
        length = max(2, round(side * generator.uniform(_LEAST, _MOST)))
        start = int(generator.integers(0, side - length + 1))
        found.append(slice(start, start + length))
    return found[0], found[1]


def _paste(pictures: Pixels, number: int, generator: np.random.Generator) -> Pixels:
    """Return a picture with a rectangle of another one, or of itself, from another place."""
    changed: Pixels = pictures[number].copy()
    rows, columns = _rectangle(pictures.shape[1:3], generator)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    source = pictures[int(generator.integers(0, len(pictures)))]
    top = int(generator.integers(0, source.shape[0] - height + 1))
    left = int(generator.integers(0, source.shape[1] - width + 1))
    changed[rows, columns] = source[top : top + height, left : left + width]
    return changed


def _erase(picture: Pixels, generator: np.random.Generator) -> Pixels:
    """Return a picture with a rectangle in the mean colour of its border."""
    changed: Pixels = picture.copy()
    rows, columns = _rectangle(picture.shape[:2], generator)
    inside = picture[rows, columns]
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    changed[rows, columns] = np.round(border.mean(axis=0)).astype(np.uint8)
    return changed
