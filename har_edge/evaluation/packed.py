"""The tensors between slices as they travel: calibrated on data, and what the way costs and changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.evaluation.prediction import Prediction
from har_edge.protocol.compression import compress, expand
from har_edge.protocol.packing import pack, unpack
from har_edge.tflite.packing import TensorPacking

Array = npt.NDArray[Any]


class PackedScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The effect of packed activations on the same windows, against the whole model.

    `labels_differ` counts the windows whose class is another one; `accuracy` is None where no window has a known class.
    `raw_bytes` and `bytes` are those of the activations of all windows as they are and as they travel, without the
    heads of messages. `clipped` counts values beyond the range of their packing.
    """

    packings: dict[str, str]
    windows: int
    labels_differ: int
    accuracy: float | None
    raw_bytes: int
    bytes: int
    clipped: int

    @property
    def ratio(self) -> float:
        """How many times fewer bytes travel."""
        return self.raw_bytes / self.bytes if self.bytes else 1.0


@dataclass(slots=True)
class TensorWay:
    """Takes tensors from one slice to the next as messages do, and counts their bytes; others cross as they are."""

    packings: Mapping[str, TensorPacking]
    raw_bytes: int = 0
    bytes: int = 0
    clipped: int = 0

    def travel(self, name: str, array: Array) -> Array:
        """Return a tensor as the next slice gets it."""
        self.raw_bytes += array.nbytes
        packing = self.packings.get(name)
        if packing is None:
            self.bytes += array.nbytes
            return array
        packed, clipped = pack(array, packing)
        self.clipped += clipped
        sent = packed.nbytes
        if packing.zstd:
            frame = compress(packed)
            if len(frame) < sent:
                sent, packed = len(frame), expand(frame, packed.dtype, packed.shape)
        self.bytes += sent
        return unpack(packed, packing, array.dtype)

    def score(self, whole: Sequence[Prediction], came: Sequence[Prediction]) -> PackedScore:
        """Return the effect on these predictions, of the same windows in the same order."""
        known = [(one.truth, two.answer) for one, two in zip(whole, came, strict=True) if one.truth is not None]
        return PackedScore(
            packings={name: packing.text for name, packing in self.packings.items()},
            windows=len(came),
            labels_differ=sum(one.answer != two.answer for one, two in zip(whole, came, strict=True)),
            accuracy=sum(truth == answer for truth, answer in known) / len(known) if known else None,
            raw_bytes=self.raw_bytes,
            bytes=self.bytes,
            clipped=self.clipped,
        )


@dataclass(slots=True)
class RangeObserver:
    """Notes the least and the largest finite value of tensors."""

    ranges: dict[str, tuple[float, float]]

    def note(self, tensors: Mapping[str, Array], names: Iterable[str]) -> None:
        """Note the values of these tensors."""
        for name in names:
            finite = tensors[name][np.isfinite(tensors[name])]
            if finite.size:
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(finite.min())), max(high, float(finite.max()))

    def calibrated(self, packings: Mapping[str, TensorPacking]) -> dict[str, TensorPacking]:
        """Return the packings with the figures that hold all values seen; a tensor without any counts as all 0."""
        return {name: one.calibrated(*self.ranges.get(name, (0.0, 0.0))) for name, one in packings.items()}


def spread_windows(recordings: Sequence[Recording], length: int, hop: int, most: int) -> list[Window]:
    """Return at most so many windows, evenly from all recordings."""
    counts = [sum(1 for _ in windows(one, length, hop, within_activity=False)) for one in recordings]
    step = max(1, -(-sum(counts) // most))
    every = (one for recording in recordings for one in windows(recording, length, hop, within_activity=False))
    return list(islice(every, 0, None, step))
