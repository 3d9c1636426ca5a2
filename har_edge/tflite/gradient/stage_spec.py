"""The inputs and outputs of a stage of split training; the description travels beside its graphs as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec
import numpy as np

from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.spec import MAX_SPEC_BYTES, MAX_WEIGHTS, PortSpec, WeightSpec

_Index = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Ports = Annotated[tuple[PortSpec, ...], msgspec.Meta(max_length=65_536)]
_Names = Annotated[tuple[str, ...], msgspec.Meta(max_length=4096)]


def port_bytes(port: PortSpec) -> int:
    """Return how many bytes the values of a port have."""
    return math.prod(port.shape) * np.dtype(port.dtype).itemsize


def sum_bytes(ports: Iterable[PortSpec]) -> int:
    """Return how many bytes the values of some ports have together."""
    return sum(map(port_bytes, ports))


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Operators [start, stop) of a model as a stage, for micro-batches of `batch` samples.

    Attributes:
        entering: The tensors that cross the cut in front of the stage, read here or further back, by name.
        leaving: Those that cross the cut behind it.
        returned: The names of those that entered, and whose gradients go back.
        awaited: The names of those that left, and whose gradients come.
        weights: The weights of the stage; the graphs have them at the ports `weight/i`.
        forward_weights: Which of them the forward graph takes, by number.
        backward_weights: Which of them the backward graph takes, by number.
        x: The inputs of the forward graph; at the last stage those of the backward graph.
        y: The outputs of the forward graph that leave.
        kept: Tensors of the forward pass that the backward graph takes: its inputs and outputs, by port.
        dy: The inputs of the backward graph for gradients.
        dx: Its outputs for gradients.
        loss: The loss of the last stage, whose backward graph is a training graph with a loss; "" for the others.
        labels: Its input for targets; `sample_weight`, `loss_sum` and `predictions` are ports of it, too.
        keep: Whether the forward graph gives what the backward graph reads, which computes it anew else.
    """

    start: _Index
    stop: _Index
    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    entering: _Ports
    leaving: _Ports
    returned: _Names
    awaited: _Names
    weights: Annotated[tuple[WeightSpec, ...], msgspec.Meta(max_length=MAX_WEIGHTS)]
    forward_weights: tuple[_Index, ...] = ()
    backward_weights: tuple[_Index, ...] = ()
    x: _Ports = ()
    y: _Ports = ()
    kept: _Ports = ()
    dy: _Ports = ()
    dx: _Ports = ()
    loss: str = ""
    labels: PortSpec | None = None
    sample_weight: PortSpec | None = None
    loss_sum: PortSpec | None = None
    predictions: PortSpec | None = None
    keep: bool = False

    @property
    def last(self) -> bool:
        """Whether the model ends with this stage."""
        return self.labels is not None

    @property
    def trains(self) -> bool:
        """Whether the stage has a backward pass."""
        return self.last or bool(self.awaited)

    @property
    def elements(self) -> int:
        """Number of values of all weights together."""
        return sum(weight.elements for weight in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return 4 * self.elements

    @property
    def entering_bytes(self) -> int:
        """Bytes of what enters, for one micro-batch."""
        return sum_bytes(self.entering)

    @property
    def leaving_bytes(self) -> int:
        """Bytes of what leaves, for one micro-batch."""
        return sum_bytes(self.leaving)

    @property
    def returned_bytes(self) -> int:
        """Bytes of the gradients that go back, for one micro-batch."""
        return sum_bytes(self.ports(self.returned, self.entering))

    @property
    def awaited_bytes(self) -> int:
        """Bytes of the gradients that come, for one micro-batch."""
        return sum_bytes(self.ports(self.awaited, self.leaving))

    @property
    def held_bytes(self) -> int:
        """Bytes that are held of a micro-batch between its forward and its backward pass."""
        return sum_bytes(self.kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the forward graph gives for the backward graph, beside what leaves."""
        given = {port.port for port in (*self.x, *self.y)}
        return sum_bytes(port for port in self.kept if port.port not in given)

    @staticmethod
    def ports(names: Iterable[str], among: Iterable[PortSpec]) -> tuple[PortSpec, ...]:
        """Return the ports with these names, in this order."""
        by_name = {port.name: port for port in among}
        return tuple(by_name[name] for name in names)

    def encode(self) -> bytes:
        """Return the description as JSON."""
        return msgspec.json.encode(self)


def decode_stage_spec(data: bytes) -> StageSpec:
    """Return the description that JSON holds. Raises GradientError for bytes that are none."""
    if len(data) > MAX_SPEC_BYTES:
        raise GradientError(f"the description of a stage has {len(data)} bytes, at most {MAX_SPEC_BYTES} expected")
    try:
        spec = msgspec.json.decode(data, type=StageSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GradientError(f"the description of a stage cannot be read: {error}; send it anew") from error
    flaw = _flaw(spec)
    if flaw:
        raise GradientError(f"the description of a stage {flaw}; send it anew")
    return spec


def _flaw(spec: StageSpec) -> str:
    """Return what is wrong with a description that was read; "" for nothing."""
    entering, leaving = {port.name for port in spec.entering}, {port.name for port in spec.leaving}
    numbers = (*spec.forward_weights, *spec.backward_weights)
    ports = (*spec.entering, *spec.leaving, *spec.x, *spec.y, *spec.kept, *spec.dy, *spec.dx)
    dtypes = {port.dtype for port in ports}
    checks = [
        (not set(spec.returned) <= entering, "returns gradients of what does not enter"),
        (not set(spec.awaited) <= leaving, "awaits gradients of what does not leave"),
        (not {port.name for port in spec.x} <= entering, "reads what does not enter"),
        (any(number >= len(spec.weights) for number in numbers), "takes weights that it does not have"),
        (any(not _is_number(dtype) for dtype in dtypes), "has values that are no numbers"),
        (spec.last != bool(spec.loss), "has a loss without labels, or labels without a loss"),
        (spec.last and None in (spec.sample_weight, spec.loss_sum, spec.predictions), "has no output for its loss"),
    ]
    return next((text for wrong, text in checks if wrong), "")


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "iufb"
    except TypeError:
        return False
