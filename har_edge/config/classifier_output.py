"""Read a classifier's output for a window: one score for each class, or the class itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from har_edge.errors import ConfigError, MessageError
from har_edge.tflite.manifest import TensorSpec

Array = npt.NDArray[Any]
INDICES = ("int32", "int64")


def check_classifier_output(output: TensorSpec, classes: int, what: str) -> None:
    """Raise ConfigError, which begins with `what`, for an output that cannot name one of so many classes.

    The output must have one score for each class and window, or (after ARG_MAX) the index of the class as int32 or
    int64. `read_classes` checks sizes that only a run shows.
    """
    if output.dtype.startswith("complex"):
        raise ConfigError(
            f"{what}: output {output.name!r} is {output.dtype}, of which none is the largest; expected real scores, or "
            "a class index: name another output"
        )
    shape = output.shape[1:] if output.shape[:1] in ((-1,), (1,)) else output.shape
    if -1 in shape or math.prod(shape) == classes or (math.prod(shape) == 1 and output.dtype in INDICES):
        return
    raise ConfigError(
        f"{what}: output {output.name!r} is {output.dtype} {list(output.shape)}, which has {math.prod(shape)} values a "
        f"window, but there are {classes} labels; expected one score a label, or one class index (int32 or int64): "
        "give the labels of this model, or name another output"
    )


def read_classes(values: Array, count: int, classes: int) -> tuple[list[int], Array | None]:
    """Return the class of each of `count` windows, and the scores as the model gives them, None where it gives none.

    Raises MessageError for another number of values, and for an index that is no class.
    """
    if values.size == count and classes > 1 and values.dtype.name in INDICES:
        indices = [int(index) for index in values.reshape(-1)]
        if not all(0 <= index < classes for index in indices):
            raise MessageError(
                f"the model answered with class {indices}; expected 0 to {classes - 1}, one of the labels"
            )
        return indices, None
    if values.size != count * classes:
        raise MessageError(
            f"{values.size} scores came for {count} windows and {classes} labels; expected one a window and label"
        )
    rows = values.reshape(count, classes)
    winners = rows.argmax(axis=1)
    return winners.tolist(), rows[np.arange(count), winners]


def best_classes(scores: npt.NDArray[np.float64], most: int) -> list[int]:
    """Return the indices of the best classes of one window, the best first, of equal ones the first first.

    Args:
        scores: [classes], real values; one that is no finite number is no score.
    """
    order = np.argsort(-scores, kind="stable")[:most]
    return [int(index) for index in order if math.isfinite(scores[index])]
