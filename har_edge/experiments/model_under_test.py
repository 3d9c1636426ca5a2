"""A model to measure, the task that lets it take part in a pipeline, and made-up windows for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from har_edge.codecs.packing import pack
from har_edge.codecs.reducer import Code
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.config.task import Task
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.inference.port_task import DESCRIPTION, describe_images, image_task
from har_edge.runtime.build import reducer_of
from har_edge.runtime.slicing import prepare

_SEED = 0


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
    (folder / DESCRIPTION).write_text(describe_images(runner.inputs[0]), encoding="utf-8")
    return ModelUnderTest(path.stem, path, task)


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
