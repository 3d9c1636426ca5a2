"""The task and the stream of a classifier that takes one image a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from har_edge.codecs.quantize import METHOD_OF
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.errors import ConfigError, ModelError
from har_edge.inference.interpreter import Port

DESCRIPTION = "images.toml"
SOURCE = "camera"


def image_task(image: Port, scores: Port, labels: Sequence[str] | None = None) -> Task:
    """Return the task of a classifier of images [1, height, width, channels]; without `labels`, classes are numbered.

    The rows of an image follow each other as the samples of one window, a pixel a sample. An integer input gets codes
    in its own quantisation, so that they enter untouched. Raises ModelError for an input of another shape, ConfigError
    for labels that are not as many as the scores.
    """
    if len(image.shape) not in (3, 4, 5) or -1 in image.shape[1:]:
        raise ModelError(
            f"input {image.name!r} is {list(image.shape)}; expected an image [1, height, width, channels], a clip "
            "[1, frames, height, width, channels] or a window [1, length, channels]"
        )
    classes = math.prod(scores.shape[1:])
    names = [f"class-{index}" for index in range(classes)] if labels is None else list(labels)
    if len(names) != classes:
        raise ConfigError(f"{len(names)} labels came; expected {classes}, one for each score of {scores.name!r}")
    method = METHOD_OF.get(image.dtype.name)
    reducer = f"{method}:{np.float32(image.scale)!s}:{image.zero_point}" if method and image.scale > 0 else "none"
    length = math.prod(image.shape[1:-1])
    return Task(
        stream=StreamTask(DESCRIPTION, 1.0, length, length),
        inputs={SOURCE: SourceInput(image.name, reducer)},
        output=scores.name,
        labels=names,
        label_ids=list(range(classes)),
    )


def describe_images(image: Port) -> str:
    """Return the text of the stream description of such images."""
    columns = ", ".join(f'"channel-{index}"' for index in range(image.shape[-1]))
    return (
        'name = "images"\nrate_hz = 1.0\nsynthetic = true  # random pixels: good for times, not for accuracies\n'
        f'\n[[sources]]\nname = "{SOURCE}"\ncolumns = [{columns}]\n'
    )
