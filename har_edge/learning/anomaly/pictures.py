"""Pictures to learn anomalies from: normal ones to train with, and others to test with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.data.pictures import Pixels
from har_edge.errors import DataError
from har_edge.learning.data.datasets import Dataset
from har_edge.protocol.text import with_origin
from har_edge.units import plural

# The class of all training pictures, as the folders of MVTec AD call it (Bergmann et al. 2019).
NORMAL = "good"
# Below so many normal pictures no quantile of held-out ones means anything.
LEAST_NORMAL = 5
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnomalyPictures:
    """Normal pictures, and labelled ones to test with.

    Attributes:
        train: Normal pictures, uint8 [n, height, width, channels].
        test: uint8 [m, height, width, channels]; m may be 0.
        anomalous: Whether each test picture is anomalous, bool [m].
        kinds: The kind of each test picture, such as "good" or "scratch".
        names: The name of each test picture.
        masks: The pixels that are not normal, bool [m, height, width]; None where nobody marked them.
        name: The name of the pictures.
        real: Whether all of them are known to be real; False where defects are synthetic, too.
        refused: Why pictures were passed over, a line each.
    """

    train: Pixels
    test: Pixels
    anomalous: Flags
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    masks: Flags | None
    name: str
    real: bool
    refused: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a picture."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @property
    def has_test(self) -> bool:
        """Whether there is a test with normal and anomalous pictures."""
        return bool(len(self.test) and self.anomalous.any() and not self.anomalous.all())

    @property
    def origin(self) -> str:
        """The origin of the pictures in words."""
        bad = int(self.anomalous.sum())
        tested = f"{plural(len(self.test), 'test picture')}, {bad} of them anomalous" if len(self.test) else "no test"
        return f"{with_origin(self.name, real=self.real)}: {plural(len(self.train), 'normal picture')}, {tested}"


@dataclass(frozen=True, slots=True)
class NormalSplit:
    """Normal pictures to train with, and others held out for the threshold and the choice of a method."""

    train: Pixels
    held_out: Pixels


def split_normal(pictures: Pixels, share: float, seed: int) -> NormalSplit:
    """Return normal pictures in two parts, drawn with the seed; at least one is held out.

    Raises DataError for fewer than LEAST_NORMAL pictures.
    """
    if len(pictures) < LEAST_NORMAL:
        raise DataError(
            f"{plural(len(pictures), 'normal picture')} came; expected at least {LEAST_NORMAL}, some to train with and "
            "some for the threshold: bring more"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    count = max(1, round(share * len(pictures)))
    return NormalSplit(pictures[np.sort(order[count:])], pictures[np.sort(order[:count])])


def normal_dataset(pictures: Pixels, name: str, *, real: bool) -> Dataset:
    """Return normal pictures as samples from 0 to 1, all of the class "good"."""
    return Dataset(pictures, np.zeros(len(pictures), np.int64), (NORMAL,), name, real, scale=1 / 255)
