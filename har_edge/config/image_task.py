"""The task of a model that takes pictures, from its file and from options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from har_edge.config.model_outputs import find_meaning, list_tensors
from har_edge.config.task import IMAGES, ImageInput, SourceInput, StreamTask, Task
from har_edge.data.pictures import MAX_SIDE, AspectRule
from har_edge.errors import ConfigError
from har_edge.tflite.metadata import read_normalizations
from har_edge.tflite.model import Model, Tensor
from har_edge.tflite.slices import slice_model

SOURCE = "camera"
# Pixels travel as bytes: the real value of a code is the code.
PIXELS = "u8:1:0"
TYPES = ("float32", "float16", "float64", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Normalization:
    """The constants of (byte - mean) / std, one figure or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def derive_image_task(
    model: Model,
    *,
    labels: Sequence[str] | None = None,
    asked: bool = False,
    normalization: Normalization | None = None,
    fit: AspectRule = AspectRule.STRETCH,
    arrays: bool = False,
    source: str = SOURCE,
) -> Task:
    """Return the task of a model with one input [1, height, width, channels], RGB or grey, or [1, height, width].

    The values of pixels come from `normalization`, else from the model's metadata. An uint8 input takes bytes as they
    are whatever its metadata say, as TensorFlow Lite's own tools feed it, and so does an int8 input (less 128) without
    any. For `labels`, `asked` and `arrays` see `find_meaning`.

    Raises ConfigError for another model, and for a float input of which nothing says how bytes become its values.
    """
    tensor, (height, width, channels) = _find_input(model)
    found = read_normalizations(model).get(tensor.name)
    if normalization is None and found is not None and tensor.dtype != "uint8":
        normalization = Normalization(*found)
    if normalization is None and tensor.dtype not in ("uint8", "int8"):
        raise ConfigError(
            f"input {tensor.name!r} is {tensor.dtype}, and the model has no metadata that say how bytes become its "
            "values; give --normalize MEAN,STD: 127.5,127.5 for values from -1 to 1, 0,255 for 0 to 1, 0,1 for bytes "
            "as they are"
        )
    mean, std = (normalization.mean, normalization.std) if normalization is not None else ((), ())
    try:
        image = ImageInput(height, width, 3 if channels == 3 else 1, fit, mean, std)
    except ValueError as error:
        raise ConfigError(f"the normalization does not fit input {tensor.name!r}: {error}") from None
    meaning = find_meaning(model, labels, arrays=arrays, asked=asked)
    return Task(
        stream=StreamTask(IMAGES, 1.0, height * width, height * width),
        inputs={source: SourceInput(tensor.name, PIXELS)},
        output=meaning.output,
        labels=list(meaning.labels),
        label_ids=list(range(len(meaning.labels))),
        image=image,
        arrays=meaning.arrays,
    )


def _find_input(model: Model) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the input, and height, width and channels of its pictures; inputs that nothing reads do not count."""
    (whole,) = slice_model(model, [])
    tensors = [model.main.tensors[index] for index in whole.part.inputs]
    read = {spec.name for spec in whole.inputs}
    tensors = [tensor for tensor in tensors if tensor.name in read]
    if len(tensors) != 1:
        raise ConfigError(
            f"a model of pictures has one input; this one has {len(tensors)}: {list_tensors(tensors)}; describe its "
            "windows with --stream TOML instead (docs/how-to/own-model.md)"
        )
    (tensor,) = tensors
    shape = tensor.signature[1:] if tensor.signature[:1] in ((-1,), (1,)) else tensor.signature
    sizes = (*shape, 1) if len(shape) == 2 else shape
    if len(sizes) != 3 or not all(1 <= size <= MAX_SIDE for size in sizes[:2]) or sizes[2] not in (1, 3):
        swapped = len(sizes) == 3 and sizes[0] in (1, 3)
        hint = "; channels come first here: convert it with channels last" if swapped else ""
        raise ConfigError(
            f"input {tensor.name!r} is {tensor.dtype} {list(tensor.signature)}; expected pictures [1, height, width, "
            f"channels] of fixed size, RGB (3 channels) or grey (1){hint}"
        )
    if tensor.dtype not in TYPES:
        raise ConfigError(f"input {tensor.name!r} is {tensor.type_name}; pictures enter {', '.join(TYPES)}")
    return tensor, (sizes[0], sizes[1], sizes[2])
