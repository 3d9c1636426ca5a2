"""The labelled samples of a node itself, as the model of a training takes them; they never leave the node."""

from __future__ import annotations

import logging
from pathlib import Path

from har_edge.data.pictures import PictureShape
from har_edge.errors import DataError
from har_edge.learning.data.dataset_files import ReadOptions, read_parts
from har_edge.learning.data.datasets import Dataset, Fingerprint, rename_classes
from har_edge.protocol.training import TrainingJob

_log = logging.getLogger(__name__)


def read_own_samples(path: Path, job: TrainingJob) -> Dataset:
    """Return all training samples below a path.

    Raises DataError for samples of another shape or other classes than the job's, and for files that are damaged. Its
    text is for the server of the training: it names no file and no value. The log of this node has the whole.
    """
    length = job.shape[0] if len(job.shape) == 2 else None  # of windows [rows, channels]
    options = ReadOptions(shape=picture_shape(job.shape), classes=job.classes, length=length)
    try:
        train, _ = read_parts(path, options)
    except (DataError, OSError) as error:
        _log.warning("own samples (%s) for training %s: %s", path, job.run, error)
        raise DataError("its own samples cannot be read; the log of this node says which, and why") from None
    try:
        found = rename_classes(train, job.classes) if job.classes else train
        return (found.arranged(job.sources) if job.sources else found).reshaped(job.shape)
    except DataError as error:
        _log.warning("own samples (%s) for training %s: %s", path, job.run, error)
        expected = Fingerprint(job.shape, job.classes or train.classes)
        reason = expected.difference(train.fingerprint) or error
        raise DataError(f"its own samples do not fit the training: {reason}") from None


def picture_shape(shape: tuple[int, ...]) -> PictureShape | None:
    """Return the size of pictures that a model takes; None where its samples are none."""
    if len(shape) == 2:
        return PictureShape(shape[0], shape[1], 1)
    return PictureShape(*shape) if len(shape) == 3 and shape[2] in (1, 3) else None
