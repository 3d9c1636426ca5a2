"""Recordings and windows: the values that travel from a file or a device to a reducer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Source:
    """One sensor location: the names of its channels, in file order."""

    name: str
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """The data of one person or machine.

    `stream` names the subject (`[a-zA-Z0-9_-]+`), `samples` maps each source to float32 [n, channels] in physical
    units, `labels` is int16 [n], `starts` are the rows (ascending, the first is 0) where the stream starts anew after
    a gap: no window straddles one. `real` is False for synthetic data.
    """

    stream: str
    rate_hz: float
    samples: Mapping[str, Samples]
    labels: npt.NDArray[np.int16]
    starts: tuple[int, ...] = (0,)
    real: bool = True

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Window:
    """L consecutive samples of one stream, from one or several sources.

    `seq` counts windows of the stream from 0, `start` is the row of the first sample, `samples` maps source to float32
    [L, channels]. `label` is the activity that all L samples share, or None where they differ or nobody knows it.
    """

    stream: str
    seq: int
    start: int
    samples: Mapping[str, Samples]
    label: int | None
