"""The meaning of the outputs of a model that no manifest lists: classes where labels fit one, else arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from har_edge.config.classifier_output import INDICES
from har_edge.config.task import MAX_ARRAYS, ArrayOutput
from har_edge.errors import ConfigError
from har_edge.tflite.manifest import TensorSpec
from har_edge.tflite.model import Model, Tensor


@dataclass(frozen=True, slots=True)
class OutputMeaning:
    """The output with the classes, or the first one, and the outputs that results carry as arrays."""

    output: str
    labels: tuple[str, ...]
    arrays: tuple[ArrayOutput, ...]


def find_meaning(model: Model, labels: Sequence[str] | None, *, arrays: bool, asked: bool) -> OutputMeaning:
    """Return what results are made of.

    One output with a score for each label, or with the index of one, gives the class. Results carry all outputs as
    arrays too where there are several, where no labels fit, and where `arrays` asks for it. `asked` says that a person
    gave the labels: then they must fit.

    Raises ConfigError for labels that fit no output, and for outputs that no result can carry.
    """
    tensors = [model.main.tensors[index] for index in model.main.outputs]
    names = [] if labels is None else list(labels)
    fitting = [tensor for tensor in tensors if names and _fits(tensor, len(names))]
    if asked and names and len(fitting) != 1:
        found = "several outputs" if fitting else "no output"
        raise ConfigError(
            f"{len(names)} labels came, and {found} of the model has one score for each: {list_tensors(tensors)}; "
            "expected one such output, or one with the index of a class; leave --labels out to get arrays"
        )
    scores = fitting[0] if len(fitting) == 1 else None
    if scores is not None and len(tensors) == 1 and not arrays:
        return OutputMeaning(scores.name, tuple(names), ())
    return OutputMeaning(
        (scores or tensors[0]).name, tuple(names) if scores is not None else (), tuple(list_arrays(tensors))
    )


def list_arrays(tensors: Sequence[Tensor]) -> list[ArrayOutput]:
    """Return these outputs as arrays of results; ConfigError for complex ones, and for more than MAX_ARRAYS."""
    odd = next((tensor for tensor in tensors if tensor.dtype is None or tensor.dtype.startswith("complex")), None)
    if odd is not None:
        raise ConfigError(f"output {odd.name!r} is {odd.type_name}, which no result can carry; expected real numbers")
    if not 0 < len(tensors) <= MAX_ARRAYS:
        raise ConfigError(f"the model has {len(tensors)} outputs; expected 1 to {MAX_ARRAYS}")
    return [ArrayOutput(tensor.name, *_quantisation(tensor)) for tensor in tensors]


def _quantisation(tensor: Tensor) -> tuple[float, int]:
    """Return scale and zero point of a tensor with one of each; a scale of 0 for others."""
    found = tensor.raw.quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return 0.0, 0
    zero = 0 if found.zeroPoint is None or not len(found.zeroPoint) else int(found.zeroPoint[0])
    return max(0.0, float(found.scale[0])), zero


def _fits(tensor: Tensor, classes: int) -> bool:
    values = values_of(tensor.signature)
    return values == classes or (values == 1 and tensor.dtype in INDICES)


def values_of(shape: Sequence[int]) -> int | None:
    """Return the number of values of a window in a tensor of this shape, None where only a run would show it."""
    one = shape[1:] if tuple(shape[:1]) in ((-1,), (1,)) else shape
    return math.prod(one) if -1 not in one else None


def list_tensors(tensors: Sequence[Tensor] | Sequence[TensorSpec]) -> str:
    """Return names and shapes, for errors."""
    return ", ".join(f"{one.name} {list(one.signature if isinstance(one, Tensor) else one.shape)}" for one in tensors)
