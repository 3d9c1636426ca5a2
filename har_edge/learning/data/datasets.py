"""Labelled samples to train on, and what two devices must agree on before they train one model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.errors import ConfigError, DataError
from har_edge.protocol.text import with_origin
from har_edge.units import plural, size

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
MAX_CLASSES = 10_000
# Samples that a command holds in memory.
MAX_DATASET_BYTES = 1 << 30
# Types of the values of a sample; others become float32.
TYPES = ("uint8", "float32")
TEST_SHARE = 0.2


class Fingerprint(msgspec.Struct, frozen=True):
    """The shape of a sample and the names of the classes: devices that differ in one of them cannot train together."""

    shape: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hex digits that are equal where shape and classes are."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    def difference(self, other: Fingerprint) -> str:
        """Return in words how another data set differs from this one, as expected; "" where it does not."""
        found = []
        if other.shape != self.shape:
            found.append(f"samples of shape {list(other.shape)} came, expected {list(self.shape)}")
        if other.classes != self.classes:
            found.append(_differing_classes(other.classes, self.classes))
        return "; ".join(found)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled samples of one origin.

    `x` is uint8 or float32 [n, ...] and `y` the class of each sample, int64 [n]. A value enters a model as
    `x * scale + offset`; it keeps its type until then. `classes` names the classes. `real` is False for synthetic data,
    and where the name says that nothing is known. `sources` names the inputs that share the last axis, each with its
    number of channels; none where the sample is one input. `groups` names the person or machine behind each sample,
    str [n], None where nobody knows. Each sample shares values with the `overlap` samples after it, as windows do that
    are cut every half of their length.

    Raises DataError for labels out of range and for values that are no finite numbers, with their place.
    """

    x: Array
    y: Labels
    classes: tuple[str, ...]
    name: str
    real: bool
    scale: float = 1.0
    offset: float = 0.0
    sources: tuple[tuple[str, int], ...] = ()
    groups: npt.NDArray[np.str_] | None = None
    overlap: int = 0

    def __post_init__(self) -> None:
        check_labels(self.y, len(self.classes), self.name)
        if self.x.dtype.name not in TYPES or self.x.ndim < 2 or len(self.x) != len(self.y):
            raise DataError(
                f"{self.name}: samples came as {self.x.dtype} {list(self.x.shape)} with {plural(len(self.y), 'label')}"
                f"; expected {' or '.join(TYPES)} [samples, ...] and a label each"
            )
        if not (math.isfinite(self.scale) and math.isfinite(self.offset)):
            raise DataError(f"{self.name}: scale {self.scale} and offset {self.offset}; expected finite numbers")
        if self.sources and sum(width for _, width in self.sources) != self.x.shape[-1]:
            raise DataError(
                f"{self.name}: its sources have {sum(width for _, width in self.sources)} channels together, and a "
                f"sample has {self.x.shape[-1]}"
            )
        if self.groups is not None and len(self.groups) != len(self.y):
            raise DataError(f"{self.name}: {len(self.groups)} groups came for {len(self.y)} samples")
        check_finite(self.x, self.name)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x.shape[1:]

    @property
    def fingerprint(self) -> Fingerprint:
        """The shape and classes that a model and other devices must share."""
        return Fingerprint(self.shape, self.classes)

    @property
    def origin(self) -> str:
        """The origin of the samples in words: "mnist (real): 60000 samples, 10 classes"."""
        return f"{with_origin(self.name, real=self.real)}: {plural(len(self), 'sample')}, {len(self.classes)} classes"

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of samples of each class."""
        return tuple(np.bincount(self.y, minlength=len(self.classes)).tolist())

    def take(self, chosen: Indices | slice) -> Dataset:
        """Return some of the samples, by index."""
        groups = None if self.groups is None else self.groups[chosen]
        return replace(self, x=self.x[chosen], y=self.y[chosen], groups=groups)

    def values(self, chosen: Indices | slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return samples as a model takes them, float32 [n, ...]."""
        values = self.x[chosen].astype(np.float32)
        if self.scale != 1.0:
            values *= np.float32(self.scale)
        if self.offset:
            values += np.float32(self.offset)
        return values

    def inputs(self, chosen: Indices | slice = slice(None)) -> dict[str, npt.NDArray[np.float32]]:
        """Return samples by source, float32 [n, ..., channels] each; "x" where the sample is one input."""
        values = self.values(chosen)
        if not self.sources:
            return {"x": values}
        stops = np.cumsum([width for _, width in self.sources])
        parts = np.split(values, stops[:-1], axis=-1)
        return {name: np.ascontiguousarray(part) for (name, _), part in zip(self.sources, parts, strict=True)}

    def one_hot(self, chosen: Indices | slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return the classes of samples as float32 [n, classes]."""
        return np.eye(len(self.classes), dtype=np.float32)[self.y[chosen]]

    def arranged(self, sources: Sequence[tuple[str, int]]) -> Dataset:
        """Return the data set with its sources in this order along the last axis.

        Raises DataError where it has other sources, or other channels of one.
        """
        wanted = tuple(sources)
        if self.sources == wanted:
            return self
        if dict(self.sources) != dict(wanted):
            came, expected = (
                ", ".join(f"{name} ({width} channels)" for name, width in one) or "one input"
                for one in (self.sources, wanted)
            )
            raise DataError(f"{self.name}: its samples come from {came}; expected {expected}")
        starts = dict(zip([name for name, _ in self.sources], _starts(self.sources), strict=True))
        order = [starts[name] + channel for name, width in wanted for channel in range(width)]
        return replace(self, x=np.ascontiguousarray(self.x[..., order]), sources=wanted)

    def reshaped(self, shape: Sequence[int]) -> Dataset:
        """Return the data set with samples of the shape that a model takes; only axes of length 1 may come or go.

        Raises DataError where the samples have another shape.
        """
        wanted = tuple(shape)
        if [one for one in self.shape if one != 1] != [one for one in wanted if one != 1]:
            raise DataError(
                f"{self.name}: samples have shape {list(self.shape)}, expected {list(wanted)}, which the model takes; "
                "choose data of that shape, or another model"
            )
        return replace(self, x=self.x.reshape(len(self), *wanted))


def _starts(sources: Sequence[tuple[str, int]]) -> list[int]:
    return [sum(width for _, width in sources[:number]) for number in range(len(sources))]


def split_samples(dataset: Dataset, seed: int, share: float = TEST_SHARE) -> tuple[Dataset, Dataset]:
    """Return samples to train on and samples to test with.

    The test has whole groups where several are known, the last ones by name, so that no person is on both sides. Else
    it has a share of every class: the last samples where neighbours overlap, without those before that share values
    with them, or else some drawn with the seed. Raises DataError where one side would be empty.
    """
    generator = np.random.default_rng(seed)
    tested, dropped = np.zeros(len(dataset), np.bool_), np.zeros(len(dataset), np.bool_)
    if dataset.groups is not None and len(names := np.unique(dataset.groups)) > 1:
        tested = np.isin(dataset.groups, names[-max(1, round(share * len(names))) :])
    else:
        for label in range(len(dataset.classes)):
            own = np.flatnonzero(dataset.y == label)
            count = round(share * len(own))
            order = own if dataset.overlap else generator.permutation(own)
            tested[order[len(own) - count :]] = True
            if count:
                dropped[order[max(0, len(own) - count - dataset.overlap) : len(own) - count]] = dataset.overlap > 0
    trained = ~tested & ~dropped
    if not trained.any() or not tested.any():
        raise DataError(
            f"{dataset.name}: {plural(len(dataset), 'sample')} cannot be split into some to train on and some to test "
            "with; bring more samples of each class"
        )
    return dataset.take(np.flatnonzero(trained)), dataset.take(np.flatnonzero(tested))


def check_labels(labels: Array, classes: int, name: str) -> None:
    """Raise DataError unless every label is an integer from 0 to `classes` - 1, with the place of the first other."""
    if not 1 <= classes <= MAX_CLASSES:
        raise DataError(f"{name}: {_classes(classes)}, expected 1 to {MAX_CLASSES}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{name}: labels came as {labels.dtype} {list(labels.shape)}; expected integers [samples]")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        more = f" ({len(wrong)} labels are out of range)" if len(wrong) > 1 else ""
        raise DataError(
            f"{name}: sample {wrong[0]} has label {labels[wrong[0]]}, expected 0 to {classes - 1} for "
            f"{_classes(classes)}{more}; mend or remove it"
        )


def check_finite(x: Array, name: str) -> None:
    """Raise DataError for the first value that is no finite number, with its place."""
    if x.dtype.kind != "f" or np.isfinite(x.sum(dtype=np.float64)):
        return
    places = np.argwhere(~np.isfinite(x))
    if len(places):
        first = tuple(int(axis) for axis in places[0])
        raise DataError(
            f"{name}: sample {first[0]} holds {x[first]} at {list(first[1:])}, expected finite numbers "
            f"({plural(len(places), 'value')} in all {'is' if len(places) == 1 else 'are'} none); mend or remove it"
        )


def check_size(count: int, shape: Sequence[int], itemsize: int, name: str) -> None:
    """Raise DataError where samples would take more memory than MAX_DATASET_BYTES; nothing is allocated before."""
    total = count * math.prod(shape) * itemsize
    if total > MAX_DATASET_BYTES:
        raise DataError(
            f"{name}: {plural(count, 'sample')} of shape {list(shape)} take {size(total)}, expected at most "
            f"{size(MAX_DATASET_BYTES)}; take fewer samples, or share them out among devices"
        )


def rename_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the data set with the classes of a model, in its order; found by name, else by number.

    Raises DataError for a class that the model has not.
    """
    if dataset.classes == tuple(classes):
        return dataset
    if len(set(classes)) != len(classes):
        raise ConfigError(f"two classes have one name in {', '.join(classes)}; expected each once")
    places: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    numbered = all(name == str(number) for number, name in enumerate(dataset.classes))
    if numbered and len(dataset.classes) <= len(classes):
        return replace(dataset, classes=tuple(classes))
    unknown = [name for name in dataset.classes if name not in places]
    if unknown:
        raise DataError(
            f"{dataset.name}: {_differing_classes(dataset.classes, tuple(classes))}; rename or remove them, or choose "
            "another model"
        )
    order = np.array([places[name] for name in dataset.classes], np.int64)
    return replace(dataset, y=order[dataset.y], classes=tuple(classes))


def batches(count: int, size_: int, generator: np.random.Generator) -> Iterator[Indices]:
    """Yield the indices of samples in a random order, `size_` at a time; the last batch may be smaller."""
    order = generator.permutation(count)
    for start in range(0, count, size_):
        yield order[start : start + size_]


def _differing_classes(came: tuple[str, ...], expected: tuple[str, ...]) -> str:
    unknown = [name for name in came if name not in expected]
    missing = [name for name in expected if name not in came]
    text = f"{len(came)} classes came, expected {len(expected)}"
    if unknown:
        text += f"; unknown: {_shortened(unknown)}"
    if missing:
        text += f"; missing: {_shortened(missing)}"
    return text if unknown or missing else f"{text}; their order differs"


def _classes(count: int) -> str:
    return f"{count} class" if count == 1 else f"{count} classes"


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
