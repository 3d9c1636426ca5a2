"""A network of the zoo beside what tells har-edge how to run it: its entry in manifest.json, and its stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from har_edge.config.catalog import ModelEntry
from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter, Port
from har_edge.inference.port_task import describe_images, image_task
from har_edge.tflite.manifest import TensorSpec
from har_edge.training.versions import versions


@dataclass(frozen=True, slots=True)
class Origin:
    """The words and numbers that say how a file was made."""

    title: str
    seed: int
    command: str


def describe_model(content: bytes, file_name: str, origin: Origin) -> tuple[ModelEntry, Mapping[str, str]]:
    """Return the entry of a .tflite file and the texts that belong beside it by file name; run the file once.

    Raises ModelError when LiteRT does not run it, or answers with what is no number.
    """
    interpreter = Interpreter(content)
    (image,), (scores,) = interpreter.inputs, interpreter.outputs
    _run_once(interpreter, image, scores)
    task = image_task(image, scores)
    description = f"images-{image.shape[-1]}.toml"
    stream = msgspec.structs.replace(task.stream, description=description)
    entry = ModelEntry(
        name=file_name.removesuffix(".tflite"),
        file=file_name,
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=[_spec(image)],
        outputs=[_spec(scores)],
        task=msgspec.structs.replace(task, stream=stream),
        data=f"{origin.title} with random weights, seed {origin.seed}: its answers mean nothing",
        real=False,
        trained_on=[],
        split=None,
        baselines=[],
        command=origin.command,
        seed=origin.seed,
        versions=versions(),
    )
    return entry, {description: describe_images(image)}


def _run_once(interpreter: Interpreter, image: Port, scores: Port) -> None:
    shape = (1, *image.shape[1:])
    zeros = np.full(shape, image.zero_point if image.scale > 0 else 0, image.dtype)
    answer = np.asarray(interpreter.run({image.name: zeros})[scores.name], np.float64)
    if not np.isfinite(answer).all():
        raise ModelError(f"the model answers {answer.reshape(-1)[:5]}; expected finite scores; give another --seed")


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(port.name, port.shape, port.dtype.name)
