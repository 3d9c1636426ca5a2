"""The pictures of bench/anomaly.py: MNIST, and three textures with synthetic defects, fixed before the first training.

Textures: brick, grass and gravel of scikit-image (512 x 512, grey; CC0), as its wheel holds them. The upper 320 rows
give the patches to train with, the lower 160 those of the test; 32 rows between them belong to neither. Patches are
PATCH x PATCH pixels, at places drawn with a fixed seed.

Each test patch with a defect has one defect of one kind, at a place drawn with the seed; sizes are in pixels, and a
contrast is a part of the full scale (255):

| kind | size | what a contrast c does |
|---|---|---|
| spot | a disc of radius 4 to 8 | adds +c or -c |
| scratch | a line of length 24 to 40, 2 wide | adds +c or -c |
| stain | a Gaussian of deviation 6 to 10 | adds up to +c or -c in the middle |
| noise | a square of side 12 to 20 | adds normal noise of deviation c |
| smear | a square of side 12 to 20 | takes the share min(1, 2.5 c) of its mean |

Values are clipped to 0 and 255. The mask of a defect is its shape; of a stain, all within 1.5 deviations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

TEXTURES = ("brick", "grass", "gravel")
PATCH = 64
TRAIN_ROWS, TEST_ROWS = (0, 320), (352, 512)
TRAIN_PATCHES, TEST_NORMAL, TEST_DEFECTS = 400, 100, 20  # defects: of each kind, at each contrast
KINDS = ("spot", "scratch", "stain", "noise", "smear")
CONTRASTS = (0.03, 0.06, 0.12, 0.25, 0.5)
SEED = 13

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TextureTest:
    """Test patches of a texture: uint8 [n, PATCH, PATCH, 1], kind ("good" for normal), contrast and mask of each."""

    patches: Pixels = field(repr=False)
    kinds: tuple[str, ...]
    contrasts: npt.NDArray[np.float64]
    masks: npt.NDArray[np.bool_] = field(repr=False)


def load_texture(name: str) -> Pixels:
    """Return a texture of scikit-image, uint8 [512, 512]; as its wheel holds it."""
    import skimage.data

    picture = getattr(skimage.data, name)()
    if picture.shape != (512, 512) or picture.dtype != np.uint8:
        raise ValueError(f"{name} came as {picture.dtype} {picture.shape}; expected uint8 (512, 512)")
    return picture


def cut_patches(picture: Pixels, rows: tuple[int, int], count: int, generator: np.random.Generator) -> Pixels:
    """Return patches [count, PATCH, PATCH, 1] at random places of these rows."""
    tops = generator.integers(rows[0], rows[1] - PATCH + 1, count)
    lefts = generator.integers(0, picture.shape[1] - PATCH + 1, count)
    found = [picture[top : top + PATCH, left : left + PATCH] for top, left in zip(tops, lefts, strict=True)]
    return np.stack(found)[..., None]


def train_patches(name: str) -> Pixels:
    """Return the patches of a texture to train with."""
    generator = np.random.default_rng([SEED, TEXTURES.index(name), 0])
    return cut_patches(load_texture(name), TRAIN_ROWS, TRAIN_PATCHES, generator)


def texture_test(name: str) -> TextureTest:
    """Return the test of a texture: normal patches, and each kind of defect at each contrast."""
    generator = np.random.default_rng([SEED, TEXTURES.index(name), 1])
    texture = load_texture(name)
    patches = [cut_patches(texture, TEST_ROWS, TEST_NORMAL, generator)]
    kinds, contrasts = ["good"] * TEST_NORMAL, [0.0] * TEST_NORMAL
    masks = [np.zeros((TEST_NORMAL, PATCH, PATCH), np.bool_)]
    for kind in KINDS:
        for contrast in CONTRASTS:
            clean = cut_patches(texture, TEST_ROWS, TEST_DEFECTS, generator)
            made = [add_defect(one[..., 0], kind, contrast, generator) for one in clean]
            patches.append(np.stack([one for one, _ in made])[..., None])
            masks.append(np.stack([mask for _, mask in made]))
            kinds += [kind] * TEST_DEFECTS
            contrasts += [contrast] * TEST_DEFECTS
    return TextureTest(np.concatenate(patches), tuple(kinds), np.array(contrasts), np.concatenate(masks))


def add_defect(
    patch: Pixels, kind: str, contrast: float, generator: np.random.Generator
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return a patch [PATCH, PATCH] with one defect, and its mask."""
    rows, columns = np.mgrid[:PATCH, :PATCH].astype(np.float64)
    row, column = generator.uniform(12, PATCH - 12, 2)
    sign = generator.choice([-1.0, 1.0])
    values = patch.astype(np.float64)
    shift: Floats = np.zeros_like(values)
    distance = np.hypot(rows - row, columns - column)
    if kind == "spot":
        mask = distance <= generator.uniform(4, 8)
        shift[mask] = sign * contrast * 255
    elif kind == "scratch":
        angle, length = generator.uniform(0, np.pi), generator.uniform(24, 40)
        along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        mask = (np.abs(along) <= length / 2) & (np.abs(across) <= 1.0)
        shift[mask] = sign * contrast * 255
    elif kind == "stain":
        deviation = generator.uniform(6, 10)
        mask = distance <= 1.5 * deviation
        shift = sign * contrast * 255 * np.exp(-0.5 * (distance / deviation) ** 2)
    else:
        half = generator.uniform(6, 10)
        mask = (np.abs(rows - row) <= half) & (np.abs(columns - column) <= half)
        if kind == "noise":
            shift[mask] = generator.normal(0, contrast * 255, int(mask.sum()))
        else:
            share = min(1.0, 2.5 * contrast)
            shift[mask] = share * (values[mask].mean() - values[mask])
    return np.clip(np.round(values + shift), 0, 255).astype(np.uint8), mask
