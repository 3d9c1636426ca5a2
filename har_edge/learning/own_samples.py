"""The labelled samples of a node itself, as the model of a training takes them; they never leave the node."""

from __future__ import annotations

from pathlib import Path

from har_edge.data.pictures import PictureShape
from har_edge.errors import DataError
from har_edge.learning.dataset_files import ReadOptions, read_parts
from har_edge.learning.datasets import Dataset, rename_classes
from har_edge.protocol.training import TrainingJob


def read_own_samples(path: Path, job: TrainingJob) -> Dataset:
    """Return all training samples below a path.

    Raises DataError for samples of another shape or other classes than the job's, and for files that are damaged.
    """
    length = job.shape[0] if len(job.shape) == 2 else None  # of windows [rows, channels]
    train, _ = read_parts(path, ReadOptions(shape=picture_shape(job.shape), classes=job.classes, length=length))
    if not len(train):
        raise DataError(f"{path} has no samples; expected some to train on")
    return rename_classes(train, job.classes).reshaped(job.shape)


def picture_shape(shape: tuple[int, ...]) -> PictureShape | None:
    """Return the size of pictures that a model takes; None where its samples are none."""
    if len(shape) == 2:
        return PictureShape(shape[0], shape[1], 1)
    return PictureShape(*shape) if len(shape) == 3 and shape[2] in (1, 3) else None
