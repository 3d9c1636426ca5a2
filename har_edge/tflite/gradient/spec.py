"""The inputs and outputs of a training graph; they travel beside its file as JSON."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

from har_edge.tflite.gradient.errors import GradientError

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Shape = Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
MAX_WEIGHTS = 65536
MAX_SPEC_BYTES = 16 << 20


class WeightSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight of the model by its name in the model, float32."""

    name: _Name
    shape: _Shape

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class PortSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of the training graph.

    `port` is its name in the file, `name` the tensor of the model that it is, or is the gradient of.
    """

    port: _Name
    name: str
    shape: _Shape
    dtype: str = "float32"


class MaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dropout mask of a tensor of the model: 0 where a value is dropped, else 1 / (1 - rate)."""

    port: _Name
    name: str
    shape: _Shape
    rate: Annotated[float, msgspec.Meta(ge=0, lt=1)]


class TrainingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs and outputs of a training graph, in the order of the file.

    Inputs: the weights, `x`, then `y` and `sample_weight` where there is a loss, `dy` where there is none, the masks.
    Outputs: `loss` and `predictions` where there is a loss, `dx`, and a gradient for each weight. Loss and gradients
    are sums over the samples, each times its sample weight. The port of weight number i is `weight/i`, that of its
    gradient `gradient/i`.
    """

    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    loss: str
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    start: _Size
    stop: _Size
    weights: Annotated[tuple[WeightSpec, ...], msgspec.Meta(max_length=MAX_WEIGHTS)]
    x: tuple[PortSpec, ...]
    y: PortSpec | None
    sample_weight: PortSpec | None
    dy: tuple[PortSpec, ...]
    masks: tuple[MaskSpec, ...]
    loss_sum: PortSpec | None
    predictions: PortSpec | None
    dx: tuple[PortSpec, ...]

    @property
    def elements(self) -> int:
        """Number of values of all weights together."""
        return sum(weight.elements for weight in self.weights)

    def encode(self) -> bytes:
        """Return the description as JSON."""
        return msgspec.json.encode(self)


def weight_port(number: int) -> str:
    """Return the input of the file for weight number `number`."""
    return f"weight/{number}"


def gradient_port(number: int) -> str:
    """Return the output of the file for the gradient of weight number `number`."""
    return f"gradient/{number}"


def decode_spec(data: bytes) -> TrainingSpec:
    """Return the description that JSON holds. Raises GradientError for bytes that are none."""
    if len(data) > MAX_SPEC_BYTES:
        raise GradientError(
            f"the description of a training graph has {len(data)} bytes, at most {MAX_SPEC_BYTES} expected"
        )
    try:
        return msgspec.json.decode(data, type=TrainingSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise GradientError(f"the description of a training graph cannot be read: {error}; send it anew") from error
