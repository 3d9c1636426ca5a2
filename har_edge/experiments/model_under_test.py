"""What is measured: a model, the task that lets it take part in a pipeline, and made-up windows for it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.codecs.packing import pack
from har_edge.codecs.quantize import METHOD_OF
from har_edge.codecs.reducer import Code
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.protocol.topics import ALL_SOURCES
from har_edge.runtime.build import reducer_of
from har_edge.runtime.slicing import prepare

SOURCE = ALL_SOURCES
DESCRIPTION = "images.toml"
_SEED = 0
_SOURCE = "camera"


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """A model to measure: its file, its name in tables, and its task; files of the task lie beside the model."""

    name: str
    path: Path
    task: Task


def find_model_under_test(name_or_path: str, folder: Path) -> ModelUnderTest:
    """Return the model of a name in the catalog, or of a path; one without a task gets that of an image classifier.

    Then a copy of the model and a description of its made-up images are put into `folder`. Raises ModelError for a
    model that has another number of inputs or outputs than one, or whose input is neither image nor window.
    """
    found = find_model(name_or_path)
    if found.entry is not None:
        return ModelUnderTest(found.entry.name, found.path, found.entry.task)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / found.path.name
    if not path.exists():
        shutil.copyfile(found.path, path)
    runner = Interpreter(path)
    if len(runner.inputs) != 1 or len(runner.outputs) != 1:
        raise ModelError(
            f"{path.name} has {len(runner.inputs)} inputs and {len(runner.outputs)} outputs; expected one each, or a "
            "model that a manifest.json beside it describes"
        )
    task = image_task(runner.inputs[0], runner.outputs[0])
    (folder / DESCRIPTION).write_text(_describe(runner.inputs[0]), encoding="utf-8")
    return ModelUnderTest(path.stem, path, task)


def image_task(image: Port, scores: Port) -> Task:
    """Return the task of a classifier of images [1, height, width, channels]: its classes go by their index.

    An integer input gets codes in its own quantisation, so that they enter untouched. Raises ModelError for an input of
    another shape.
    """
    if len(image.shape) not in (3, 4) or -1 in image.shape[1:]:
        raise ModelError(
            f"input {image.name!r} is {list(image.shape)}; expected an image [1, height, width, channels] or a window "
            "[1, length, channels]"
        )
    classes = math.prod(scores.shape[1:])
    method = METHOD_OF.get(image.dtype.name)
    reducer = f"{method}:{np.float32(image.scale)!s}:{image.zero_point}" if method and image.scale > 0 else "none"
    length = math.prod(image.shape[1:-1])
    return Task(
        stream=StreamTask(DESCRIPTION, 1.0, length, length),
        inputs={_SOURCE: SourceInput(image.name, reducer)},
        output=scores.name,
        labels=[f"class-{index}" for index in range(classes)],
        label_ids=list(range(classes)),
    )


def _describe(image: Port) -> str:
    columns = ", ".join(f'"channel-{index}"' for index in range(image.shape[-1]))
    return (
        'name = "images"\nrate_hz = 1.0\nsynthetic = true  # random pixels: good for times, not for accuracies\n'
        f'\n[[sources]]\nname = "{_SOURCE}"\ncolumns = [{columns}]\n'
    )


def cut_model(under_test: ModelUnderTest, cuts: tuple[int, ...], folder: Path, name: str) -> Pipeline:
    """Cut a model into a folder that stages can run."""
    return prepare(under_test.path, under_test.task, folder, stages=len(cuts) + 1, cuts=cuts, name=name)


def make_windows(pipeline: Pipeline, count: int) -> list[dict[str, Code]]:
    """Return the codes of made-up windows by source, each packed as a message carries it: uniform from -1 to 1."""
    rng, task = np.random.default_rng(_SEED), pipeline.task
    reducers = {source: reducer_of(pipeline, source) for source in task.inputs}
    found = []
    for _ in range(count):
        windows = {
            source: rng.uniform(-1, 1, (task.stream.length, pipeline.channels(source))).astype(np.float32)
            for source in reducers
        }
        found.append({source: pack(reducer, [reducer.encode(windows[source])]) for source, reducer in reducers.items()})
    return found
